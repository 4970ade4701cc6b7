"""What FSDP2 (`torch.distributed.fsdp.fully_shard`) asks of the inner loop.

FSDP2 hooks the modules that it shards: their parameters are gathered before a forward and freed
after it, and their gradients are reduced when the backward pass leaves them. These hooks count on
one forward and one backward of each module in a step. Run through them, the inner loop would
gather anew in each of its forwards, and the gradients of tied embeddings would be wrong without a
word.

So the top layers and the tail (final norm and head) are gathered once, where the inner loop
starts, and the inner loop runs them without their hooks. The stock forward then finds them
gathered, so a step has the collectives of plain SFT, and no collective lies within the inner
loop: ranks may take different numbers of inner forwards, as backtracking does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from focusft.errors import UnsupportedModelError


def is_sharded(module: nn.Module) -> bool:
    """True while the module holds only a part of a parameter."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def unhooked(module: nn.Module) -> Callable[..., Any]:
    """What to call instead of a module in the inner loop and for the loss.

    Returns:
        The module, or its forward alone where FSDP2 hooks it.
    """
    return module.forward if isinstance(module, FSDPModule) else module


def gather(modules: Sequence[nn.Module]) -> None:
    """Gather the parameters of modules, some time before their stock forward would.

    That forward uses them and frees them again.
    """
    handles = [
        module.unshard(async_op=True) for module in modules if isinstance(module, FSDPModule)
    ]
    for handle in handles:
        if handle is not None:
            handle.wait()


def keep_gathered(head: nn.Module) -> None:
    """Gather the head and keep it gathered until its backward.

    The loss uses the head's weights outside its stock forward, after which they would be freed.
    """
    if isinstance(head, FSDPModule):
        head.set_reshard_after_forward(False, recurse=False)
        head.unshard()


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gather the parameters of a module for a while, at the cost of one collective."""
    if not (isinstance(module, FSDPModule) and is_sharded(module)):
        yield
        return
    gather([module])
    yield
    module.reshard()


def check_wrapping(model: nn.Module, layers: nn.ModuleList, inner_order: int) -> None:
    """Refuse what was put around or into a model since FocuSFT was attached.

    Args:
        model: The model that FocuSFT is attached to.
        layers: Its decoder layers.
        inner_order: See `FocusConfig`.

    Raises:
        UnsupportedModelError: FocuSFT would compute something else under this wrapper.
    """
    if "_is_replica" in vars(model):
        raise UnsupportedModelError(
            "DataParallel copies the model without what FocuSFT knows of it; launch one process "
            "for each GPU (torchrun), or set CUDA_VISIBLE_DEVICES=0"
        )
    for layer in layers:
        if isinstance(layer, FullyShardedDataParallel):
            raise UnsupportedModelError(
                "FSDP1 (FullyShardedDataParallel) frees the layers that the inner loop runs; use "
                "FSDP2 (fsdp_version: 2 in accelerate, torch.distributed.fsdp.fully_shard)"
            )
        if isinstance(layer, ActivationWrapper):
            raise UnsupportedModelError(
                "the checkpointing of the FSDP plugin (fsdp_activation_checkpointing) runs the "
                "inner loop again in the backward pass; turn it off and use "
                "activation_checkpointing=true or selective_checkpointing=true"
            )
        if any(isinstance(part, FSDPModule) for part in layer.modules() if part is not layer):
            raise UnsupportedModelError(
                f"FSDP2 shards parts of {type(layer).__name__} on their own; shard whole decoder "
                "layers (fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP)"
            )
    if inner_order == 2 and isinstance(model, FSDPModule):
        raise UnsupportedModelError(
            "inner_order=2 sends gradients through the inner loop, where FSDP2 does not see them; "
            "use DDP or inner_order=1"
        )
