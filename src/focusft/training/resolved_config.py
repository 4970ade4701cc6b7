"""The options that a trained model was made with, as `focusft train` leaves them beside it."""

from __future__ import annotations

from pathlib import Path

from focusft.method.config import ContextBlocks
from focusft.training.config import read_yaml

RESOLVED_CONFIG = "focusft_config.yaml"


def trained_context_blocks(model: str | Path) -> ContextBlocks:
    """Where the context tokens of a model saw each other in its training.

    Args:
        model: As in `load_model`.

    Returns:
        "merged", the default of training, where nothing lies beside the model.

    Raises:
        ConfigError: The file beside the model cannot be read.
    """
    file = Path(model) / RESOLVED_CONFIG
    options = read_yaml(file) if file.is_file() else {}
    return "per_turn" if options.get("context_blocks") == "per_turn" else "merged"
