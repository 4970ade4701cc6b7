"""Train the small model of `python -m benchmarks.tiny_model` until it reads from its context.

python -m benchmarks.tiny_pretrain runs/tiny --out runs/tiny_pretrained

First it learns to copy, from rows of random tokens that repeat: what a model needs before it can
look anything up, and what the few labels of conversations do not teach in the steps that a CPU has.
Then it learns the tasks, on conversations with short contexts, and goes on copying beside them.
About an hour on one core.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.tiny_model import SPECIAL
from focusft.data.chat import IGNORED
from focusft.data.long_context import make_long_context
from focusft.training.models import load_model, load_tokenizer

# Tokens with a meaning of their own come first; one of them starts a sequence.
FIRST_TOKEN, START = len(SPECIAL), SPECIAL.index("<|im_start|>")
CONTEXT_TOKENS = (60, 160)

Row = tuple[list[int], list[int]]


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copy_steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model).train()
    pretrain(
        model,
        conversations(tokenizer, options.conversations, options.seed),
        copy_steps=options.copy_steps,
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(options.out)


def pretrain(
    model: PreTrainedModel,
    rows: list[Row],
    *,
    copy_steps: int,
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Copying alone, then conversations and copying; AdamW, warm-up and cosine over all steps.

    Args:
        model: In training mode.
        rows: Token ids and labels of conversations.
        copy_steps: Steps with copies alone, 32 rows of 64 tokens.
        steps: Steps after these, with 10 conversations and 2 rows of 128 tokens to copy.
        learning_rate: The highest.
        seed: Seed of all draws.
    """
    rng = random.Random(seed)
    vocabulary = model.config.vocab_size
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    total, started = copy_steps + steps, time.perf_counter()
    for step in range(total):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (1 + math.cos(math.pi * step / total)) / 2
        optimizer.zero_grad()
        if step < copy_steps:
            copied = [copying(rng, 64, 24, vocabulary) for _ in range(32)]
            told = loss = label_loss(model, copied)
        else:
            told = label_loss(model, rng.sample(rows, 10))
            copied = [copying(rng, 128, 48, vocabulary) for _ in range(2)]
            loss = told + 0.3 * label_loss(model, copied)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            kind = "copies" if step < copy_steps else "conversations"
            seconds = time.perf_counter() - started
            print(f"{step + 1}/{total} {kind} {told.item():.3f}, {seconds:.0f} s", flush=True)


def copying(rng: random.Random, length: int, longest: int, vocabulary: int) -> Row:
    """Sequences of random tokens, each one to three times again; labels on what is repeated."""
    ids: list[int] = []
    labels: list[int] = []
    while len(ids) < length:
        tokens = [rng.randrange(FIRST_TOKEN, vocabulary) for _ in range(rng.randint(3, longest))]
        ids += [START, *tokens]
        labels += [IGNORED] * (1 + len(tokens))
        for _ in range(rng.randint(1, 3)):
            ids += [START, *tokens]
            labels += [IGNORED, IGNORED, *tokens[1:]]
    return ids[:length], labels[:length]


def conversations(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[Row]:
    """Token ids of conversations of every task, with labels on the responses."""
    fewest, most = CONTEXT_TOKENS
    made = make_long_context(
        "mixed",
        count=count,
        context_tokens=most,
        min_context_tokens=fewest,
        seed=seed,
        count_tokens=lambda text: len(tokenizer(text)["input_ids"]),
        answer_style="mixed",
    )
    rows = []
    for row in made:
        messages = row["messages"]
        prompt = tokenizer.apply_chat_template(
            messages[:1], add_generation_prompt=True, return_dict=False
        )
        # The newline behind the end of a turn is no part of the response.
        whole = tokenizer.apply_chat_template(messages, return_dict=False)[:-1]
        rows.append((whole, [IGNORED] * len(prompt) + whole[len(prompt) :]))
    return rows


def label_loss(model: PreTrainedModel, rows: Iterable[Row]) -> Tensor:
    """Mean loss of a label; rows are padded on the right, where no label is."""
    ids, labels = zip(*rows, strict=True)
    longest = max(map(len, ids))
    inputs = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
    targets = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in labels])[:, 1:]
    hidden = model.base_model(input_ids=inputs).last_hidden_state[:, :-1]
    kept = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[kept]), targets[kept])


if __name__ == "__main__":
    main()
