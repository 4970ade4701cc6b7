"""The options of the method, under the names that the published code gave them."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf
from typing import Literal, get_args

from focusft.errors import ConfigError

ContextAttention = Literal["bidirectional", "causal"]
InnerContextAttention = Literal["same", "bidirectional", "causal"]
InnerObjective = Literal["response", "context", "held_out_turns"]
InnerStep = Literal["fixed", "backtracking"]
ContextBlocks = Literal["merged", "per_turn"]
AttentionBackend = Literal["auto", "segments", "flex", "dense"]


@dataclass
class FocusConfig:
    """Options of the bilevel step (arXiv 2605.09932, section 3; defaults: its published settings).

    Attributes:
        num_inner_steps: K, the number of inner steps. 0 leaves only the attention mask.
        inner_lr: Step size of the inner SGD. The published 1.0 belongs to the published model
            and data; it diverges on small models, and the trace says when it does.
        inner_grad_clip: Largest norm of one fast-weight matrix's gradient. 0 turns clipping off.
        inner_rank: Rank r of the fast weights.
        inner_alpha: Fast weights are scaled by inner_alpha / inner_rank.
        inner_dropout: Dropout on the input of the fast weights.
        inner_layer_fraction: Fraction of the layers, from the top, that get fast weights.
        inner_target_modules: Comma-separated names of the linear maps that get fast weights.
        inner_objective: What the fast weights learn from. "response": the labelled tokens (as
            published). "context": next-token prediction on the context. "held_out_turns": every
            labelled turn of a document but its last.
        inner_step: "fixed" (as published) or "backtracking", which halves a step until it does
            not raise the inner loss.
        inner_order: 1 treats the adapted fast weights as a constant of the outer step (as
            published), 2 differentiates through the inner steps.
        context_attention: Attention among context tokens in both loops.
        inner_context_attention: Another mask for the inner loop alone; "same" shares the outer
            one and its trunk.
        causal_share: Share of the optimizer steps, spread evenly, whose outer loop attends
            causally whatever `context_attention` says, so that the model also learns what it
            meets at inference. Goes by the engine's `step`.
        context_blocks: "merged" makes adjacent context turns one bidirectional block (as
            published), "per_turn" keeps one block for each turn. Needs explicit `turn_ids`.
        attention_backend: How the mask is applied: "segments" by torch's attention kernels turn
            by turn, without a mask in memory; "flex" by a compiled kernel (GPU); "dense" as an
            S x S mask. "auto" takes segments, or dense for a model with eager attention.
        seed: Seed of the fast weights' initial values.
    """

    num_inner_steps: int = 2
    inner_lr: float = 1.0
    inner_grad_clip: float = 1.0
    inner_rank: int = 32
    inner_alpha: float = 64.0
    inner_dropout: float = 0.0
    inner_layer_fraction: float = 0.35
    inner_target_modules: str = "gate_proj,up_proj,down_proj"
    inner_objective: InnerObjective = "response"
    inner_step: InnerStep = "fixed"
    inner_order: Literal[1, 2] = 1
    context_attention: ContextAttention = "bidirectional"
    inner_context_attention: InnerContextAttention = "same"
    causal_share: float = 0.0
    context_blocks: ContextBlocks = "merged"
    attention_backend: AttentionBackend = "auto"
    seed: int = 1234

    def __post_init__(self) -> None:
        for option, allowed in (
            ("inner_objective", get_args(InnerObjective)),
            ("inner_step", get_args(InnerStep)),
            ("inner_order", (1, 2)),
            ("context_attention", get_args(ContextAttention)),
            ("inner_context_attention", get_args(InnerContextAttention)),
            ("context_blocks", get_args(ContextBlocks)),
            ("attention_backend", get_args(AttentionBackend)),
        ):
            value = vars(self)[option]
            if value not in allowed:
                choices = ", ".join(map(str, allowed))
                raise ConfigError(f"{option}: {value!r} is not one of {choices}")
        for option, kind, name in (
            ("num_inner_steps", int, "a whole number"),
            ("inner_rank", int, "a whole number"),
            ("seed", int, "a whole number"),
            ("inner_lr", (int, float), "a number"),
            ("inner_grad_clip", (int, float), "a number"),
            ("inner_alpha", (int, float), "a number"),
            ("inner_dropout", (int, float), "a number"),
            ("inner_layer_fraction", (int, float), "a number"),
            ("causal_share", (int, float), "a number"),
            ("inner_target_modules", str, "text such as 'gate_proj,up_proj,down_proj'"),
        ):
            value = vars(self)[option]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ConfigError(f"{option}: {value!r} must be {name}")
        for option, holds, rule in (
            ("num_inner_steps", self.num_inner_steps >= 0, "0 or more"),
            ("inner_lr", 0 < self.inner_lr < inf, "greater than 0 and finite"),
            ("inner_alpha", 0 < self.inner_alpha < inf, "greater than 0 and finite"),
            ("inner_grad_clip", self.inner_grad_clip >= 0, "0 (off) or more"),
            ("inner_rank", self.inner_rank >= 1, "1 or more"),
            ("inner_dropout", 0 <= self.inner_dropout < 1, "at least 0 and below 1"),
            ("inner_layer_fraction", 0 < self.inner_layer_fraction <= 1, "above 0, at most 1"),
            ("causal_share", 0 <= self.causal_share <= 1, "between 0 and 1"),
            ("inner_target_modules", bool(self.target_modules), "at least one module name"),
        ):
            if not holds:
                raise ConfigError(f"{option}: {vars(self)[option]!r} must be {rule}")
        if self.causal_share > 0 and self.context_attention == "causal":
            raise ConfigError(
                "causal_share: every step is causal with context_attention=causal; leave it out"
            )
        if (
            self.num_inner_steps > 0
            and self.inner_objective == "context"
            and self.inner_attention == "bidirectional"
        ):
            raise ConfigError(
                "inner_objective: 'context' predicts the next context token, which bidirectional "
                "attention shows to the model; set inner_context_attention=causal"
            )

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Names of the linear maps that get fast weights."""
        return tuple(name.strip() for name in self.inner_target_modules.split(",") if name.strip())

    @property
    def inner_attention(self) -> ContextAttention:
        """Attention among context tokens in the inner loop."""
        if self.inner_context_attention == "same":
            return self.context_attention
        return self.inner_context_attention

    def outer_attention(self, step: int) -> ContextAttention:
        """Attention among context tokens in the outer loop of an optimizer step."""
        is_causal = floor((step + 1) * self.causal_share) > floor(step * self.causal_share)
        return "causal" if is_causal else self.context_attention

    @property
    def has_one_mask(self) -> bool:
        """Whether both loops have the same mask in every step."""
        return self.inner_attention == self.context_attention and self.causal_share == 0

    @property
    def is_plain_sft(self) -> bool:
        """True when there is nothing to adapt and nothing to mask: the stock forward is SFT."""
        return self.num_inner_steps == 0 and self.context_attention == "causal"
