"""The published procedure, written out literally, as the baseline of the timings.

What it does in one step follows the code published with arXiv 2605.09932: LoRA modules in the
model, the whole model run again in each inner step, logits over the vocabulary at every position,
a dense additive mask, activations recomputed in both loops. `CheckoutTrainer` runs a local
checkout of the authors' code instead.

Shapes: B batch, S sequence, I input features, O output features, r rank.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from focusft.method.config import FocusConfig


class LoraLinear(nn.Module):
    """A linear map with a LoRA update of its own."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = alpha / rank
        self.A_rI = nn.Parameter(torch.empty(rank, base.in_features))
        self.B_Or = nn.Parameter(torch.empty(base.out_features, rank))

    def reset(self) -> None:
        """Fresh fast weights."""
        nn.init.kaiming_uniform_(self.A_rI, a=5**0.5)
        nn.init.zeros_(self.B_Or)

    def forward(self, x: Tensor) -> Tensor:
        """The linear map plus its update."""
        return self.base(x) + self.scaling * (x @ self.A_rI.T @ self.B_Or.T)


def additive_mask(labels_BS: Tensor, is_token_BS: Tensor) -> Tensor:
    """The dense mask, [B, 1, S, S]; padding is blocked as a query and as a key."""
    is_response_BS = labels_BS != -100
    turn_BS = (is_response_BS[:, 1:] != is_response_BS[:, :-1]).cumsum(dim=1)
    turn_BS = F.pad(turn_BS, (1, 0))
    position_S = torch.arange(labels_BS.shape[1], device=labels_BS.device)
    is_earlier_SS = position_S[None, :] <= position_S[:, None]
    same_turn_BSS = turn_BS[:, :, None] == turn_BS[:, None, :]
    allowed_BSS = is_earlier_SS | (same_turn_BSS & ~is_response_BS[:, :, None])
    allowed_BSS &= is_token_BS[:, :, None] & is_token_BS[:, None, :]
    zeros_BSS = torch.zeros(allowed_BSS.shape, device=labels_BS.device)
    return zeros_BSS.masked_fill(~allowed_BSS, torch.finfo(torch.float32).min)[:, None]


def mean_loss(logits_BSV: Tensor, input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
    """Cross-entropy of every position, of which the response tokens count."""
    counts_BS = (labels_BS[:, 1:] != -100).float()
    losses_BS = F.cross_entropy(
        logits_BSV[:, :-1].contiguous().flatten(0, 1),
        input_ids_BS[:, 1:].contiguous().flatten(),
        reduction="none",
    ).view(counts_BS.shape)
    return (losses_BS * counts_BS).sum() / counts_BS.sum().clamp(min=1)


class PublishedTrainer(Trainer):
    """Bilevel SFT as published, for Llama-like models."""

    def __init__(self, model: Any, args: TrainingArguments, config: FocusConfig, **kwargs: Any):
        layers = model.model.layers
        self.first_adapted = int(len(layers) * (1.0 - config.inner_layer_fraction))
        self.config = config
        self.loras = [
            self._inject(layer.mlp, name)
            for layer in layers[self.first_adapted :]
            for name in config.target_modules
        ]
        super().__init__(model=model, args=args, **kwargs)

    def _inject(self, mlp: nn.Module, name: str) -> LoraLinear:
        lora = LoraLinear(mlp.get_submodule(name), self.config.inner_rank, self.config.inner_alpha)
        setattr(mlp, name, lora)
        return lora

    @property
    def fast_weights(self) -> list[nn.Parameter]:
        """A and B of every adapted linear map."""
        return [weight for lora in self.loras for weight in (lora.A_rI, lora.B_Or)]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Leave the fast weights out of the outer optimizer."""
        for weight in self.fast_weights:
            weight.requires_grad_(False)
        optimizer = super().create_optimizer(*args, **kwargs)
        for weight in self.fast_weights:
            weight.requires_grad_(True)
        return optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Adapt the fast weights on the example, then take the outer loss with them active."""
        input_ids, labels = inputs["input_ids"], inputs["labels"]
        is_token = inputs["attention_mask"].bool()
        for lora in self.loras:
            lora.reset()
        for _step in range(self.config.num_inner_steps):
            logits = self._inner_logits(model, input_ids, additive_mask(labels, is_token))
            gradients = torch.autograd.grad(mean_loss(logits, input_ids, labels), self.fast_weights)
            with torch.no_grad():
                for weight, gradient in zip(self.fast_weights, gradients, strict=True):
                    norm = gradient.norm().item()
                    clip = self.config.inner_grad_clip
                    shrink = clip / (norm + 1e-12) if norm > clip else 1.0
                    weight -= self.config.inner_lr * shrink * gradient
        outputs = model(
            input_ids=input_ids, attention_mask=additive_mask(labels, is_token), use_cache=False
        )
        loss = mean_loss(outputs.logits, input_ids, labels)
        return (loss, outputs) if return_outputs else loss

    def _inner_logits(self, model: Any, input_ids_BS: Tensor, mask_B1SS: Tensor) -> Tensor:
        decoder = model.model
        hidden_BSD = decoder.embed_tokens(input_ids_BS)
        positions_1S = torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device)[None]
        others = {
            "attention_mask": mask_B1SS,
            "position_ids": positions_1S,
            "position_embeddings": decoder.rotary_emb(hidden_BSD, positions_1S),
            "past_key_values": None,
            "use_cache": False,
        }
        with torch.no_grad():
            for layer in decoder.layers[: self.first_adapted]:
                hidden_BSD = layer(hidden_BSD, **others)
        for layer in decoder.layers[self.first_adapted :]:
            if self.args.activation_checkpointing:
                # `forward`, since the layer would checkpoint itself once more when called.
                hidden_BSD = checkpoint(layer.forward, hidden_BSD, use_reentrant=False, **others)
            else:
                hidden_BSD = layer(hidden_BSD, **others)
        return model.lm_head(decoder.norm(hidden_BSD))


def checkout_trainer(
    folder: Path, model: Any, options: dict[str, Any], config: FocusConfig, **kwargs: Any
) -> Trainer:
    """The trainer of a local checkout of the authors' code.

    Args:
        folder: The checkout; its package is called `focusft` as well, and takes the place of ours
            in this process.
        model: A Llama-like model.
        options: Options of `transformers.TrainingArguments`.
        config: Options of the method.
        **kwargs: Further arguments of the trainer; its batches hold a `loss_mask`.
    """
    for name in [name for name in sys.modules if name.split(".")[0] == "focusft"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    theirs = importlib.import_module("focusft.trainer")
    arguments = theirs.FocuSFTConfig(
        **options,
        num_inner_steps=config.num_inner_steps,
        inner_lr=config.inner_lr,
        inner_gradient_checkpointing=options["activation_checkpointing"],
    )
    return theirs.FocuSFTTrainer(model=model, args=arguments, **kwargs)
