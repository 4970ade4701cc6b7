r"""Run Python code that a model wrote, where it can do no harm.

`run(code)` starts a fresh interpreter in bubblewrap: own process, network, IPC and mount
namespaces, a read-only system, a small private /tmp, no environment, no capabilities, a
system-call filter (`seccomp.py`), and limits on time, memory, processes, files and output.
Nothing that the code started outlives the call. (If this process is killed in the milliseconds in
which bubblewrap sets up its namespaces, an idle process of bubblewrap stays, without any code.)

What the code can see of the host: /usr/bin and /usr/lib (read-only), the interpreter's own folders
if it lives elsewhere, the names in the process's mount table, and the kernel's public figures in
/proc (processor, memory, load).
"""

from focusft.evaluation.sandbox.bubblewrap import Bubblewrap
from focusft.evaluation.sandbox.docker import Docker
from focusft.evaluation.sandbox.fusion import SandboxFusion, show_last_expression
from focusft.evaluation.sandbox.interface import Limits, Result, Sandbox, SandboxError
from focusft.evaluation.sandbox.output import cut_middle
from focusft.evaluation.sandbox.session import Session
from focusft.evaluation.sandbox.unprotected import Unprotected

__all__ = [
    "Bubblewrap",
    "Docker",
    "Limits",
    "Result",
    "Sandbox",
    "SandboxError",
    "SandboxFusion",
    "Session",
    "Unprotected",
    "cut_middle",
    "run",
    "show_last_expression",
]


def run(
    code: str, *, timeout_s: float = 30, memory_mb: int = 2048, sandbox: Sandbox | None = None
) -> Result:
    """Run Python code in a fresh sandbox that is gone afterwards.

    Args:
        code: The program. The value of its last expression is shown as a notebook shows it.
        timeout_s: Wall-clock seconds.
        memory_mb: MiB of address space of each process, and of memory of all of them together.
        sandbox: Where to run it; bubblewrap with the system's Python by default.

    Raises:
        SandboxError: The sandbox does not work here. Never raised for what the code does.
    """
    return (sandbox or Bubblewrap()).run(code, timeout_s=timeout_s, memory_mb=memory_mb)
