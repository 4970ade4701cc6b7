"""Where generation ends.

The stop token of a base model is often not the one that its chat template puts after a reply: after
training on conversations such a model would write on beyond the end of its answers.
"""

from __future__ import annotations

import logging

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a reply: eos, and the special token that the chat template puts after one."""
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        reply = "Yes"
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": reply}],
                tokenize=False,
            )
        )
        after = tokenizer(text[text.rindex(reply) + len(reply) :], add_special_tokens=False)
        first = after["input_ids"][:1]
        # Among the added tokens: all_special_ids has only those with a role such as bos or pad.
        if first and first[0] in tokenizer.added_tokens_decoder and first[0] not in ids:
            ids += first
    return ids


def add_stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Let the generation of a model end where its chat template ends a reply.

    Args:
        model: Its generation config gets the ids of `stop_ids` beside its own.
        tokenizer: Holds the chat template.

    Returns:
        The ids that were added.
    """
    generation = model.generation_config
    own = generation.eos_token_id
    known = own if isinstance(own, list) else [] if own is None else [own]
    added = [id_ for id_ in stop_ids(tokenizer) if id_ not in known]
    if added:
        generation.eos_token_id = [*known, *added]
        _drop_unused_sampling(generation)
    return added


def _drop_unused_sampling(generation: GenerationConfig) -> None:
    # transformers saves a published config as it is, but refuses a changed one that has options
    # of sampling and does not sample; without them it generates the same.
    try:
        generation.validate(strict=True)
    except ValueError:
        unset = GenerationConfig()
        dropped = [name for name in _OF_SAMPLING if vars(generation).get(name) is not None]
        for name in dropped:
            setattr(generation, name, vars(unset).get(name))
        logger.warning(
            "generation_config.json: %s left out, since do_sample is not set", ", ".join(dropped)
        )
