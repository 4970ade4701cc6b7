"""`focusft chat`."""

from __future__ import annotations

import argparse
import io
import sys
from typing import Any

from focusft.cli.shared import add_command, quiet_libraries
from focusft.errors import ConfigError, UnsupportedModelError


def add_to(commands: Any) -> None:
    """Add the command."""
    chat = add_command(commands, "chat", "talk to a model in the terminal")
    chat.add_argument("model", help="hub id, folder, GGUF file or smollm2")
    chat.add_argument("--max_new_tokens", type=int, default=256, help="longest answer in tokens")
    chat.set_defaults(run=_chat)


def _chat(options: argparse.Namespace, _: list[str]) -> None:
    import torch
    from transformers import TextStreamer

    from focusft.training.models import load_model, load_tokenizer

    if options.max_new_tokens < 1:
        raise ConfigError(f"--max_new_tokens: {options.max_new_tokens} is less than 1")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is no UTF-8 is otherwise an error, or half a surrogate pair that no tokenizer takes.
        sys.stdin.reconfigure(errors="replace")
    quiet_libraries()
    tokenizer: Any = load_tokenizer(options.model)
    if tokenizer.chat_template is None:
        raise UnsupportedModelError(
            f"{options.model}: has no chat template, so it is no chat model; name one that has"
        )
    model: Any = load_model(options.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    messages: list[dict[str, str]] = []
    print("Write a message; an empty line ends the chat.")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if not text:
            return
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(
            **prompt.to(model.device),
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            streamer=streamer,
            pad_token_id=tokenizer.pad_token_id,
        )
        answer = output[0, prompt["input_ids"].shape[1] :]
        messages.append(
            {"role": "assistant", "content": tokenizer.decode(answer, skip_special_tokens=True)}
        )
