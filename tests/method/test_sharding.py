"""Wrappers under which the inner loop would compute something else are refused in one line."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import focusft
from focusft.errors import UnsupportedModelError
from tests.method.helpers import CONFIG, assert_mends, conversation
from tests.tiny_models import tiny_model


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def call(model):
    ids, labels = conversation([(12, 8)])
    return model(input_ids=ids[None], labels=labels[None])


def attached(**options):
    model = tiny_model("llama").train()
    focusft.attach(model, focusft.FocusConfig(**vars(CONFIG) | options))
    return model


def replace_layers(model, wrap):
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = wrap(layer)


def test_checkpoint_wrappers():
    model = attached()
    replace_layers(model, checkpoint_wrapper)
    with pytest.raises(UnsupportedModelError) as caught:
        call(model)
    assert_mends(caught, "fsdp_activation_checkpointing", "activation_checkpointing=true")


def test_fsdp1(one_process):
    model = attached()
    replace_layers(model, lambda layer: FullyShardedDataParallel(layer, device_id="cpu"))
    with pytest.raises(UnsupportedModelError) as caught:
        call(model)
    assert_mends(caught, "FSDP1", "fsdp_version: 2")


def test_parts_of_layers_sharded_on_their_own(one_process):
    model = attached()
    for layer in model.model.layers:
        fully_shard(layer.mlp, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UnsupportedModelError) as caught:
        call(model)
    assert_mends(caught, "shard whole decoder layers")


def test_the_exact_hypergradient(one_process):
    model = attached(inner_order=2)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UnsupportedModelError) as caught:
        call(model)
    assert_mends(caught, "inner_order=2", "DDP")


def test_a_model_that_is_sharded_already(one_process):
    model: nn.Module = tiny_model("llama")
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UnsupportedModelError) as caught:
        focusft.attach(model, CONFIG)
    assert_mends(caught, "before fully_shard")
