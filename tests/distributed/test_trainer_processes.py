"""The trainer in several processes: one process's losses, its model, and resuming elsewhere."""

import pytest
import torch

from tests.distributed.processes import run
from tests.distributed.trainer_scenarios import spoil_one_rank, train, validate

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def one_process(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return request.param, folder, run(1, train, folder, "none", request.param)[0]


def assert_same(results, expected, last=4):
    """The last losses, which resumed runs have too, and the weights at the end."""
    for result in results:
        assert result["saved_as_trained"]
        assert len(result["losses"]) == 4
        for name in ("losses", "inner_losses"):
            assert result[name][-last:] == pytest.approx(expected[name][-last:], rel=TOLERANCE)
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(
                result["weights"][name], weight, rtol=TOLERANCE, atol=TOLERANCE
            )


@pytest.mark.slow
@pytest.mark.parametrize(("wrapper", "processes"), [("ddp", 2), ("fsdp2", 2), ("fsdp2", 4)])
def test_the_run_of_one_process(tmp_path, one_process, wrapper, processes):
    tied, _, expected = one_process
    assert_same(run(processes, train, tmp_path, wrapper, tied), expected)


@pytest.mark.slow
def test_ddp_and_one_process_resume_each_other(tmp_path, one_process):
    tied, folder, expected = one_process
    two = tmp_path / "two"
    assert_same(run(2, train, two, "ddp", tied), expected)
    resumed = run(1, train, tmp_path / "a", "none", tied, str(two / "checkpoint-2"))
    assert_same(resumed, expected, last=2)
    resumed = run(2, train, tmp_path / "b", "ddp", tied, str(folder / "checkpoint-2"))
    assert_same(resumed, expected, last=2)


@pytest.mark.slow
@pytest.mark.parametrize("state_dict", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (2, 1)])
def test_fsdp2_resumes_on_other_numbers_of_processes(
    tmp_path, one_process, state_dict, before, after
):
    tied, _, expected = one_process
    first = tmp_path / "first"
    run(before, train, first, "fsdp2", tied, None, state_dict)
    resumed = run(
        after, train, tmp_path / "then", "fsdp2", tied, str(first / "checkpoint-2"), state_dict
    )
    assert_same(resumed, expected, last=2)


def test_validation_counts_each_row_once_and_all_processes_end_with_the_best(tmp_path):
    (expected,) = run(1, validate, tmp_path / "one")
    for result in run(2, validate, tmp_path / "two"):
        assert result["is_best"] and result["best"] == expected["best"]
        for mine, its in zip(result["eval"], expected["eval"], strict=True):
            assert mine == pytest.approx(its, rel=TOLERANCE)


def test_a_process_that_goes_astray_stops_all_with_a_checkpoint(tmp_path):
    for said in run(2, spoil_one_rank, tmp_path):
        assert said.startswith("step 3: the gradient norm is nan; the state before it is ")
        assert "checkpoint-2" in said
