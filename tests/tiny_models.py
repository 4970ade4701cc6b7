"""Tiny random models of each family, and a tiny byte-level tokenizer: no downloads in tests."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

# Settings that a family needs on top of the shared sizes, to stay small and without a window.
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "head_dim": 8},
    "mistral": {"sliding_window": None, "head_dim": 8},
    # One layer without rotary positions, as in the released model.
    "smollm3": {"use_sliding_window": False, "no_rope_layers": [1, 1, 1, 0]},
    "gemma": {"head_dim": 8},
    "olmo": {"clip_qkv": None},
    "olmo2": {},
    # Scales that are not 1, so that a forgotten one shows.
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "phi": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "cohere": {"logit_scale": 0.25},
    "helium": {"head_dim": 8},
    "glm": {"head_dim": 8, "partial_rotary_factor": 0.5},
    "starcoder2": {"sliding_window": None},
}

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config_overrides: object
) -> PreTrainedModel:
    """A causal LM: 4 layers, hidden 32, 4 heads, 2 KV heads, MLP 64, vocabulary 128, eval mode.

    Matrices are drawn with std 0.2, so that attention is far from uniform, and norm weights and
    biases are moved off their initial values, so that a forgotten one shows.
    """
    settings: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    }
    settings |= FAMILIES[family] | config_overrides
    config = AutoConfig.for_model(family, **settings)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(0.0, 0.2)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.1)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    finally:
        torch.random.set_rng_state(state)
    return model.eval()


def tiny_tokenizer(
    chat_template: str | None = CHATML, *, pad_token: str | None = "<|pad|>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without merges (one token a byte), ChatML, 260 ids.

    Ids 0..3 are <|pad|>, <|im_start|>, <|im_end|>, <|endoftext|>; eos is <|im_end|>. Use it with
    `tiny_model(..., vocab_size=len(tokenizer))`.
    """
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token=pad_token,
    )
    tokenizer.chat_template = chat_template
    return tokenizer
