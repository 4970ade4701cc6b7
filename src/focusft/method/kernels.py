"""Which of torch's attention kernels a GPU takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn_attention(device: torch.device) -> Iterator[None]:
    """Leave attention on a GPU to the other fused kernels.

    torch prefers cuDNN on Hopper, which plans each new shape for about 0.1 s, forward and backward.
    Conversations are of unequal lengths, so nearly every step has new shapes: a step of
    SmolLM2-135M on an H200 that takes 0.7 s took 3.6 s (docs/log.md).
    """
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    if device.type != "cuda" or not was_enabled:
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
