"""Several ranks learn what one process with the same shards learns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from scenarios import ITERATIONS, SCENARIOS, run
from torch.testing import assert_close

import levelhead as lh
from levelhead.errors import ConfigError

SCRIPT = Path(__file__).with_name("scenarios.py")
FEW = ("mlp", "lstm", "masks", "invalid rows", "kl stop")


def lines(directory):
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if not name.startswith("time/")} for line in text]


def compare(name, one, several):
    """Parameters and statistics, and every metric of every iteration."""
    # In float32 after one iteration, as chaos takes over later; conjugate gradients make much of rounding too.
    config = SCENARIOS[name]
    exact = config.network.precision == "float64" and config.objective != "trpo"
    parameters, metrics = (1e-12, 1e-9) if exact else (1e-5, 1e-3)
    left, right = (safetensors.torch.load_file(where / f"{name}.safetensors") for where in (one, several))
    assert left.keys() == right.keys()
    for key, x in left.items():
        assert_close(
            right[key], x, rtol=parameters, atol=parameters, msg=lambda text, key=key: f"{name}, {key}: {text}"
        )
    ours, theirs = lines(one / name), lines(several / name)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys(), name
        numbers = [torch.tensor(list(line.values()), dtype=torch.float64) for line in (mine, other)]
        assert_close(*numbers, rtol=metrics, atol=1e-6, msg=lambda text, keys=list(mine): f"{name}, {keys}: {text}")


@pytest.mark.parametrize(("ranks", "shards", "names"), [(2, 2, tuple(SCENARIOS)), (4, 4, FEW), (2, 4, FEW)])
def test_ranks_equal_one_process_with_as_many_shards(together, tmp_path, ranks, shards, names):
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir(), several.mkdir()
    status, said = together(ranks, SCRIPT, several, shards, *names)
    assert status == 0, said
    for name in names:
        run(name, one, shards)
        compare(name, one, several)


def test_the_scenarios_reach_what_they_are_for(tmp_path):
    run("invalid rows", tmp_path, 2)
    assert lines(tmp_path / "invalid rows")[-1]["step"] > SCENARIOS["invalid rows"].total_steps  # some rows were not
    assert len(lines(tmp_path / "invalid rows")) > ITERATIONS
    run("kl stop", tmp_path, 2)
    never = replace(SCENARIOS["kl stop"].ppo, kl_limit=None)
    config = replace(SCENARIOS["kl stop"], run_dir=tmp_path / "never", ppo=never)
    policy = lh.train("CartPole-v1", config=replace(config, parallel=lh.ParallelConfig(shards=2))).policy
    stopped = safetensors.torch.load_file(tmp_path / "kl stop.safetensors")
    assert any(not torch.equal(x, stopped[key]) for key, x in policy.state_dict().items())


def test_a_fixed_number_of_ranks_repeats_itself_bit_by_bit(together, tmp_path):
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        status, said = together(2, SCRIPT, tmp_path / place, 2, "single", "native", "lstm")
        assert status == 0, said
    for name in ("single", "native", "lstm"):
        first, second = ((tmp_path / place / f"{name}.safetensors").read_bytes() for place in ("first", "second"))
        assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel.shards": 3}, "num_envs is 2; accepted: a multiple of the 3 shards"),
        ({"parallel.shards": 2, "ppo.minibatches": 20}, "at most 16, one row each from each of 2 shards"),
        ({"parallel.timeout": 5.0}, "parallel.timeout has nothing to act on"),
    ],
)
def test_what_cannot_be_divided_is_refused(tiny, workdir, changes, message):
    with pytest.raises(ConfigError, match=message):
        lh.train("CartPole-v1", config=tiny(**changes))
    assert not (workdir / "runs").exists()
