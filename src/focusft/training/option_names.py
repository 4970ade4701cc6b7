"""What an option that does not exist was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Options of the published code or of older transformers that are gone, and what replaces them.
GONE = {
    "inner_gradient_checkpointing": "the inner loop follows gradient_checkpointing",
    "sync_inner": "inner gradients are never synchronised; leave it out",
    "torch_dtype": "its name is dtype",
    "trust_remote_code": "FocuSFT never runs code from a model folder; leave it out",
    "truncation": "its name is length_policy (drop, error, truncate_context)",
    "messages_key": "name the column 'messages'",
    "tools_key": "name the column 'tools'",
    "enable_thinking_key": "name the column 'enable_thinking'",
    "warmup_ratio": "use warmup_steps with a fraction, for instance 0.1",
}
# What other trainers, or other commands here, call an option of ours.
_ELSEWHERE = {
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "base_model": "model_name_or_path",
    "data": "train_data",
    "dataset": "train_data",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
}


def unknown_option(
    name: str, known: Iterable[str], otherwise: str = "see 'focusft train --help'"
) -> str:
    """What to say of an option that does not exist, with the one that was meant if it shows."""
    if name in GONE:
        return f"option {name!r} does not exist here: {GONE[name]}"
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if (meant := _ELSEWHERE.get(name)) in names:
        close = [meant]
    return f"unknown option {name!r}; " + (f"did you mean {close[0]!r}?" if close else otherwise)
