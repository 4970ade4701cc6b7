"""The report names every trainer of the benchmarks in words."""

import pytest

from benchmarks import step, throughput
from focusft.analysis.report import speed_charts


@pytest.mark.parametrize("benchmark", [step, throughput])
def test_every_trainer_has_a_name(benchmark):
    assert set(benchmark.TRAINERS) <= set(speed_charts._TRAINERS)
