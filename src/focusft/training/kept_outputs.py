"""Keep what some operations of a checkpointed layer return, instead of running them again.

As torch's `create_selective_checkpoint_contexts`, but an operation may write to what is kept, as
the fast weights do to the output of a linear map: torch refuses that. Its answer is kept then (it
is the same memory), and the operation does not run again either. An operation that is not kept
costs one look into a set: torch asks a policy and unpacks all arguments, 13,000 times a step. Nor
is the last output of a layer kept where a recompute ends before it, as it does where only the
residual sum follows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten
# A recompute ends with the last tensor that the backward pass wants; these want none, nor do sums.
_WANT_NOTHING = frozenset(
    {
        _aten._to_copy.default,
        _aten._unsafe_view.default,
        _aten.view.default,
    }
)
_RUN_AGAIN = object()
_USED = object()


@dataclass
class KeptOutputs:
    """What one forward call of a layer keeps for its recompute.

    Attributes:
        operations: Those whose outputs are kept.
        calls: Each call of these, and each that writes to its first argument, in order; with its
            output, or `_RUN_AGAIN`.
    """

    operations: Collection[Any]
    calls: list[tuple[Any, Any]] = field(default_factory=list)

    def contexts(self) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        """The contexts of the forward call and of its recompute."""
        return _Keep(self), _Reuse(self)


class _Mode(TorchDispatchMode):
    # flex_attention is one.
    supports_higher_order_operators = True

    def __init__(self, kept: KeptOutputs) -> None:
        super().__init__()
        self.kept = kept

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled functions, such as flex_attention, run compiled."""
        return True


class _Keep(_Mode):
    def __init__(self, kept: KeptOutputs) -> None:
        super().__init__(kept)
        self._storages: set[int] = set()
        self._last_storage: int | None = None
        # True while sums are all that was made of the last kept output.
        self._is_only_summed = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in self.kept.operations:
            storages = list(map(_storage, tree_leaves(output)))
            self._storages.update(storages)
            self._last_storage = storages[0] if len(storages) == 1 else None
            self._is_only_summed = False
            self._keep(func, output)
            return output
        if func is _aten.add.Tensor:
            parts = [_storage(part) for part in args if isinstance(part, Tensor)]
            self._is_only_summed |= self._last_storage in parts
        elif func not in _WANT_NOTHING:
            self._last_storage, self._is_only_summed = None, False
        if _writes_to_first_argument(func):
            is_kept = _storage(args[0]) in self._storages
            self._keep(func, output if is_kept else _RUN_AGAIN)
        return output

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._is_only_summed:
            func, _ = self.kept.calls[-1]
            self.kept.calls[-1] = (func, _RUN_AGAIN)

    def _keep(self, func: Any, output: Any) -> None:
        # Without their history: it would hold what the checkpoint is there to free.
        self.kept.calls.append((func, tree_map_only(Tensor, Tensor.detach, output)))


class _Reuse(_Mode):
    def __init__(self, kept: KeptOutputs) -> None:
        super().__init__(kept)
        self._next = 0

    def __enter__(self) -> TorchDispatchMode:
        self._next = 0
        return super().__enter__()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self.kept.operations or _writes_to_first_argument(func):
            output = self._take(func)
            if output is not _RUN_AGAIN:
                return output
        return func(*args, **(kwargs or {}))

    def _take(self, func: Any) -> Any:
        calls, number = self.kept.calls, self._next
        self._next += 1
        if number >= len(calls) or calls[number][0] is not func:
            raise RuntimeError(
                f"a checkpointed layer ran {func} in its recompute where it had run another "
                "operation; it must do the same twice"
            )
        output = calls[number][1]
        if output is _USED:
            raise RuntimeError("the backward pass through a checkpointed layer ran twice")
        # Free it as soon as the recompute is done with it.
        calls[number] = (func, _USED)
        return output


@cache
def _writes_to_first_argument(operation: Any) -> bool:
    if not isinstance(operation, OpOverload) or not operation._schema.arguments:
        return False
    alias = operation._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
