"""Fixed and backtracking steps: what is counted, and that no accepted step raises a loss."""

from dataclasses import replace

import pytest
import torch

import focusft
from focusft.method.fast_weights import FastWeights
from focusft.method.inner_loop import MAX_HALVINGS, InnerTrace, NonFiniteLossError, adapt
from tests.method.helpers import (
    CONFIG,
    DOCUMENTS,
    assert_mends,
    double_model,
    gradients_of,
    mean_of_single_runs,
    packed,
    relative_error,
    single,
)
from tests.tiny_models import tiny_model

LARGE = replace(CONFIG, num_inner_steps=3, inner_lr=8.0, inner_grad_clip=0.0)


def test_a_large_fixed_step_raises_the_loss_and_is_counted():
    model = tiny_model("llama")
    _, engine, _ = gradients_of(model, LARGE, **packed(DOCUMENTS))
    trace = engine.trace
    losses = torch.stack(trace.losses)
    assert losses.shape == (4, 3)  # the last one comes from the outer loop
    assert trace.steps_watched == 9
    assert trace.steps_raised == (losses[1:] > losses[:-1]).sum().item() > 0
    assert [step.tolist() for step in trace.step_sizes] == [[8.0] * 3] * 3


@pytest.mark.parametrize("steps", [1, 2])
def test_the_last_fixed_step_is_known_from_the_outer_loss(steps):
    model = tiny_model("llama")
    config = replace(CONFIG, num_inner_steps=steps)
    _, engine, _ = gradients_of(model, config, **single(DOCUMENTS[0]))
    _, longer, _ = gradients_of(
        model, replace(config, num_inner_steps=steps + 1), **single(DOCUMENTS[0])
    )
    assert engine.trace.mean_losses == pytest.approx(longer.trace.mean_losses[:-1], rel=1e-5)
    assert engine.trace.steps_watched == steps


def test_counting():
    losses = [[1.0, 5.0, 0.0], [2.0, 4.0, 0.0], [1.5, 4.0, 0.0]]
    trace = InnerTrace(tuple(map(torch.tensor, losses)), (), (), torch.tensor([True, True, False]))
    assert trace.steps_watched == 4
    assert trace.steps_raised == 1  # an equal loss is not raised
    assert trace.mean_losses == [3.0, 3.0, 2.75]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("objective", ["response", "held_out_turns"])
def test_backtracking_never_raises_a_loss(objective, order):
    model = tiny_model("llama")
    config = replace(LARGE, inner_step="backtracking", inner_objective=objective, inner_order=order)
    _, engine, _ = gradients_of(model, config, **packed(DOCUMENTS))
    losses, sizes = torch.stack(engine.trace.losses), torch.stack(engine.trace.step_sizes)
    assert losses.shape == (4, 3)
    assert (losses[1:] <= losses[:-1]).all()
    assert engine.trace.steps_raised == 0
    halvings = (LARGE.inner_lr / sizes).log2()
    assert (halvings[sizes > 0] % 1 == 0).all()
    assert 0 < halvings[sizes > 0].max() <= MAX_HALVINGS


def test_backtracking_is_the_outer_loss_it_says():
    model = tiny_model("llama")
    config = replace(LARGE, inner_step="backtracking")
    loss, engine, _ = gradients_of(model, config, **single(DOCUMENTS[1]))
    assert engine.trace.mean_losses[-1] == pytest.approx(loss, rel=1e-5)


def test_an_accepted_first_trial_equals_a_fixed_step():
    model = double_model("llama")
    small = replace(CONFIG, inner_lr=0.01)
    *_, fixed = gradients_of(model, small, **packed(DOCUMENTS))
    *_, backtracked = gradients_of(
        model, replace(small, inner_step="backtracking"), **packed(DOCUMENTS)
    )
    assert relative_error(backtracked, fixed) < 1e-13


def test_documents_halve_on_their_own():
    model = double_model("llama")
    config = replace(LARGE, inner_lr=2.0, inner_step="backtracking")
    _, expected, engines = mean_of_single_runs(model, config, DOCUMENTS)
    _, engine, actual = gradients_of(model, config, **packed(DOCUMENTS))
    sizes = torch.stack(engine.trace.step_sizes)
    assert len(sizes.unique()) > 1, "this test needs documents that differ"
    assert torch.equal(sizes, torch.cat([torch.stack(e.trace.step_sizes) for e in engines], dim=1))
    assert relative_error(actual, expected) < 1e-10


def scalar_weights(documents):
    A = torch.ones(documents, 1, 1, dtype=torch.float64)
    return FastWeights((A,), (torch.zeros_like(A),), 1.0, 0.0, ())


def test_a_step_that_always_raises_is_given_up_for_its_document_alone():
    """|B - 1e-9| can only rise by a step of 1/64 or more, (B - 4)^2 falls at once."""
    config = replace(CONFIG, num_inner_steps=2, inner_lr=0.5, inner_step="backtracking")
    calls = []

    def losses(weights):
        calls.append(weights.B[0].detach().flatten().tolist())
        B_G = weights.B[0][:, 0, 0] + 0 * weights.A[0][:, 0, 0]
        return torch.stack([(B_G[0] - 1e-9).abs(), (B_G[1] - 4) ** 2])

    weights, trace = adapt(scalar_weights(2), losses, torch.tensor([True, True]), config)
    assert [sizes.tolist() for sizes in trace.step_sizes] == [[0.0, 0.5], [0.0, 0.5]]
    assert weights.B[0].flatten().tolist() == pytest.approx([0.0, 1.0])
    assert trace.steps_raised == 0
    # Per step: one trial for each size, and one where the step is 0; and the loss at phi_0.
    assert len(calls) == 1 + 2 * (MAX_HALVINGS + 2)


def test_clipping_is_per_matrix_and_document():
    config = replace(CONFIG, num_inner_steps=1, inner_lr=1.0, inner_grad_clip=0.5)

    def losses(weights):
        return torch.tensor([-3.0, -0.1], dtype=torch.float64) * weights.B[0][:, 0, 0]

    weights, trace = adapt(scalar_weights(2), losses, torch.tensor([True, True]), config)
    assert weights.B[0].flatten().tolist() == pytest.approx([0.5, 0.1])
    assert trace.grad_norms[0].tolist() == pytest.approx([3.0, 0.1])


@pytest.mark.parametrize("steps", [1, 2])
def test_a_fixed_step_to_infinity_stops_with_the_mend(steps):
    """With one step only the outer loss tells."""
    config = replace(CONFIG, num_inner_steps=steps, inner_lr=1e30, inner_grad_clip=0.0)
    with pytest.raises(NonFiniteLossError) as error:
        gradients_of(tiny_model("llama"), config, **single(DOCUMENTS[0]))
    assert_mends(error, "finite", "inner_lr", "inner_step=backtracking")


def test_backtracking_turns_back_from_infinity():
    config = replace(CONFIG, inner_lr=1e30, inner_grad_clip=0.0, inner_step="backtracking")
    loss, engine, gradients = gradients_of(tiny_model("llama"), config, **single(DOCUMENTS[0]))
    assert loss < 1e3
    assert [size.item() for size in engine.trace.step_sizes] == [0.0, 0.0]
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_with_several_processes_what_is_not_finite_flows_into_the_gradients():
    """The others wait for them; all then stop at their norm."""
    model = tiny_model("llama")
    engine = focusft.attach(model, replace(CONFIG, inner_lr=1e30, inner_grad_clip=0.0))
    engine.stops_on_non_finite = False
    model.train()
    model(**single(DOCUMENTS[0])).loss.backward()
    assert not torch.stack([p.grad.norm() for p in model.parameters()]).isfinite().all()


@pytest.mark.parametrize("targets", ["q_proj,v_proj", "o_proj", "q_proj,gate_proj"])
@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize("order", [1, 2])
def test_a_batch_without_targets_leaves_the_fast_weights(targets, fraction, order):
    """The loss reaches some of them only, or none."""
    config = replace(
        CONFIG,
        inner_target_modules=targets,
        inner_layer_fraction=fraction,
        inner_objective="held_out_turns",
        inner_order=order,
    )
    loss, engine, gradients = gradients_of(tiny_model("llama"), config, **single(DOCUMENTS[0]))
    assert not engine.trace.has_targets.any()
    no_steps = replace(config, num_inner_steps=0, inner_order=1)
    expected, _, stock = gradients_of(tiny_model("llama"), no_steps, **single(DOCUMENTS[0]))
    assert loss == pytest.approx(expected)
    assert relative_error(gradients, stock) < 1e-6


def test_a_step_given_up_for_an_infinite_gradient_leaves_the_weights():
    config = replace(CONFIG, num_inner_steps=1, inner_lr=0.5, inner_step="backtracking")

    def losses(weights):
        return weights.B[0][:, 0, 0].sqrt() + 1  # the slope at 0 is infinite

    weights, trace = adapt(scalar_weights(1), losses, torch.tensor([True]), config)
    assert trace.step_sizes[0].tolist() == [0.0]
    assert weights.B[0].flatten().tolist() == [0.0]
    assert trace.losses[-1].tolist() == [1.0]
