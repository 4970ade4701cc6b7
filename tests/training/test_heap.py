"""Freed memory goes back to the system where a checkpointed step has much of it."""

import torch

from focusft.training import heap
from tests.training.test_trainer import trainer


def record_returns(monkeypatch, built):
    """What happened in each step, in order, as far as freed memory is concerned."""
    events = []
    monkeypatch.setattr(heap, "_return_freed_memory", lambda: events.append("returned"))
    layer = built.engine.first_adapted_layer
    layer.register_forward_pre_hook(lambda *_: events.append("after the inner loop"))
    backward = built.accelerator.backward
    built.accelerator.backward = lambda *a, **k: (events.append("backward"), backward(*a, **k))
    built.train()
    return events


def test_twice_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(heap, "LEAST_TOKENS", 1)
    built = trainer(tmp_path, max_steps=2, probe_steps=0, selective_checkpointing=True)
    events = record_returns(monkeypatch, built)
    assert events == 2 * ["returned", "after the inner loop", "backward", "returned"]
    hooks = built.engine.first_adapted_layer._forward_pre_hooks
    assert heap._on_arrival not in hooks.values()


def test_never_in_short_batches(tmp_path, monkeypatch):
    built = trainer(tmp_path, max_steps=2, probe_steps=0, selective_checkpointing=True)
    assert "returned" not in record_returns(monkeypatch, built)


def test_never_without_checkpointing(tmp_path, monkeypatch):
    monkeypatch.setattr(heap, "LEAST_TOKENS", 1)
    built = trainer(tmp_path, max_steps=2, probe_steps=0, selective_checkpointing=False)
    assert "returned" not in record_returns(monkeypatch, built)


def test_memory_is_returned():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    # glibc maps tensors one by one until it has seen larger ones freed.
    torch.ones(2**22)
    # Every other one of many tensors, so that what is freed lies between what stays.
    tensors = [torch.ones(2**18) for _ in range(128)]
    del tensors[::2]
    before = resident()
    heap._return_freed_memory()
    assert before - resident() > 32 * 2**20
