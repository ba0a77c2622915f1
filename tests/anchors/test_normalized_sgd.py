"""PopArt under SGD and normalised SGD on a raw layer are one algorithm (van Hasselt et al. 2016, proposition 3)."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STEPS = 250


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("normalized_sgd")


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9, "track": True}])
@pytest.mark.parametrize("drift", ["none", "scale grows 1e-3 to 1e3", "scale jumps by 1e4", "mean moves by 3 and back"])
def test_popart_and_normalised_sgd_go_the_same_way(script, drift, momentum):
    assert max(script.deviations(drift, **momentum, steps=STEPS).values()) < 1e-10


@pytest.mark.parametrize("drift", ["scale falls 1e3 to 1e-3", "scale jumps by 1e4 and back"])
def test_each_single_step_is_the_same_where_the_scale_collapses(script, drift):
    assert max(script.deviations(drift, resume=True, steps=STEPS).values()) < 1e-9


@pytest.mark.parametrize("changed", [{"rewrite": False}, {"late": True}, {"momentum": 0.9}])
def test_not_without_the_rewrite_nor_in_another_order_nor_with_stale_momentum(script, changed):
    assert script.deviations("scale grows 1e-3 to 1e3", **changed, steps=STEPS)["outputs"] > 1e-3
