"""What the files of a model say: where it stops, how far it reaches, which weights it has."""

from __future__ import annotations

import hashlib

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Tokens that tokenizers may call special, but that say where a tool call begins.
_KEPT_TAGS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Hash of 64 values of every weight: training changes it, a copy to another place does not."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        values = weight.flatten()[:: max(1, weight.numel() // 64)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer."""
    of_model = model.generation_config.eos_token_id if model.generation_config else None
    found = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(id_ for id_ in [*found, tokenizer.eos_token_id] if id_ is not None)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens, which are no part of an answer's text; tags of tool calls are."""
    return frozenset(
        id_
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content not in _KEPT_TAGS
    )


def most_positions(of_model: PretrainedConfig) -> int | None:
    """Most tokens that a model has positions for; None if there is no end."""
    config = of_model.get_text_config(decoder=True).to_dict()
    positions: int | None = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or {}
    if positions is None or rope.get("rope_type") not in ("yarn", "longrope", "dynamic"):
        return positions
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(original * (rope.get("factor") or 1)))


def rope_switch(of_model: PretrainedConfig) -> int | None:
    """Positions beyond which a model has other rotary frequencies; None if they stay the same."""
    config = of_model.get_text_config(decoder=True).to_dict()
    rope = config.get("rope_parameters") or {}
    # transformers compares dynamic frequencies with another length than those of longrope.
    name = {
        "longrope": "original_max_position_embeddings",
        "dynamic": "max_position_embeddings",
    }.get(rope.get("rope_type", ""))
    found: int | None = {**config, **rope}.get(name) if name else None
    return found
