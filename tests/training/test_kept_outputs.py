"""Outputs kept for a recompute: the bits of no checkpointing, and nothing kept runs again."""

from functools import partial

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from focusft.training.kept_outputs import KeptOutputs

_aten = torch.ops.aten
KEPT = [_aten.mm.default]


def plain(x, weight):
    return (torch.relu(x @ weight) @ weight.T).cos()


def writes_to_a_kept_output(x, weight):
    y = x @ weight
    y += x.sin()
    y[:, 1:] *= 2
    return (y.cos() @ weight).sin()


def writes_to_what_is_not_kept(x, weight):
    y = x.sin()
    y += x
    z = torch.zeros_like(x)
    z[1:] = y[1:] @ weight
    return (z.exp() @ weight).cos()


def ends_with_a_sum(x, weight):
    return x + x.sin() @ weight


def ends_with_a_function_of_a_sum(x, weight):
    return (x + x.sin() @ weight).cos()


FUNCTIONS = [
    plain,
    ends_with_a_sum,
    ends_with_a_function_of_a_sum,
    writes_to_a_kept_output,
    writes_to_what_is_not_kept,
]


class CountProducts(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func in KEPT
        return func(*args, **(kwargs or {}))


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 4, generator=generator).requires_grad_() for _ in range(2)]


def run(function, **options):
    """The output, gradients, and how many products the backward pass ran."""
    x, weight = tensors()
    output = checkpoint(function, x, weight, use_reentrant=False, **options)
    with CountProducts() as counter:
        output.sum().backward()
    return output, x.grad, weight.grad, counter.calls


def ours():
    return KeptOutputs(KEPT).contexts()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_bits_and_no_product_twice(function):
    x, weight = tensors()
    output = function(x, weight)
    with CountProducts() as counter:
        output.sum().backward()
    *again, products = run(function, context_fn=ours)
    assert all(map(torch.equal, again, (output, x.grad, weight.grad)))
    assert products == counter.calls
    *_, products_of_full = run(function)
    # A recompute ends before the last product where nothing wants that.
    assert (products_of_full > products) == (function is not ends_with_a_sum)


@pytest.mark.parametrize(
    ("function", "is_kept"), [(ends_with_a_sum, False), (ends_with_a_function_of_a_sum, True)]
)
def test_the_last_output_is_kept_where_it_is_wanted(function, is_kept):
    kept = KeptOutputs(KEPT)
    checkpoint(function, *tensors(), use_reentrant=False, context_fn=kept.contexts)
    [(_, output)] = kept.calls
    assert isinstance(output, torch.Tensor) == is_kept


def test_same_as_torchs_own():
    torchs = partial(create_selective_checkpoint_contexts, KEPT)
    of_torch, of_ours = run(plain, context_fn=torchs), run(plain, context_fn=ours)
    assert all(map(torch.equal, of_torch[:3], of_ours[:3]))
    assert of_torch[3] == of_ours[3]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_kept():
    # It has no backward pass on a CPU, so the contexts are entered by hand.
    flex = torch.ops.higher_order.flex_attention
    kept = KeptOutputs([flex])
    query = torch.randn(1, 1, 128, 16)
    forward, recompute = kept.contexts()
    with forward:
        output = flex_attention(query, query, query)
    assert [operation for operation, _ in kept.calls].count(flex) == 1
    with recompute:
        again = flex_attention(torch.zeros_like(query), query, query)
    assert torch.equal(output, again)


def test_nothing_is_held_after_the_backward_pass():
    kept = KeptOutputs(KEPT)
    run(plain, context_fn=kept.contexts)
    held = [output for _, output in kept.calls if isinstance(output, torch.Tensor)]
    assert len(kept.calls) == 2
    assert held == []


def test_a_recompute_that_differs_is_an_error():
    runs = []

    def changes(x, weight):
        runs.append(1)
        return (x @ weight).sin() if len(runs) == 1 else x.clone().add_(weight).sin()

    with pytest.raises(RuntimeError, match=r"aten\.add_\.Tensor in its recompute"):
        run(changes, context_fn=ours)


def test_a_second_backward_pass_is_an_error():
    x, weight = tensors()
    output = checkpoint(plain, x, weight, use_reentrant=False, context_fn=ours)
    output.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="ran twice"):
        output.sum().backward()
