"""FocuSFT: bilevel supervised fine-tuning against attention dilution (arXiv 2605.09932)."""

from focusft.method.config import FocusConfig
from focusft.method.engine import FocusEngine, attach
from focusft.method.turns import TurnLayout

__version__ = "0.1.0"
__all__ = ["FocusConfig", "FocusEngine", "TurnLayout", "attach"]
