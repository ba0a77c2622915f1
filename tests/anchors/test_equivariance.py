"""Learning from a (y + c) is learning from y in other units, for the heads that promise it, under any optimiser."""

import importlib
import math
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COUNT = 12
BOTH = pytest.mark.parametrize("optimizer", ["SGD", "momentum", "Adam"])


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("equivariance")


@pytest.fixture(scope="module")
def raw_deviation(script):
    """How far values are from those learned on y itself, in stds."""
    std = float(script.batches(COUNT)[-1][1].std())

    def measure(head, optimizer, scale, shift, call="observe"):
        how = (head, optimizer, torch.float64, call)
        one, other = script.learn(*how, count=COUNT), script.learn(*how, scale, shift, COUNT)
        return script.deviations(one, other, scale, shift, std)[1]

    return measure


@BOTH
@pytest.mark.parametrize("head", ["popart", "runningnorm", "hlgauss"])
def test_a_level_head_learns_the_same_in_any_units(raw_deviation, head, optimizer):
    for scale, shift, bound in ((1e-8, 0.0, 1e-10), (1e8, 0.0, 1e-10), (1e8, 1e4, 1e-7)):
        assert raw_deviation(head, optimizer, scale, shift) < bound


@BOTH
@pytest.mark.parametrize("head", ["popart", "runningnorm", "hlgauss"])
def test_a_level_head_learns_the_same_bits_at_extreme_powers_of_two(script, head, optimizer):
    how = (head, optimizer, torch.float32, "observe")
    one = script.learn(*how, count=COUNT)
    for scale in script.POWERS:
        assert script.same_bits(one, script.learn(*how, scale, count=COUNT), scale)


@BOTH
def test_updates_from_the_start_give_up_the_shift_alone(raw_deviation, optimizer):
    assert raw_deviation("popart", optimizer, 1e8, 0.0, "update") < 1e-10
    assert raw_deviation("popart", optimizer, 1.0, 1e2, "update") > 0.1


@BOTH
@pytest.mark.parametrize("head", ["linear", "valuenorm"])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1e3, 0.0), (1.0, 1e2)])
def test_a_head_that_predicts_raw_values_does_not(raw_deviation, head, optimizer, scale, shift):
    deviation = raw_deviation(head, optimizer, scale, shift)
    assert math.isnan(deviation) or deviation > 0.01
