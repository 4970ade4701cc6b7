"""What the last layer computes, and what it leaves out."""

from dataclasses import replace

import pytest
import torch

import focusft
from tests.method.helpers import CONFIG, MULTI_TURN, conversation, gradients_of, single
from tests.tiny_models import tiny_model

BATCH = single(conversation(MULTI_TURN))
ROWS = sum(response for _, response in MULTI_TURN)
TOKENS = sum(map(sum, MULTI_TURN))


def tokens_in_mlps(model, config):
    """For each layer, the tokens that its MLP got in each of its calls in one training call."""
    seen = {index: [] for index in range(len(model.model.layers))}
    focusft.attach(model, config)
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(
            lambda mlp, args, index=index: seen[index].append(args[0].numel() // args[0].shape[-1])
        )
    model.train()(**BATCH)
    return seen


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_last_mlp_gets_the_rows_with_a_target(family, steps):
    seen = tokens_in_mlps(tiny_model(family), replace(CONFIG, num_inner_steps=steps))
    *others, last = seen.values()
    assert last == [ROWS] * (steps + 1)
    assert {tokens for of_layer in others for tokens in of_layer} == {TOKENS}


def test_a_layer_that_is_not_plain_stays_whole():
    *_, last = tokens_in_mlps(tiny_model("granite"), CONFIG).values()
    assert last == [TOKENS] * 3


@pytest.mark.parametrize("steps", [0, 2])
def test_every_parameter_has_a_gradient_where_nothing_is_labelled(steps):
    # Processes that share gradients wait for those of each parameter.
    unlabelled = {**BATCH, "labels": torch.full_like(BATCH["labels"], -100)}
    model = tiny_model("llama")
    loss, _, gradients = gradients_of(model, replace(CONFIG, num_inner_steps=steps), **unlabelled)
    assert loss == 0
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert not any(gradient.any() for gradient in gradients.values())
