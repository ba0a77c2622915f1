"""The networks of the online regression benchmark are the library's heads, and PopArt is ahead of SGD and ART there."""

import importlib
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("online_regression")


def alone(script, make, beta, seed, step_size, steps, every):
    """Errors `[steps]` of one network with a plain head of one output and an optimiser of its own."""
    trunk, head = script.trunk(seed), make(10, beta=beta, dtype=torch.float64)
    optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], step_size)
    errors = []
    for x, y in zip(*script.numbers(seed, steps, every), strict=True):
        features, target = trunk(x).unsqueeze(0), y.unsqueeze(0)
        errors.append(head(features).item() - y.item())
        head.update(target)
        optimizer.zero_grad()
        (0.5 * head.loss(features, target)).sum().backward()
        optimizer.step()
    return torch.tensor(errors, dtype=torch.float64)


HEADS = ("linear (SGD)", "valuenorm", "runningnorm (ART)", "popart", "hlgauss", "twohot", "symlog", "signed sqrt")


@pytest.mark.parametrize("name", HEADS)
def test_a_member_of_the_sweep_is_a_network_of_its_own(script, name):
    make, seeds, step_sizes, steps, every = script.HEADS[name], [3, 8], [1e-4, 1e-2], 120, 50
    swept = script.errors(make, 0.9, seeds, step_sizes, steps, every)
    for i, j in ((0, 1), (1, 0), (1, 1)):
        assert_close(
            swept[:, i, j], alone(script, make, 0.9, seeds[i], step_sizes[j], steps, every), rtol=1e-10, atol=1e-10
        )


def test_every_head_of_the_sweep_is_held_to_that(script):
    assert tuple(script.HEADS) == HEADS


def test_popart_learns_through_rare_large_targets_that_stop_sgd_and_art(script):
    def best(name, rate):
        """Median error over ten seeds in steps 1000 to 1500, at the best step size."""
        seeds, step_sizes, every = list(range(10)), [10**-3.5, 10**-3, 10**-2.5, 10**-2], 500
        error = script.errors(script.HEADS[name], 1 - rate, seeds, step_sizes, 3 * every, every)
        return float(script.rmse(error, every)[2].median(0).values.min())

    popart = best("popart", 10**-0.5)
    for rival, rate in (("linear (SGD)", 0.1), ("runningnorm (ART)", 1e-4)):
        assert popart < 0.5 * best(rival, rate)
