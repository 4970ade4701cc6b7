"""Memory is given back between layers, the result is the same, and no hook stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from focusft.training import heap
from tests.tiny_models import tiny_model


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: lambda: calls.append("trim"))
    return calls


def _loss(model: Any) -> torch.Tensor:
    ids = torch.arange(12)[None]
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def test_trims_in_both_passes_and_changes_no_gradient(trims: list[str]) -> None:
    model = tiny_model("llama").train()
    _loss(model).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert trims == []

    with heap.trimmed_heap(model):
        loss = _loss(model)
        forward = len(trims)
        loss.backward()
    assert forward > 0
    assert len(trims) == 2 * forward
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)

    _loss(model).backward()
    assert len(trims) == 2 * forward


def test_removes_its_hooks_after_an_error(trims: list[str]) -> None:
    model = tiny_model("llama").train()
    with pytest.raises(RuntimeError, match="stop"), heap.trimmed_heap(model):
        raise RuntimeError("stop")
    _loss(model)
    assert trims == []


def test_leaves_other_devices_alone(trims: list[str]) -> None:
    model = tiny_model("llama").to("meta")
    with heap.trimmed_heap(model):
        assert not any(module._forward_hooks for module in model.modules())


def test_calls_the_c_library_where_it_is_glibc() -> None:
    trim = heap._malloc_trim()
    if trim is not None:
        trim()
