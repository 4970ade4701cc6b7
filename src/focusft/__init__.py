"""FocuSFT: bilevel supervised fine-tuning against attention dilution (arXiv 2605.09932)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from focusft.method.config import FocusConfig
    from focusft.method.engine import FocusEngine, attach
    from focusft.method.turns import TurnLayout
    from focusft.training.config import FocuSFTConfig
    from focusft.training.trainer import FocuSFTTrainer

__version__ = "0.1.0"
__all__ = [
    "FocuSFTConfig",
    "FocuSFTTrainer",
    "FocusConfig",
    "FocusEngine",
    "TurnLayout",
    "attach",
]

_HOME = {
    "FocuSFTConfig": "focusft.training.config",
    "FocuSFTTrainer": "focusft.training.trainer",
    "FocusConfig": "focusft.method.config",
    "FocusEngine": "focusft.method.engine",
    "TurnLayout": "focusft.method.turns",
    "attach": "focusft.method.engine",
}


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import, which `focusft --help` does not need.
    if name not in _HOME:
        raise AttributeError(f"module 'focusft' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
