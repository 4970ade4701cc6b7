"""A room imports only from its own room or from a lower floor (see CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = "focusft"
SOURCE = Path(__file__).resolve().parents[1] / "src" / PACKAGE
FLOORS = {
    "errors": -1,
    "statistics": -1,
    "method": 0,
    "data": 1,
    "analysis": 1,
    "training": 2,
    "evaluation": 2,
    "cli": 3,
    "demo": 3,
    "study": 3,
    # The package itself re-exports the public names, so importing from it counts as the top floor.
    "": 3,
    "__init__": 3,
    "__main__": 3,
}
TOP = 3


def room_of(parts: tuple[str, ...]) -> str:
    """Room of a dotted name inside the package: its first part, '' for the package itself."""
    return parts[0] if parts else ""


def imported_names(path: Path, root: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line, dotted name inside the package) of every import of the package in a file.

    Covers absolute and relative imports at any depth of nesting, and importlib.import_module and
    __import__ with a literal name.
    """
    folder = path.relative_to(root).parent.parts
    found: list[tuple[int, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                if node.level > len(folder) + 1:
                    raise ImportError(f"{path}:{node.lineno}: relative import leaves the package")
                base = [PACKAGE, *folder[: len(folder) + 1 - node.level]]
            else:
                base = []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__"):
                names = [str(node.args[0].value)]
        for name in names:
            parts = tuple(name.split("."))
            if parts[0] == PACKAGE:
                inner = parts[1:]
                # `from focusft import FocusConfig` names something of the package itself.
                is_module = inner and (
                    (root / inner[0]).is_dir() or (root / f"{inner[0]}.py").is_file()
                )
                found.append((node.lineno, inner if is_module else ()))
    return found


def violations(root: Path) -> list[str]:
    """One line for every import that goes up or sideways, and for every unknown room."""
    problems = []
    for path in sorted(root.rglob("*.py")):
        own = room_of(path.relative_to(root).with_suffix("").parts)
        where = path.relative_to(root)
        if own not in FLOORS:
            problems.append(f"{where}: room '{own}' has no floor; add it to FLOORS")
            continue
        for line, parts in imported_names(path, root):
            other = room_of(parts)
            if other == own:
                continue
            if other not in FLOORS:
                problems.append(f"{where}:{line}: imports from unknown room '{other}'")
            elif FLOORS[own] < TOP and FLOORS[other] >= FLOORS[own]:
                problems.append(
                    f"{where}:{line}: {own} (floor {FLOORS[own]}) imports "
                    f"{other or PACKAGE} (floor {FLOORS[other]})"
                )
    return problems


def test_rooms_import_only_from_lower_floors():
    assert SOURCE.is_dir()
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("method/turns.py", "import focusft.data.chat"),
        ("method/turns.py", "from ..data import chat"),
        ("method/turns.py", "from ..data.chat import render"),
        ("method/turns.py", "from .. import data"),
        ("method/sub/deep.py", "from ...training import trainer"),
        ("method/turns.py", "from focusft import FocusConfig"),
        ("data/chat.py", "def f():\n    from focusft.evaluation import babilong"),
        ("data/chat.py", "from focusft import analysis"),
        ("data/chat.py", "if TYPE_CHECKING:\n    from focusft.training.models import load_model"),
        ("training/trainer.py", "from focusft.evaluation import generation"),
        ("training/trainer.py", "from focusft.cli import main"),
        ("training/trainer.py", "importlib.import_module('focusft.demo')"),
        ("errors.py", "from focusft.method import turns"),
        ("loose.py", ""),
    ],
)
def test_the_checker_catches(tmp_path, file, code):
    make_tree(tmp_path, {file: code})
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("method/engine.py", "from focusft.method.turns import TurnLayout\nfrom . import turns"),
        ("method/engine.py", "from ..errors import UserError\nimport focusft.errors"),
        ("data/chat.py", "from focusft.method import turns\nimport torch"),
        ("evaluation/lm_eval/tasks.py", "from ..babilong import score\nfrom ...data import chat"),
        ("cli.py", "from focusft import demo\nfrom .training import trainer"),
        ("__init__.py", "from focusft.training.trainer import FocuSFTTrainer"),
    ],
)
def test_the_checker_allows(tmp_path, file, code):
    make_tree(tmp_path, {file: code})
    assert violations(tmp_path) == []


def make_tree(root: Path, files: dict[str, str]) -> None:
    for room in ("method", "data", "analysis", "training", "evaluation"):
        (root / room).mkdir()
    for name in ("errors.py", "cli.py", "demo.py"):
        (root / name).write_text("")
    for name, code in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(code)
