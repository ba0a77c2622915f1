"""Ranks that die, hang, differ or break, and signals to all of them."""

import json
import re
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

import levelhead as lh
from levelhead import checkpoint

RANKS = 2
MODULE = """
import os, signal, time
import gymnasium as gym
import numpy as np

class Fickle(gym.Wrapper):
    \"\"\"CartPole that does something else at one step, on rank 1, unless torchrun has started it anew.\"\"\"

    def __init__(self, what="", at=0, **kwargs):
        super().__init__(gym.make("CartPole-v1", **kwargs))
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        self.what = what if first and os.environ.get("RANK") == "1" else ""
        self.at, self.steps = at, 0

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.steps += 1
        if self.steps == self.at:
            match self.what:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(1000)
                case "nan":
                    reward = np.nan
                case "raise":
                    raise RuntimeError("the simulator gave up")
        return observation, reward, *rest

gym.register("Fickle-v0", Fickle)
"""
OPTIONS = (
    *("--num-envs", 4, "--num-steps", 16, "--total-steps", 640, "--checkpoint-every", 128, "--ppo.minibatches", 2),
    *("--ppo.epochs", 2, "--network.actor", 8, "--network.critic", 8, "--device", "cpu", "--import", "fickle"),
)


def kwargs(what):
    """It happens in the fourth iteration: in the second interval between checkpoints."""
    return json.dumps({"what": what, "at": 16 * 3 + 5})


@pytest.fixture
def train(together, workdir):
    """Trains on ranks in the working directory."""
    (workdir / "fickle.py").write_text(MODULE)

    def run(name, what, *options, **more):
        named = ("--run-dir", name, "--env.kwargs", kwargs(what))
        command = ("-m", "levelhead", "train", "Fickle-v0", *OPTIONS, *named)
        return together(RANKS, *command, *options, cwd=workdir, **more)

    return run


def parameters(directory):
    return json.loads((checkpoint.checkpoints(directory)[-1] / "manifest.json").read_text())["sha256"]


def iterations(directory):
    return [json.loads(line)["iteration"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_rank_that_dies_comes_back_from_the_last_checkpoint(train, workdir):
    assert train("whole", "")[0] == 0
    status, said = train("broken", "die", restarts=1)
    assert status == 0, said
    assert re.search(rf"torchrun --nproc-per-node={RANKS} -m levelhead resume \S*broken --total-steps", said)
    assert parameters(workdir / "broken") == parameters(workdir / "whole")
    assert iterations(workdir / "broken") == list(range(1, 11))


def test_a_run_whose_directory_has_a_name_of_its_own_is_found_again(together, workdir):
    (workdir / "fickle.py").write_text(MODULE)
    command = ("-m", "levelhead", "train", "Fickle-v0", *OPTIONS, "--env.kwargs", kwargs("die"))
    status, said = together(RANKS, *command, cwd=workdir, restarts=1)
    assert status == 0, said
    (run,) = (workdir / "runs" / "Fickle-v0").iterdir()
    assert iterations(run) == list(range(1, 11))


SEVERAL = """
import sys
from dataclasses import replace
import fickle
import levelhead as lh

small = lh.NetworkConfig(actor=(8,), critic=(8,))
often = {"total_steps": 640, "checkpoint_every": 128}
config = lh.Config("Fickle-v0", num_envs=4, num_steps=16, device="cpu", network=small, **often)
for seed, what in enumerate(sys.argv[1:]):
    env = lh.EnvConfig(kwargs={"what": what, "at": 16 * 3 + 5})
    run = lh.train("Fickle-v0", config=replace(config, seed=seed, env=env))
    print(f"seed {run.config.seed} took {run.step} steps in {run.directory}", flush=True)
"""


@pytest.mark.parametrize("fates", [("", ""), ("", "die"), ("die", "")])
def test_a_script_may_train_several_times_whichever_of_them_loses_a_rank(together, workdir, fates):
    (workdir / "fickle.py").write_text(MODULE)
    (workdir / "several.py").write_text(SEVERAL)
    status, said = together(RANKS, "several.py", *fates, cwd=workdir, restarts=1)
    assert status == 0, said
    runs = sorted((workdir / "runs" / "Fickle-v0").iterdir(), key=lambda run: run.name.rpartition("-s")[2])
    assert len(runs) == len(fates)
    for seed, run in enumerate(runs):
        assert iterations(run) == list(range(1, 11))
        assert json.loads((run / "config.json").read_text())["config"]["seed"] == seed
        assert re.search(rf"seed {seed} took 640 steps in \S*{run.name}\n", said)


def test_a_rank_that_dies_before_the_first_checkpoint_starts_anew(train, workdir):
    status, said = train("broken", "die", "--checkpoint-every", 0, restarts=1)
    assert status == 0, said
    assert iterations(workdir / "broken") == list(range(1, 11))


def test_a_rank_that_dies_without_restarts_ends_the_run_and_leaves_its_checkpoint(train, workdir):
    status, said = train("broken", "die")
    assert status != 0
    assert "rank 0 has lost others" in said
    assert [p.name for p in checkpoint.checkpoints(workdir / "broken")] == ["step-000000000128"]


def test_a_rank_that_hangs_is_named(start, workdir):
    (workdir / "fickle.py").write_text(MODULE)
    options = (*OPTIONS, "--env.kwargs", kwargs("hang"), "--parallel.timeout", 4)
    process = start(RANKS, "-m", "levelhead", "train", "Fickle-v0", *options, cwd=workdir)
    # The first to notice ends; torchrun has more patience with the other one than this test.
    assert any("rank 1 was last seen collecting iteration 4" in line for line in process.stdout)


def test_a_broken_reward_is_named_with_its_rank(train, workdir):
    status, said = train("broken", "nan")
    assert status != 0
    assert "non-finite reward of environment 0 at step 4 of the rollout, in iteration 4 on rank 1" in said
    assert [p.name for p in checkpoint.checkpoints(workdir / "broken")] == [
        "step-000000000128",
        "step-000000000192",
    ]
    assert iterations(workdir / "broken") == [1, 2, 3]


def test_an_environment_that_fails_on_one_rank_is_replaced_and_counted(train, workdir):
    status, said = train("mended", "raise", "--backend", "processes", "--env.workers", 1)
    assert status == 0, said
    last = json.loads((workdir / "mended" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["health/env_restarts"] >= 1


def test_an_error_of_one_rank_ends_all_and_is_named_and_saved(train, workdir):
    status, said = train("broken", "raise")
    assert status != 0
    assert "RuntimeError('the simulator gave up'); collecting iteration 4 on rank 1; state saved as" in said
    assert [p.name for p in checkpoint.checkpoints(workdir / "broken")][-1] == "step-000000000192"


DIFFERENT = """
import os, sys
import levelhead as lh
rank = int(os.environ["RANK"])
if sys.argv[1] == "code":
    from levelhead import preparation
    preparation._common_ground = lambda config: {"levelhead's code": str(rank)}
config = lh.Config("CartPole-v1", seed=rank if sys.argv[1] == "seed" else 1, num_envs=2)
try:
    lh.train("CartPole-v1", config=config)
except lh.ConfigError as error:
    print(f"refused on rank {rank}: {error}", flush=True)
"""


def test_ranks_with_different_settings_are_refused_before_anything_is_written(together, workdir):
    (workdir / "different.py").write_text(DIFFERENT)
    status, said = together(RANKS, "different.py", "seed", cwd=workdir)
    assert status == 0, said
    for rank in range(RANKS):
        assert f"refused on rank {rank}: seed is 0 on rank 0, and 1 on rank 1" in said
    assert not (workdir / "runs").exists()


def test_ranks_with_different_code_are_refused(together, workdir):
    (workdir / "different.py").write_text(DIFFERENT)
    status, said = together(RANKS, "different.py", "code", cwd=workdir)
    assert status == 0, said
    assert "levelhead's code is 0 on rank 0, and 1 on rank 1" in said


UNEQUAL = """
import os
import levelhead as lh
from levelhead.trainer import Trainer

advance = Trainer.__next__

def drifting(trainer):
    iteration = advance(trainer)
    if os.environ["RANK"] == "1":
        trainer.policy.value_head.linear.bias.data += 1e-6
    return iteration

Trainer.__next__ = drifting
config = lh.Config("CartPole-v1", total_steps=32, num_envs=2, num_steps=16)
try:
    lh.train("CartPole-v1", config=config)
except lh.LevelheadError as error:
    print(type(error).__name__, error, flush=True)
"""


def test_parameters_that_have_drifted_apart_are_found_at_the_checkpoint(together, workdir):
    (workdir / "unequal.py").write_text(UNEQUAL)
    status, said = together(RANKS, "unequal.py", cwd=workdir)
    assert status == 0, said
    assert "RankError after iteration 1 what ranks [1] have learned differs from rank 0's" in said
    assert not list(workdir.glob("runs/*/*/checkpoints/step-*"))


FULL = """
import os, resource, sys
import levelhead as lh

if os.environ["RANK"] == "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
network = lh.NetworkConfig(actor=(128, 128), critic=(8,))
config = lh.Config("CartPole-v1", total_steps=96, num_envs=2, num_steps=16, checkpoint_every=32, network=network)
try:
    lh.train("CartPole-v1", config=config)
except lh.StorageError as error:
    print(f"rank {os.environ['RANK']} heard: {error}", flush=True)
"""


@pytest.mark.parametrize(("room", "name"), [(40_000, "checkpoints/step-000000000032"), (100, "config.json")])
def test_a_disk_that_is_full_for_the_first_rank_ends_all_with_its_error(together, workdir, room, name):
    (workdir / "full.py").write_text(FULL)
    status, said = together(RANKS, "full.py", room, cwd=workdir)
    assert status == 0, said
    for rank in range(RANKS):
        assert re.search(rf"rank {rank} heard: runs/\S+/{name} cannot be written: File too large", said), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_everywhere(start, workdir, number):
    command = ("-m", "levelhead", "train", "CartPole-v1", "--run-dir", "run", "--total-steps", 10_000_000)
    process = start(RANKS, *command, cwd=workdir)
    log = workdir / "run" / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert "interrupted at step" in said
    (saved,) = checkpoint.checkpoints(workdir / "run")
    assert int(saved.name.removeprefix("step-")) == json.loads(log.read_text().splitlines()[-1])["step"]


def test_a_run_on_ranks_goes_on_alone(train, workdir, monkeypatch):
    assert train("run", "", "--total-steps", 320)[0] == 0
    monkeypatch.syspath_prepend(workdir)
    lh.resume("run", total_steps=640)
    assert iterations(workdir / "run") == list(range(1, 11))
    assert json.loads((workdir / "run" / "config.json").read_text())["config"]["parallel"]["shards"] == RANKS


def test_a_run_goes_on_on_ranks_only_where_its_shards_can_be_divided_among_them(together, tiny, workdir):
    lh.train("CartPole-v1", config=tiny(total_steps=32, run_dir=workdir / "run"))
    status, said = together(RANKS, "-m", "levelhead", "resume", "run", "--total-steps", 64, cwd=workdir)
    assert status != 0
    assert "there are 2 ranks; accepted: a divisor of parallel.shards, 1" in said


CARRIED = """
import levelhead as lh
from levelhead.distributed import process_group

small = lh.NetworkConfig(actor=(8,), critic=(8,))
config = lh.Config("CartPole-v1", num_steps=16, total_steps=512, checkpoint_every=64, device="cpu", network=small)
with process_group():
    lh.train(lh.TensorCartPole(2), config=config, run_dir="whole")
    lh.train(lh.TensorCartPole(2), config=config, total_steps=320, run_dir="cut")
    lh.resume("cut", total_steps=512, env=lh.TensorCartPole(2))
"""


def test_every_rank_gets_its_own_episodes_back(together, workdir):
    (workdir / "carried.py").write_text(CARRIED)
    status, said = together(RANKS, "carried.py", cwd=workdir)
    assert status == 0, said
    assert parameters(workdir / "cut") == parameters(workdir / "whole")
    saved = load_file(checkpoint.checkpoints(workdir / "whole")[-1] / "environment.safetensors")
    assert not torch.equal(saved["0/env/state"], saved["1/env/state"])
    long = [
        json.loads(line)["rollout/ep_len_mean"] for line in (workdir / "whole/metrics.jsonl").read_text().splitlines()
    ]
    assert max(long) > 16


SLOW = """
import os, time
import gymnasium as gym

class Slow(gym.Wrapper):
    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))

    def step(self, action):
        time.sleep(0.03 if os.environ.get("RANK") == "1" else 0)
        return super().step(action)

gym.register("Slow-v0", Slow)
"""


def test_slow_ranks_stop_early_once_enough_are_done(together, workdir):
    (workdir / "slow.py").write_text(SLOW)
    command = ("-m", "levelhead", "train", "Slow-v0", "--import", "slow", "--run-dir", "run", "--num-envs", 2)
    options = ("--num-steps", 64, "--total-steps", 400, "--parallel.cutoff", 0.5, "--ppo.minibatches", 4)
    status, said = together(RANKS, *command, *options, "--memory.kind", "lstm", "--ppo.chunk", 8, cwd=workdir)
    assert status == 0, said
    lines = [json.loads(line) for line in (workdir / "run" / "metrics.jsonl").read_text().splitlines()]
    taken = [line["step"] - before for line, before in zip(lines, [0, *(x["step"] for x in lines)], strict=False)]
    assert all(65 <= steps < 100 for steps in taken), taken  # 64 of one rank, and a few of the other
    assert sum(taken) >= 400
