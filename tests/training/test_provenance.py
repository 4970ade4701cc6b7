"""The commit that a result names."""

import shutil
import subprocess

import pytest

from focusft.training import provenance


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_source_and_of_no_repository_around_it(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "focusft"
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / ".gitignore").write_text(".venv\n")
    (package / "provenance.py").write_text("")
    git("add", ".")
    git("commit", "-m", "a project of somebody's")
    assert provenance._git_commit() is None
    git("add", "--force", ".")
    git("commit", "-m", "the source itself")
    assert len(provenance._git_commit()) == 40
