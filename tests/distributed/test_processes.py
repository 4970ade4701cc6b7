"""Several processes train as one does: the same gradients, trajectories and collectives as SFT."""

import pytest

from tests.distributed.processes import run
from tests.distributed.scenarios import FOCUS, count_collectives, train_each

WRAPPERS = [("ddp", 2), ("fsdp2", 2), pytest.param("fsdp2", 4, marks=pytest.mark.slow)]
TOLERANCE = 1e-5


def relative_errors(actual, expected):
    """Largest relative difference of losses, of first gradients and of last weights."""
    losses = zip(actual["losses"], expected["losses"], strict=True)
    yield max(abs(ours - theirs) / theirs for ours, theirs in losses)
    for kind in ("gradients", "weights"):
        assert actual[kind].keys() == expected[kind].keys()
        yield max(
            ((actual[kind][name] - tensor).norm() / tensor.norm().clamp(min=1e-6)).item()
            for name, tensor in expected[kind].items()
        )


def assert_equal_to_one_process(processes, scenarios, tolerance=TOLERANCE):
    expected = run(1, train_each, [{**each, "wrapper": "none"} for each in scenarios])[0]
    for results in run(processes, train_each, scenarios):
        for scenario, ours, theirs in zip(scenarios, results, expected, strict=True):
            errors = list(relative_errors(ours, theirs))
            assert max(errors) < tolerance, (scenario, errors)


@pytest.mark.parametrize(("wrapper", "processes"), WRAPPERS)
def test_three_steps_equal_one_process(wrapper, processes):
    """The second step has no labels on some ranks."""
    scenarios = [{"wrapper": wrapper, "steps": 3, "tied": tied} for tied in (False, True)]
    assert_equal_to_one_process(processes, scenarios)


@pytest.mark.slow
@pytest.mark.parametrize(("wrapper", "processes"), WRAPPERS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_twenty_steps_equal_one_process(wrapper, processes, tied):
    assert_equal_to_one_process(processes, [{"wrapper": wrapper, "steps": 20, "tied": tied}])


VARIANTS = {
    "selective checkpointing": {"checkpointing": "selective"},
    "full checkpointing": {"checkpointing": "full", "tied": True},
    "layers kept gathered": {"reshard_after_forward": False},
    "layers and root": {"grouping": "layers and root", "tied": True},
    "head alone": {"grouping": "head alone"},
    "layers run whole": {"family": "granite"},
    "more inner forwards on some ranks": {
        "options": FOCUS | {"inner_step": "backtracking", "inner_lr": 3.0}
    },
    "another mask in the inner loop": {
        "options": FOCUS | {"inner_context_attention": "causal"},
        "checkpointing": "full",
    },
    "LoRA adapters": {"adapters": True},
    "no inner step": {"options": FOCUS | {"num_inner_steps": 0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_fsdp2_equal_one_process(name):
    assert_equal_to_one_process(2, [{"wrapper": "fsdp2", "steps": 2, **VARIANTS[name]}])


def test_collectives_are_those_of_plain_sft():
    scenarios = [{"wrapper": "ddp"}] + [
        {"wrapper": "fsdp2", **VARIANTS[name]}
        for name in (
            "selective checkpointing",
            "full checkpointing",
            "layers kept gathered",
            "layers and root",
            "head alone",
            "more inner forwards on some ranks",
        )
    ]
    for counts in run(2, count_collectives, scenarios):
        for scenario, (ours, plain) in zip(scenarios, counts, strict=True):
            assert ours == plain, scenario
            assert sum(plain.values()) > 0


def test_a_mask_of_its_own_gathers_the_trunk_once_more():
    scenario = {"wrapper": "fsdp2", **VARIANTS["another mask in the inner loop"]}
    trunk_layers, micro_batches = 2, 4
    for [(ours, plain)] in run(2, count_collectives, [scenario]):
        more = ours["_allgather_base_"] - plain["_allgather_base_"]
        assert more == trunk_layers * micro_batches
        assert ours["_reduce_scatter_base_"] == plain["_reduce_scatter_base_"]


@pytest.mark.slow
def test_bfloat16_parameters_follow_float32_ones():
    scenarios = [
        {"wrapper": "fsdp2", "steps": 3, "checkpointing": checkpointing, "low_precision": True}
        for checkpointing in ("none", "selective", "full")
    ]
    exact = run(1, train_each, [{"wrapper": "none", "steps": 3}])[0][0]
    plain, *checkpointed = run(2, train_each, scenarios)[0]
    loss_error, gradient_error, weight_error = relative_errors(plain, exact)
    assert 0 < loss_error < 0.02
    assert gradient_error < 0.2
    assert weight_error < 0.02
    for result in checkpointed:
        assert result["losses"] == plain["losses"]
