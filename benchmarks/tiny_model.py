"""Make a random Llama of 0.8 million parameters with a tokenizer of its own.

python -m benchmarks.tiny_model runs/tiny

It is for questions that need many training runs. The tokenizer is a byte-level BPE that has seen
the kinds of texts that the tasks are made of; it has no unknown tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from focusft.data.long_context import TASKS, make_long_context
from focusft.data.prose import background_sentences
from focusft.data.split import SPLITS
from focusft.evaluation.word_lists import load_words

# Few tokens: with 4,096 of them it takes many times the steps until the model copies.
VOCABULARY = 512
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    """Make both and save them in a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = make_tiny(options.out, options.hidden, options.layers, options.heads, seed=options.seed)
    print(f"{model.num_parameters():,} parameters: {options.out}")


def make_tiny(out: Path, hidden: int, layers: int, heads: int, *, seed: int) -> LlamaForCausalLM:
    """Make a random model and a tokenizer, and save them as a plain Hugging Face folder.

    Args:
        out: Folder.
        hidden: Size of the hidden states.
        layers: Number of layers.
        heads: Attention heads; half as many for keys and values.
        seed: Seed of the weights.
    """
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        # Attention starts sharper than with 0.02, and learns to copy sooner.
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    """Prose of both splits, English words, and conversations of every task."""
    for split in SPLITS:
        yield from background_sentences(split)
    yield from (f" {word}" for word in load_words().single)
    for task in TASKS:
        rows = make_long_context(
            task,
            count=200,
            context_tokens=120,
            seed=0,
            count_tokens=lambda text: len(text.split()),
            answer_style="mixed",
        )
        for row in rows:
            yield from (message["content"] for message in row["messages"])


if __name__ == "__main__":
    main()
