"""The inner loop: K steps of SGD on the fast weights of every document. It mutates nothing.

`phi_{k+1} = phi_k - eta * clip(grad L_inner(theta, phi_k))` (arXiv 2605.09932, section 3.1).

Shapes: G documents, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from focusft.errors import UserError
from focusft.method.config import FocusConfig
from focusft.method.fast_weights import FastWeights

MAX_HALVINGS = 6
# What to do about steps that go too far, by `inner_step`.
STEP_MENDS = {
    "fixed": "lower inner_lr or set inner_step=backtracking",
    "backtracking": "lower inner_lr",
}


class NonFiniteLossError(UserError):
    """An inner loss, or the loss with adapted fast weights, is infinite or not a number."""


@dataclass(frozen=True)
class InnerTrace:
    """What the inner loop did in one call.

    Attributes:
        losses: Inner loss of each document before the first step, after it, and so on, each
            [G]. The value after the last step is there where it is known at no extra cost.
        step_sizes: Step size of each step, each [G].
        grad_norms: Norm of the gradient of all fast weights before clipping, each [G].
        has_targets: False on documents from which this objective learns nothing, [G].
    """

    losses: tuple[Tensor, ...]
    step_sizes: tuple[Tensor, ...]
    grad_norms: tuple[Tensor, ...]
    has_targets: Tensor

    def with_final_losses(self, losses_G: Tensor) -> InnerTrace:
        """The same trace with the inner losses after the last step."""
        return replace(self, losses=(*self.losses, losses_G))

    @property
    def mean_losses(self) -> list[float]:
        """Inner loss before the first step, after it, and so on: means over the documents."""
        return [losses_G[self.has_targets].mean().item() for losses_G in self.losses]

    @property
    def steps_watched(self) -> int:
        """How many steps (documents x inner steps) have a known loss before and after."""
        return int(self.has_targets.sum()) * (len(self.losses) - 1)

    @property
    def steps_raised(self) -> int:
        """How many of the watched steps raised their document's inner loss."""
        return sum(
            int((after > before)[self.has_targets].sum())
            for before, after in zip(self.losses, self.losses[1:], strict=False)
        )


def check_finite(losses: Sequence[Tensor], what: str, mend: str) -> None:
    """Stop on losses that are infinite or not a number.

    Args:
        losses: Losses to look at.
        what: Their name, for the message.
        mend: What to do about it, for the message.

    Raises:
        NonFiniteLossError: One is; the message has the means of `losses`.
    """
    if not all(loss.isfinite().all() for loss in losses):
        means = [loss.mean().item() for loss in losses]
        raise NonFiniteLossError(f"{what} are not finite (means {means}); {mend}")


def mean_losses(traces: Sequence[InnerTrace]) -> list[float]:
    """Inner loss before the first step, after it, and so on: means over calls.

    Where the outer loop had another mask than the inner one, the last loss of a call is not known.
    """
    columns = zip_longest(*(trace.mean_losses for trace in traces))
    known = [[loss for loss in column if loss is not None] for column in columns]
    return [sum(losses) / len(losses) for losses in known]


def adapt(
    initial: FastWeights,
    inner_losses: Callable[[FastWeights], Tensor],
    has_targets_G: Tensor,
    config: FocusConfig,
) -> tuple[FastWeights, InnerTrace]:
    """Run the K inner steps.

    Args:
        initial: phi_0.
        inner_losses: Inner loss of each document, [G], as a function of the fast weights. A
            document's loss must depend on its own fast weights only.
        has_targets_G: Documents that have an inner target.
        config: Options of the method.

    Returns:
        phi_K, constant for `inner_order` 1 and with its history for 2, and the trace.
    """
    first_order = config.inner_order == 1
    weights = replace(initial.as_leaves(), is_zero=first_order)
    losses_G = inner_losses(weights)
    trace_losses, step_sizes, grad_norms = [losses_G.detach()], [], []
    for step in range(config.num_inner_steps):
        is_last = step + 1 == config.num_inner_steps
        gradients, norms_G = _clipped_gradients(weights, losses_G, step, config)
        step_G = torch.full_like(norms_G, config.inner_lr)
        if config.inner_step == "backtracking":
            needs_graph = not (is_last and first_order)
            with torch.set_grad_enabled(needs_graph):
                weights, losses_G, step_G = _backtrack(
                    weights, gradients, losses_G.detach(), step_G, inner_losses, first_order
                )
            trace_losses.append(losses_G.detach())
        else:
            weights = _descend(weights, gradients, step_G, first_order)
            if not is_last:
                losses_G = inner_losses(weights)
                trace_losses.append(losses_G.detach())
        step_sizes.append(step_G)
        grad_norms.append(norms_G.detach())
    trace = InnerTrace(tuple(trace_losses), tuple(step_sizes), tuple(grad_norms), has_targets_G)
    return (weights.detached() if first_order else weights), trace


def _clipped_gradients(
    weights: FastWeights, losses_G: Tensor, step: int, config: FocusConfig
) -> tuple[list[Tensor], Tensor]:
    """Gradients with each matrix's norm clipped, and the norm [G] of all before clipping."""
    # B is zero before the first step, and the gradient of A is a multiple of B: zero as well.
    wanted = weights.B if step == 0 else weights.tensors
    loss = losses_G.sum()
    gradients: tuple[Tensor, ...]
    # Without a single target the loss may reach some of the fast weights only, or none.
    if loss.requires_grad:
        gradients = torch.autograd.grad(
            loss, wanted, create_graph=config.inner_order == 2, materialize_grads=True
        )
    else:
        gradients = tuple(torch.zeros_like(tensor) for tensor in wanted)
    if step == 0:
        gradients = tuple(torch.zeros_like(A) for A in weights.A) + gradients
    norms = [torch.linalg.vector_norm(g, dim=(1, 2)) for g in gradients]
    total_G = torch.stack(norms).square().sum(dim=0).sqrt()
    if config.inner_grad_clip > 0:
        gradients = tuple(
            g * _clip_factor(norm_G, config.inner_grad_clip)[:, None, None]
            for g, norm_G in zip(gradients, norms, strict=True)
        )
    return list(gradients), total_G


def _clip_factor(norm_G: Tensor, limit: float) -> Tensor:
    return torch.where(norm_G > limit, limit / (norm_G + 1e-12), 1.0)


def _descend(
    weights: FastWeights, gradients: Sequence[Tensor], step_G: Tensor, first_order: bool
) -> FastWeights:
    step_G11 = step_G[:, None, None]
    moved = weights.with_tensors(
        [
            # A document without a step stays as it is, even where its gradient is infinite.
            tensor - step_G11 * torch.where(step_G11 > 0, gradient, 0.0)
            for tensor, gradient in zip(weights.tensors, gradients, strict=True)
        ]
    )
    return moved.as_leaves() if first_order else moved


def _backtrack(
    weights: FastWeights,
    gradients: Sequence[Tensor],
    before_G: Tensor,
    step_G: Tensor,
    inner_losses: Callable[[FastWeights], Tensor],
    first_order: bool,
) -> tuple[FastWeights, Tensor, Tensor]:
    """Halve the step of every document whose loss rises; give the step up after the last one."""
    for halvings in range(MAX_HALVINGS + 1):
        moved = _descend(weights, gradients, step_G, first_order)
        losses_G = inner_losses(moved)
        # A loss that is not a number is not a decrease either.
        raised_G = ~(losses_G.detach() <= before_G)
        if not raised_G.any():
            return moved, losses_G, step_G
        smaller_G = step_G / 2 if halvings < MAX_HALVINGS else torch.zeros_like(step_G)
        step_G = torch.where(raised_G, smaller_G, step_G)
    moved = _descend(weights, gradients, step_G, first_order)
    return moved, inner_losses(moved), step_G
