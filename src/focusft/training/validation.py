"""The validation loss: that of the un-adapted model, over every example once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from focusft.errors import UnsupportedModelError
from focusft.method.architectures import has_sliding_window
from focusft.method.attention import turn_attention
from focusft.method.config import ContextAttention, ContextBlocks
from focusft.method.loss import PredictedRows, plain_response_loss
from focusft.method.turns import TurnLayout

logger = logging.getLogger(__name__)


def response_loss(
    model: nn.Module,
    batch: dict[str, Tensor],
    context_attention: ContextAttention,
    context_blocks: ContextBlocks = "merged",
) -> tuple[Tensor, Tensor]:
    """Sum of the response-token losses of the stock model, and their number.

    Args:
        model: A causal language model, possibly wrapped.
        batch: As the trainer takes it.
        context_attention: Attention among context tokens.
        context_blocks: See `FocusConfig`.

    Raises:
        UnsupportedModelError: The model's attention cannot take the mask that this needs.
    """
    layout = TurnLayout.from_batch(batch, context_blocks)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "turn_ids")}
    is_packed = bool((layout.document_ids_BS > 0).any())
    # With a padding mask the stock model lets packed documents see each other.
    if context_attention == "bidirectional" or is_packed:
        unwrapped: Any = model.module if hasattr(model, "module") else model
        if has_sliding_window(unwrapped.config):
            raise UnsupportedModelError(
                f"{type(unwrapped).__name__} has layers without full attention, where neither "
                "packed rows nor bidirectional context are defined"
            )
        inputs |= turn_attention(unwrapped, layout, context_attention).model_kwargs
    return plain_response_loss(model, inputs, PredictedRows.of(batch["labels"], layout))


def validation_losses(
    trainer: Trainer, dataset: Any, context_blocks: ContextBlocks
) -> tuple[float, float | None, int]:
    """Go through a data set without gradients, in eval mode.

    Args:
        trainer: The trainer; its own validation data are used if `dataset` is None.
        dataset: As for `transformers.Trainer.evaluate`, but not several of them.
        context_blocks: See `FocusConfig`.

    Returns:
        The loss of a response token with causal attention, with bidirectional context (None where
        the model's attention cannot take that mask), and the number of response tokens, over all
        processes.
    """
    model: Any = trainer.model
    model.eval()
    # On the CPU: Apple's GPUs have no float64.
    totals = torch.zeros(3, dtype=torch.float64)
    has_mask = True
    for batch, counts in _batches(trainer, dataset):
        inputs = trainer._prepare_inputs(batch)
        # A model that was not trained yet does not know of the trainer's autocast.
        with torch.no_grad(), trainer.accelerator.autocast():
            causal, count = response_loss(model, inputs, "causal", context_blocks)
            bidirectional = torch.zeros_like(causal)
            try:
                if has_mask:
                    bidirectional, _ = response_loss(model, inputs, "bidirectional", context_blocks)
            except UnsupportedModelError as error:  # plain SFT trains such models
                has_mask = False
                logger.warning("no loss with bidirectional context: %s", error)
        if counts:
            totals += torch.stack([each.cpu().double() for each in (causal, bidirectional, count)])
    if trainer.args.world_size > 1:
        totals = trainer.accelerator.gather(totals[None].to(trainer.args.device)).sum(dim=0)
    causal_sum, bidirectional_sum, tokens = totals.tolist()
    count = max(tokens, 1)
    return causal_sum / count, bidirectional_sum / count if has_mask else None, int(tokens)


def _batches(trainer: Trainer, dataset: Any) -> Iterator[tuple[dict[str, Any], bool]]:
    """The batches of this process, and whether each counts."""
    args = trainer.args
    data: Any = trainer.eval_dataset if dataset is None else dataset
    if args.world_size == 1 or not hasattr(data, "__len__"):
        for batch in trainer.get_eval_dataloader(dataset):
            yield batch, True
        return
    # accelerate's own sharding refills the last batches with rows that were there before.
    indices = rank_batches(len(data), args.eval_batch_size, args.process_index, args.world_size)
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_sampler=[rows for rows, _ in indices],
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )
    for batch, (_, counts) in zip(loader, indices, strict=True):
        yield batch, counts


def rank_batches(rows: int, size: int, rank: int, ranks: int) -> list[tuple[list[int], bool]]:
    """Deal rows out to processes, all of which get the same number of batches.

    Sharded models (FSDP2) need as many forwards in each process, so one with fewer rows gets a
    batch that does not count.

    Args:
        rows: Number of rows.
        size: Rows of a batch.
        rank: Number of the process.
        ranks: Number of processes.

    Returns:
        The rows of each batch, and whether it counts: each row once over all processes.
    """
    own = list(range(rank, rows, ranks))
    batches = [(own[start : start + size], True) for start in range(0, len(own), size)]
    most = -(-len(range(0, rows, ranks)) // size)
    return batches + [([0], False)] * (most - len(batches))
