import contextlib
import http.server
import json
import os
import platform
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

import focusft
from focusft.errors import ConfigError, UserError
from focusft.evaluation import seccomp
from focusft.evaluation.sandbox import (
    Bubblewrap,
    Docker,
    Limits,
    Result,
    SandboxError,
    SandboxFusion,
    Session,
    Unprotected,
    cut_middle,
    run,
    running,
    show_last_expression,
)
from tests.evaluation.needs_bwrap import bwrap_or_skip
from tests.evaluation.sandbox_attacks import BOMBS, HARMLESS, PRELUDE, REFUSED

bwrap = pytest.mark.usefixtures("needs_bwrap")
SOURCE = Path(focusft.__file__).parent


@pytest.fixture
def needs_bwrap():
    bwrap_or_skip()


@pytest.fixture
def namespaces(monkeypatch):
    """Process namespaces of the sandboxes that the test starts, to look for survivors."""
    found = []
    original = running._read_init_pid

    def recording(status):
        pid = original(status)
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/ns/pid"))
        return pid

    monkeypatch.setattr(running, "_read_init_pid", recording)
    return found


def survivors(namespaces):
    """Processes of the sandboxes that are still there, dead ones that nobody buried included."""
    alive = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") in namespaces:
                alive.append(Path(f"/proc/{name}/status").read_text())
    return alive


@pytest.fixture(scope="module")
def host():
    """What the attacks aim at: files, sockets and the process of this test."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o777)
        (folder / "secret").write_text("host secret")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        file = stack.enter_context(socket.socket(socket.AF_UNIX))
        file.bind(str(folder / "socket"))
        file.listen()
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        name = f"focusft-test-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()
        yield {
            "SECRET": str(folder / "secret"),
            "HOST_FOLDER": str(folder),
            "PORT": tcp.getsockname()[1],
            "UDP_PORT": udp.getsockname()[1],
            "ABSTRACT": name,
            "PARENT": os.getpid(),
        }


def attack(code, host):
    values = "".join(f"{name} = {value!r}\n" for name, value in host.items())
    return (
        f"{PRELUDE}{values}"
        f"try:\n{textwrap.indent(code, '    ')}\n"
        "except (OSError, MemoryError) as error:\n    print('held:', error)\n"
        "else:\n    print('BREACH' if breach else 'held')\n"
    )


@bwrap
@pytest.mark.parametrize("name", REFUSED)
def test_attack_is_refused(name, host, namespaces, monkeypatch):
    monkeypatch.setenv("FOCUSFT_TEST_SECRET", "host secret")
    before = sorted(os.listdir(host["HOST_FOLDER"]))
    result = run(attack(REFUSED[name], host), timeout_s=20, memory_mb=512)
    assert result.stdout.startswith("held"), result
    assert result.exit_code == 0 and not result.stopped, result
    assert sorted(os.listdir(host["HOST_FOLDER"])) == before
    assert namespaces and not survivors(namespaces)


@pytest.mark.parametrize("name", HARMLESS)
def test_attack_works_without_a_sandbox(name, host):
    sandbox = Unprotected(code_may_read_and_delete_my_files=True)
    try:
        result = sandbox.run(attack(HARMLESS[name], host), timeout_s=20)
        if "IPv6" not in name:
            assert result.stdout == "BREACH\n", result
    finally:
        for left in ("link", "planted"):
            (Path(host["HOST_FOLDER"]) / left).unlink(missing_ok=True)


@bwrap
@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_contained(name, namespaces):
    code, ends = BOMBS[name]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    sandbox = Bubblewrap(limits=Limits(disk_mb=16, files=2000, flood_bytes=1 << 24))
    result = sandbox.run(code, timeout_s=1, memory_mb=256)
    assert result.stopped in ends, result
    assert result.timed_out == (result.stopped == "time")
    assert not result.stopped or result.exit_code == 128 + signal.SIGKILL
    assert time.monotonic() - started < 8
    assert len(result.stdout) < 70_000 and len(result.stderr) < 70_000
    # KiB: endless output must not pile up here.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 60_000
    assert namespaces and not survivors(namespaces)


def test_there_are_enough_attacks():
    assert len(REFUSED) + len(BOMBS) >= 60


@bwrap
def test_every_refused_call_fails():
    if platform.machine() not in seccomp._ARCHITECTURES:
        pytest.skip("no filter for this machine type")
    column = seccomp._ARCHITECTURES[platform.machine()][0]
    numbers = {name: both[column] for name, both in seccomp._REFUSED.items() if both[column] >= 0}
    result = run(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {numbers!r}.items():\n"
        "    ctypes.set_errno(0)\n"
        "    if libc.syscall(number, -1, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:\n"
        "        print(name, ctypes.get_errno())\n"
    )
    assert result == Result("", "", 0, False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of this machine's headers")
def test_call_numbers_are_those_of_the_system_headers():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.is_file():
        pytest.skip("the kernel's headers are not installed")
    words = [line.split() for line in header.read_text().splitlines()]
    known = {w[1]: int(w[2]) for w in words if len(w) == 3 and w[2].isdigit()}
    for name, (number, _) in seccomp._REFUSED.items():
        assert known.get(f"__NR_{name}", number) == number, name


def test_other_machine_types_are_refused():
    with pytest.raises(UserError, match=r"riscv64.*docker"):
        seccomp.filter_program("riscv64")
    assert len(seccomp.filter_program("aarch64")) % 8 == 0


@bwrap
@pytest.mark.parametrize(
    "code, stdout",
    [
        ("1 + 1", "2\n"),
        ("x = 3\nx", "3\n"),
        ("None", ""),
        ("print('a')\n'b'", "a\n'b'\n"),
        ("print('a')", "a\n"),
        ("for i in range(2):\n    i", ""),
        ("for i in range(2):\n    print(i)", "0\n1\n"),
        ("if True:\n    x = 1\n    x + 1", ""),
        ("def f():\n    return 5\nf()", "5\n"),
        ("x = 1  # comment\n# end", ""),
        ("(1 +\n 2)\n\n", "3\n"),
        ("1; 2", "2\n"),
        ("", ""),
        ("'''text\nof lines'''", "'text\\nof lines'\n"),
        ("from __future__ import annotations\nx: int = 4\nx", "4\n"),
        ("import sys\nsys.stdin.read()", "''\n"),
        ("class A:\n    def __repr__(self):\n        return 'shown'\nA()", "shown\n"),
        ("print('\\ud800')", "\\ud800\n"),
        ("'é😀'", "'é😀'\n"),
    ],
)
def test_value_of_the_last_expression_is_shown(code, stdout):
    assert run(code) == Result(stdout, "", 0, False)


@bwrap
def test_errors_are_shown_as_python_shows_them():
    result = run("print('before')\ndef f():\n    return 1 / 0\nf()\n")
    assert (result.stdout, result.exit_code) == ("before\n", 1)
    assert result.stderr.startswith('Traceback (most recent call last):\n  File "<code>", line 4')
    assert "return 1 / 0" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "_execute" not in result.stderr
    for code, error in {
        "x = (": "SyntaxError",
        "if x:\nprint(1)": "IndentationError",
        "a\x00b": "null bytes",
        "(" * 5000: "Error",
        "raise KeyboardInterrupt": "KeyboardInterrupt",
        "raise Exception('é')": "é",
        "\ud800": "UnicodeDecodeError",
    }.items():
        result = run(code)
        assert result.exit_code == 1 and error in result.stderr, (code, result)


@bwrap
def test_exit_status_is_the_codes_own():
    assert run("import sys; sys.exit(7)").exit_code == 7
    assert run("raise SystemExit('bye')") == Result("", "bye\n", 1, False)
    assert run("import os; os._exit(3)").exit_code == 3
    assert run("import os; os.kill(os.getpid(), 15)").exit_code == 143


@bwrap
def test_output_before_a_timeout_is_kept():
    result = run("print('so far')\nwhile True:\n    pass", timeout_s=0.5)
    assert result == Result("so far\n", "", 137, True, "time")


@bwrap
def test_the_hosts_files_do_not_count(monkeypatch):
    """While bubblewrap sets up, its process still has the host's /tmp as its own."""
    monkeypatch.setattr(running, "_WATCH_SECONDS", 1e-4)
    sandbox = Bubblewrap(limits=Limits(files=10))
    for _ in range(5):
        assert sandbox.run("6 * 7", timeout_s=60) == Result("42\n", "", 0, False)


@bwrap
def test_output_is_cut_in_the_middle():
    sandbox = Bubblewrap(limits=Limits(output_bytes=100))
    result = sandbox.run("print('a' * 1000 + 'é' * 1000 + 'z' * 45)")
    assert result.stdout.startswith("a" * 50 + "\n[... 2946 bytes cut ...]\n")
    assert result.stdout.endswith("é" * 2 + "z" * 45 + "\n")
    assert sandbox.run("print('a' * 99)").stdout == "a" * 99 + "\n"


def test_cut_middle_keeps_both_ends():
    assert cut_middle("abc", 3) == "abc"
    assert cut_middle("abcdefgh", 5) == "abc\n[... 3 characters cut ...]\ngh"
    assert cut_middle("abc", 0) == "\n[... 3 characters cut ...]\n"


@bwrap
def test_runs_share_nothing():
    assert run("open('/tmp/x', 'w').write('kept')\nimport math\nmath.x = 1").exit_code == 0
    result = run("import math, os\nos.listdir('/tmp'), os.listdir('/dev/shm'), hasattr(math, 'x')")
    assert result.stdout == "([], [], False)\n"


@bwrap
def test_ordinary_code_works():
    code = """
        import dataclasses, multiprocessing, pickle, sqlite3, subprocess, tempfile, threading

        @dataclasses.dataclass
        class Point:
            x: int

        def square(x):
            return x * x

        assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
        with multiprocessing.Pool(2) as pool:
            assert pool.map(square, [1, 2]) == [1, 4]
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("x")
        assert subprocess.check_output("echo hello | tr a-z A-Z", shell=True) == b"HELLO\\n"
        assert sqlite3.connect("/tmp/x.db").execute("select 1").fetchone() == (1,)
        open("mine.py", "w").write("value = 5")
        import mine
        mine.value
    """
    assert run(textwrap.dedent(code)) == Result("5\n", "", 0, False)


@bwrap
def test_this_environments_libraries_can_be_used():
    pytest.importorskip("sympy")
    sandbox = Bubblewrap(python=sys.executable)
    result = sandbox.run("import numpy, sympy\nx = sympy.Symbol('x')\nsympy.integrate(2 * x, x)")
    assert result == Result("x**2\n", "", 0, False)
    result = sandbox.run(f"open({str(SOURCE / 'errors.py')!r})")
    assert "FileNotFoundError" in result.stderr
    site = next(iter(Path(sys.prefix).glob("lib/python3*/site-packages")))
    assert "Read-only" in sandbox.run(f"open({str(site / 'planted.py')!r}, 'w')").stderr


@bwrap
def test_wrong_interpreter_is_one_line(tmp_path):
    with pytest.raises(SandboxError, match="not a working Python interpreter"):
        Bubblewrap(python=str(tmp_path / "none")).run("1")


def test_missing_bubblewrap_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="apt-get install bubblewrap") as error:
        run("1")
    assert "\n" not in str(error.value)


def test_broken_bubblewrap_is_one_line(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(broken))
    with pytest.raises(SandboxError, match=r"does not work here.*namespace failed") as error:
        run("1")
    assert "\n" not in str(error.value)


@bwrap
def test_the_sandbox_dies_with_its_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from focusft.evaluation.sandbox import run, running\n"
        "original = running._read_init_pid\n"
        "def show(status):\n"
        "    pid = original(status)\n"
        "    print(pid, flush=True)\n"
        "    return pid\n"
        "running._read_init_pid = show\n"
        "run('while True: pass')\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    handle = os.pidfd_open(pid)
    # While bubblewrap sets up, its two processes wait for each other and are not yet bound.
    deadline = time.monotonic() + 10
    while b"python" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    process.stdout.close()
    assert select.select([handle], [], [], 10)[0]
    os.close(handle)


@bwrap
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_is_protected_too():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        package = folder / "focusft" / "evaluation"
        package.mkdir(parents=True)
        shutil.copy(SOURCE / "errors.py", folder / "focusft")
        shutil.copy(SOURCE / "evaluation" / "seccomp.py", package)
        shutil.copytree(SOURCE / "evaluation" / "sandbox", package / "sandbox")
        shutil.copy(Path(__file__).with_name("sandbox_attacks.py"), folder)
        (folder / "main.py").write_text(
            "import sys, textwrap\n"
            "from focusft.evaluation.sandbox import Bubblewrap, Limits, run\n"
            "from sandbox_attacks import BOMBS, PRELUDE, REFUSED\n"
            "host = dict(SECRET='/etc/hostname', HOST_FOLDER='/var/tmp', PORT=9, UDP_PORT=9,\n"
            "            ABSTRACT='none', PARENT=999999)\n"
            "values = ''.join(f'{k} = {v!r}\\n' for k, v in host.items())\n"
            "for name, code in REFUSED.items():\n"
            "    text = PRELUDE + values + 'try:\\n' + textwrap.indent(code, '    ')\n"
            "    text += '\\nexcept (OSError, MemoryError):\\n    print(\"held\")\\n'\n"
            '    text += \'else:\\n    print("BREACH" if breach else "held")\'\n'
            "    result = run(text, memory_mb=512)\n"
            "    if result.stdout != 'held\\n':\n"
            "        print(name, result)\n"
            "limited = Bubblewrap(limits=Limits(disk_mb=16, files=2000))\n"
            "names = ('fork bomb', 'memory of many processes', 'empty files', 'endless line')\n"
            "for name in names:\n"
            "    code, ends = BOMBS[name]\n"
            "    result = limited.run(code, timeout_s=1, memory_mb=256)\n"
            "    if result.stopped not in ends:\n"
            "        print(name, result)\n"
        )
        done = subprocess.run(
            ["/usr/bin/python3", "main.py"],
            user=54321,
            group=54321,
            extra_groups=[],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("", "")


@bwrap
def test_session_keeps_its_state(namespaces):
    with Session(timeout_s=5) as session:
        assert session.run("import math\nx = 2\nopen('f', 'w').write('kept')").stdout == "4\n"
        assert session.run("math.sqrt(x * 8), open('f').read()").stdout == "(4.0, 'kept')\n"
        failed = session.run("y = 1\n1 / 0")
        assert failed.exit_code == 1 and "ZeroDivisionError" in failed.stderr
        assert session.run("import sys; sys.exit(4)") == Result("", "", 4, False)
        assert session.run("x + y") == Result("3\n", "", 0, False)
        assert session.run("print('a' * 200_000); 1").stdout.endswith("a\n1\n")
        assert session.restarts == 0
    assert len(namespaces) == 1 and not survivors(namespaces)


@bwrap
def test_session_starts_anew_after_a_limit(namespaces):
    with Session(timeout_s=0.5, memory_mb=256) as session:
        session.run("x = 1")
        assert session.run("while True:\n    pass") == Result("", "", 137, True, "time")
        assert "NameError" in session.run("x").stderr
        assert session.run("import os; os._exit(5)").exit_code == 5
        assert session.run("x = 2\nx").stdout == "2\n"
        assert session.restarts == 2
    assert not survivors(namespaces)


@bwrap
def test_session_survives_lies_of_its_code():
    lies = (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, {!r})\n"
        "    except OSError:\n        pass\n"
    )
    with Session(timeout_s=1) as session:
        for lie in (b"done 0\n", b"done x\n", b"x" * 9999, b"done " + b"9" * 99 + b"\n", b"\xff"):
            assert isinstance(session.run(lies.format(lie)), Result)
            assert isinstance(session.run("1"), Result)
        session.run("import os\nos.closerange(0, 4096)")
    assert run("1 + 1").stdout == "2\n"


def test_running_without_a_sandbox_needs_consent():
    with pytest.raises(ConfigError, match="read and delete your files"):
        Unprotected(code_may_read_and_delete_my_files=False)
    with pytest.raises(TypeError):
        Unprotected()
    sandbox = Unprotected(code_may_read_and_delete_my_files=True)
    assert sandbox.run("6 * 7") == Result("42\n", "", 0, False)
    assert sandbox.run("while True:\n    pass", timeout_s=0.5).timed_out


def test_docker_command_closes_every_door():
    command = Docker("image").command("docker", "name", 30, 2048)
    text = " ".join(command)
    for option in (
        "--network none --hostname",
        "--read-only",
        "--cap-drop ALL",
        "--user 65534:65534",
        "--security-opt no-new-privileges",
        "--pids-limit 32",
        "--memory 2048m --memory-swap 2048m",
        "--tmpfs /tmp:rw,nosuid,nodev,size=64m",
        "--pull never",
    ):
        assert option in text
    assert "--volume" not in text and "--privileged" not in text


def test_docker_runs_and_reports(monkeypatch, tmp_path):
    """Against a stand-in for the docker command: no daemon runs where these tests do."""
    fake = tmp_path / "docker"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "if sys.argv[1] == 'run':\n"
        "    if 'missing' in sys.argv:\n"
        "        sys.exit(sys.stderr.write('docker: No such image') and 125)\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv[sys.argv.index('image') + 2:]])\n"
        f"open({str(tmp_path / 'removed')!r}, 'w').write(' '.join(sys.argv[1:3]))\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
    assert Docker("image").run("print('x')\n6 * 7") == Result("x\n42\n", "", 0, False)
    assert Docker("image").run("while True:\n    pass", timeout_s=0.5).timed_out
    assert (tmp_path / "removed").read_text() == "rm --force"
    with pytest.raises(SandboxError, match="cannot run missing: docker: No such image"):
        Docker("missing").run("1")
    assert Docker("image").run("import sys; sys.exit(125)").exit_code == 125
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="install Docker"):
        Docker().run("1")


class _Fusion(http.server.BaseHTTPRequestHandler):
    answer: object = {}
    asked: object = None

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _Fusion.asked = {"path": self.path, **json.loads(body)}
        data = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def fusion():
    server = http.server.HTTPServer(("127.0.0.1", 0), _Fusion)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_sandbox_fusion(fusion):
    ran = {"status": "Finished", "return_code": 0, "stdout": "2\n", "stderr": ""}
    _Fusion.answer = {"status": "Success", "run_result": ran}
    assert SandboxFusion(fusion).run("1 + 1", timeout_s=3, memory_mb=99) == Result(
        "2\n", "", 0, False
    )
    assert _Fusion.asked == {
        "path": "/run_code",
        "code": "__import__('sys').displayhook(1 + 1)",
        "language": "python",
        "run_timeout": 3,
        "memory_limit_MB": 99,
    }
    late = {"status": "TimeLimitExceeded", "return_code": None, "stdout": "x", "stderr": None}
    _Fusion.answer = {"status": "Failed", "run_result": late}
    assert SandboxFusion(fusion).run("1") == Result("x", "", 137, True, "time")
    _Fusion.answer = {"status": "SandboxError", "message": "no\nroom", "run_result": None}
    with pytest.raises(SandboxError, match=r"ran nothing \(no room"):
        SandboxFusion(fusion).run("1")
    for wrong in (b"<html>", [1]):
        _Fusion.answer = wrong
        with pytest.raises(SandboxError, match="check the address"):
            SandboxFusion(fusion).run("1")
    for address in ("http://127.0.0.1:9", "http://127.0.0.1:80x0"):
        with pytest.raises(SandboxError, match="check the address"):
            SandboxFusion(address).run("1")


@pytest.mark.parametrize(
    "code", ["1 + 1", "x = 2\nx", "for i in range(2):\n    i", "None", "x = (", "print(3)"]
)
def test_rewritten_code_shows_the_same(code):
    sandbox = Unprotected(code_may_read_and_delete_my_files=True)
    plain, rewritten = sandbox.run(code), sandbox.run(show_last_expression(code))
    assert plain.stdout == rewritten.stdout and plain.exit_code == rewritten.exit_code


def test_code_that_is_nested_too_deeply_to_be_written_again_is_left_as_it_is():
    code = "+".join(["1"] * 5000)
    assert show_last_expression(code) in (code, f"__import__('sys').displayhook({code})")


@bwrap
@pytest.mark.slow
def test_a_thousand_runs_leak_nothing(namespaces, tmp_path, monkeypatch):
    # A folder of its own: other programs write into the machine's.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run("1")

    def state():
        files = len(os.listdir("/proc/self/fd"))
        return files, threading.active_count(), list(tmp_path.iterdir())

    before = state()
    mounts = Path("/proc/self/mountinfo").read_text()
    started = time.monotonic()
    for number in range(1000):
        assert run(f"{number} + 1").stdout == f"{number + 1}\n"
    rate = 1000 / (time.monotonic() - started)
    print(f"{rate:.1f} executions a second")
    assert state() == before
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert len(namespaces) >= 1000 and not survivors(set(namespaces))
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert rate >= 10


@bwrap
@pytest.mark.slow
def test_code_that_ended_while_the_caller_was_stopped_has_ended(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from focusft.evaluation.sandbox import run\n"
        "print('started', flush=True)\n"
        "print(run('import time; time.sleep(1); 6 * 7', timeout_s=4).stdout)\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.communicate()[0] == "42\n\n"


@bwrap
def test_parallel_runs_do_not_mix():
    results = {}

    def work(number):
        for step in range(5):
            results[number, step] = run(f"print({number}, {step})").stdout

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {(n, s): f"{n} {s}\n" for n in range(4) for s in range(5)}
