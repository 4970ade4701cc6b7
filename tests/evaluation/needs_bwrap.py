"""Skip a test where bubblewrap is missing, but never in continuous integration."""

import os
import shutil

import pytest


def bwrap_or_skip() -> None:
    if shutil.which("bwrap"):
        return
    if os.environ.get("CI") or os.environ.get("FOCUSFT_REQUIRE_BWRAP") == "1":
        pytest.fail("bubblewrap is missing, and this run must test the sandbox")
    pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
