"""The program that runs inside the sandbox and executes the model's code there.

Its text is handed to the sandbox's interpreter with `-c`, so it imports the standard library
only and nothing of this package. Arguments: descriptor of the control pipe or -1, `once` or
`session`, and the limits as `NAME=VALUE` words.
"""

import ast
import contextlib
import os
import resource
import signal
import sys
import types

_NAME = "<code>"


def _main() -> None:
    control, mode = int(sys.argv[1]), sys.argv[2]
    for word in sys.argv[3:]:
        name, value = word.split("=")
        resource.setrlimit(getattr(resource, name), (int(value), int(value)))
    if os.getpid() == 1:
        _become_init(control)
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.argv[:] = [""]
    sys.path.insert(0, os.getcwd())
    # A main module of its own, so that pickling and dataclasses find the code's names.
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    if control >= 0:
        os.set_inheritable(control, False)
        os.write(control, b"ready\n")
    if mode == "once":
        source = requests.read()
        requests.close()
        if control >= 0:
            os.close(control)
        sys.exit(_execute(source, module.__dict__))
    while header := requests.readline():
        try:
            status = _execute(requests.read(int(header)), module.__dict__)
        except SystemExit as request:
            status = request.code if isinstance(request.code, int) else int(bool(request.code))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os.write(control, b"done %d\n" % status)


def _become_init(control: int) -> None:
    """Go on in a child, and stay behind to bury the dead and to pass its status on.

    The kernel shields a namespace's first process from signals and ends the namespace with it;
    the code should be an ordinary process instead.
    """
    child = os.fork()
    if child == 0:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if control >= 0:
        os.close(control)
    ended = 0
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _execute(source: bytes, namespace: dict) -> int:
    """Run the code and show the value of its last expression, as a notebook does."""
    try:
        text = source.decode()
        tree = ast.parse(text, _NAME)
        _remember(text)
        ends_in_expression = bool(tree.body) and isinstance(tree.body[-1], ast.Expr)
        last = [tree.body.pop()] if ends_in_expression else []
        exec(compile(tree, _NAME, "exec", dont_inherit=True), namespace)
        # Mode "single" prints an expression's value unless it is None.
        exec(compile(ast.Interactive(last), _NAME, "single", dont_inherit=True), namespace)
    except SystemExit:
        raise
    except BaseException as error:
        _show(error)
        return 1
    return 0


def _remember(text: str) -> None:
    """Let tracebacks quote the code's lines, without importing linecache for code that works."""
    global _lines
    _lines = text.splitlines(True)


_lines: list = []


def _show(error: BaseException) -> None:
    import linecache
    import traceback

    linecache.cache[_NAME] = (1, None, _lines, _NAME)
    trace = error.__traceback__
    # The frames of this file mean nothing to the model.
    while trace is not None and trace.tb_frame.f_code.co_filename != _NAME:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


_main()
