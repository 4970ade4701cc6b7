"""The order of examples in padded training: batches of similar length, shuffled in each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthBucketedSampler(Sampler[int]):
    """Draws examples so that those of a batch have about the same length.

    The order depends on the seed and the epoch alone, so a resumed run goes on with the same one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Keep what the order depends on.

        Args:
            lengths: Tokens of each example.
            batch_size: Examples of a batch, on all devices together.
            seed: Seed of the order.
        """
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
