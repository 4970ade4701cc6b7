"""The model's weights are frozen while the inner loop runs, and trained as before afterwards."""

import pytest
import torch

import focusft
from focusft.method.inner_loop import NonFiniteLossError
from tests.method.helpers import CONFIG, SINGLE_TURN, conversation
from tests.tiny_models import tiny_model


def attached(**options):
    model = tiny_model("llama").train()
    model.model.embed_tokens.weight.requires_grad_(False)
    focusft.attach(model, focusft.FocusConfig(**{**vars(CONFIG), **options}))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    during = []
    norm = model.model.norm  # the inner loop runs it too
    norm.register_forward_pre_hook(lambda module, args: during.append(module.weight.requires_grad))
    return model, trained, during


def trained_now(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(("order", "is_trained"), [(1, False), (2, True)])
def test_only_within_the_inner_loop(order, is_trained):
    model, trained, during = attached(inner_order=order)
    input_ids, labels = conversation(SINGLE_TURN)
    model(input_ids=input_ids[None], labels=labels[None]).loss.backward()
    assert during == [is_trained, is_trained, True]
    assert trained_now(model) == trained
    assert all(model.get_parameter(name).grad is not None for name in trained)


def test_an_error_in_the_inner_loop_leaves_nothing_frozen():
    model, trained, _ = attached()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    input_ids, labels = conversation(SINGLE_TURN)
    with pytest.raises(NonFiniteLossError):
        model(input_ids=input_ids[None], labels=labels[None])
    assert trained_now(model) == trained
