"""lh.resume: a run that was cut ends as if it never had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import levelhead as lh
from levelhead import checkpoint, rundir
from levelhead.envs import TensorCartPole
from levelhead.objectives import ClipObjective
from levelhead.schedules import Schedule, constant
from parts import normalizer_of
from toys import same

pytestmark = pytest.mark.usefixtures("workdir", "two_tasks")
CARTPOLE = partial(gym.make, "CartPole-v1")


def step_directory(directory, step):
    return directory / "checkpoints" / f"step-{step:012d}"


def forget_after(directory, step):
    for path in checkpoint.checkpoints(directory):
        if path.name > f"step-{step:012d}":
            shutil.rmtree(path)


def tree(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


class Crash(BaseException):
    """Ends a run as the end of its process would, with nothing saved."""


class Crashing(gym.Wrapper):
    """CartPole that fails at a given step."""

    def __init__(self, at):
        super().__init__(CARTPOLE())
        self.at, self.t = at, 0

    def step(self, action):
        self.t += 1
        if self.t == self.at:
            raise Crash
        return self.env.step(action)


# -- the same as never interrupted -------------------------------------------------------------------------------

VARIANTS = {
    "popart": {},
    "normalised observations": {"network.normalize_observation": True},
    "linear head": {"value": "linear"},
    "running norm": {"value": "runningnorm"},
    "shared layers": {"network.shared": (8,)},
    "schedules": {
        "optimizer.learning_rate": Schedule(1e-2, 0.0),
        "ppo.clip_range": Schedule(0.3, 0.1, "cosine"),
        "ppo.entropy_coef": Schedule(0.05, 0.001, "exponential"),
        "head.beta": Schedule(0.5, 0.99),
    },
    "evaluations": {"eval_every": 32, "eval_episodes": 2},
    "continuous actions": {"env_id": "Pendulum-v1"},
    "histogram": {"value": "hlgauss"},
    "an average range of returns": {"ppo.advantage": "percentile"},
    "an adaptive penalty": {"objective": "kl", "ppo.kl_target": constant(1e-3)},
    "a trust region": {"objective": "trpo"},
    "plain policy gradient": {"objective": "vpg", "ppo.advantage": "none", "baseline": "mean"},
    "one pass": {"objective": "a2c", "ppo.epochs": 1, "targets": "nstep"},
    "targets made anew": {"targets": "vtrace"},
    "an adaptive learning rate": {"optimizer.kl_target": constant(1e-3)},
    "decay and warm-up": {"optimizer.weight_decay": 0.1, "optimizer.warmup": 3},
    "an actor that waits": {"objective": "kl", "ppo.freeze_actor": 2},
    "a critic apart": {"critic.joint": False, "critic.epochs_after": 2, "ppo.kl_limit": constant(1e-4)},
    "an auxiliary phase": {"auxiliary.every": 1},
    "tasks": {"env_id": "Swing-v0+Hill-v0", "ppo.advantage": "percentile", "eval_every": 64},
    "environments ahead": {"overlap": True},
    "compiled steps": {"engine": "compile"},
    "environments in NumPy": {"backend": "vector"},
    "environments in C++": {"backend": "envpool"},
    "environments in processes": {"backend": "processes"},
}


SLOW = {
    "compiled steps": (
        pytest.mark.slow,
        pytest.mark.timeout(600),
        pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    )
}


@pytest.mark.parametrize(
    "changes", [pytest.param(changes, id=name, marks=SLOW.get(name, ())) for name, changes in VARIANTS.items()]
)
def test_cut_at_a_checkpoint_and_resumed_it_ends_bit_for_bit_as_in_one_go(tiny, outcome, workdir, changes):
    config = tiny(**{"total_steps": 128, **changes})
    whole = lh.train(config.env_id, config=config)
    expected, state = outcome(whole.directory), whole.policy.state_dict()
    first, *_, before_last, _ = checkpoint.checkpoints(whole.directory)
    for step in (int(path.name.removeprefix("step-")) for path in (first, before_last)):
        copy = shutil.copytree(whole.directory, workdir / str(step))
        forget_after(copy, step)
        run = lh.resume(copy)
        assert all(torch.equal(x, state[name]) for name, x in run.policy.state_dict().items())
        assert outcome(copy) == expected


@pytest.mark.parametrize(
    ("changes", "name", "start"),
    [
        ({"objective": "kl", "ppo.kl_target": constant(1e-6)}, "objective.weight", 1.0),
        ({"optimizer.kl_target": constant(1e-6)}, "optimizer.rate_factor", 1.0),
    ],
)
def test_what_adapts_itself_is_in_the_checkpoint(tiny, workdir, changes, name, start):
    run = lh.train("CartPole-v1", config=tiny(**changes))
    saved = load_file(step_directory(run.directory, 96) / "optimizer.safetensors")
    assert saved[name] != start


@pytest.mark.parametrize("at", [65, 80, 127], ids="crash in step {}".format)
def test_after_a_crash_metrics_have_neither_gap_nor_repeat(tiny, outcome, workdir, at):
    # Checkpoints after every second iteration of 32 steps; a crash in the third or fourth.
    config = tiny(total_steps=192, num_envs=1, num_steps=32, checkpoint_every=64)
    whole = lh.train(CARTPOLE, config=config)
    with pytest.raises(Crash):
        lh.train(partial(Crashing, at), config=config, run_dir=workdir / "cut")
    with (workdir / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 128, "itera')
    run = lh.resume(workdir / "cut", env=CARTPOLE)
    assert run.step == 192
    assert outcome(run.directory) == outcome(whole.directory)


KILLED = """
import os, signal
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Killed(CartPoleEnv):
    steps = 0
    def step(self, action):
        Killed.steps += 1
        if Killed.steps == int(os.environ.get("KILLED_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

gym.register("Killed-v0", Killed, max_episode_steps=500)
"""


def test_a_killed_process_loses_nothing_but_what_came_after_the_last_checkpoint(
    tiny, outcome, workdir, module, monkeypatch
):
    config = tiny("Killed-v0", imports=(module("killed", KILLED),), total_steps=160)
    whole = lh.train("Killed-v0", config=config)
    code = (
        "import json, sys, levelhead as lh; from levelhead.serialize import from_json;"
        "lh.train('Killed-v0', config=from_json(lh.Config, json.loads(sys.argv[1])), run_dir='cut')"
    )
    text = json.dumps(json.loads((whole.directory / "config.json").read_text())["config"])
    environment = {**os.environ, "KILLED_AT": "115", "PYTHONPATH": os.pathsep.join([str(workdir), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code, text], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in checkpoint.checkpoints(workdir / "cut")][-1] == "step-000000000096"
    run = lh.resume("cut")
    assert run.step == 160
    assert outcome(run.directory) == outcome(whole.directory)


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(tiny, outcome, workdir):
    config = tiny(total_steps=192, num_envs=1, num_steps=32, checkpoint_every=128)
    whole = lh.train(CARTPOLE, config=config)
    with pytest.raises(Crash):
        lh.train(partial(Crashing, 80), config=config, run_dir=workdir / "cut")
    step_directory(workdir / "cut", 128).with_name(".step-000000000128.partial").mkdir(parents=True)
    with pytest.warns(UserWarning, match="cut has no checkpoint: the run begins anew"):
        run = lh.resume("cut", env=CARTPOLE)
    assert outcome(run.directory) == outcome(whole.directory)
    events = EventAccumulator(str(run.directory / "tb")).Reload()
    assert [event.step for event in events.Scalars("value/std")] == [32 * i for i in range(1, 7)]


def test_what_an_environment_raises_loses_nothing_that_was_learned_before(tiny, workdir):
    class Raising(Crashing):
        def step(self, action):
            try:
                return super().step(action)
            except Crash:
                raise RuntimeError("the simulator gave up") from None

    config = tiny(num_envs=1, num_steps=32, checkpoint_every=0)
    with pytest.raises(RuntimeError, match="the simulator gave up") as caught:
        lh.train(partial(Raising, 90), config=config, run_dir="raised")
    path = step_directory(workdir / "raised", 64)
    assert caught.value.__notes__ == [f"state saved as {path.relative_to(workdir)}"]
    assert lh.resume("raised", env=CARTPOLE).step == config.total_steps


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(run_copy):
    for path in checkpoint.checkpoints(run_copy):
        shutil.rmtree(path)
    before = tree(run_copy)
    with pytest.raises(lh.CheckpointError, match=r"checkpoints .* are gone"):
        lh.resume(run_copy)
    assert tree(run_copy) == before


def test_a_run_whose_checkpoints_were_all_set_aside_does_not_begin_anew(run_copy):
    for path in checkpoint.checkpoints(run_copy):
        path.rename(path.with_name(f"superseded-{path.name}"))
    before = tree(run_copy)
    with pytest.raises(lh.CheckpointError, match="neither a checkpoint nor a run directory with checkpoints"):
        lh.resume(run_copy)
    assert tree(run_copy) == before


def test_custom_objects_continue_as_in_one_go(tiny, outcome, workdir):
    def parts():
        torch.manual_seed(0)
        torsos = [nn.Sequential(nn.Linear(4, 8), nn.Tanh()) for _ in range(2)]
        network = lh.Network(nn.Identity(), *torsos, 8, 8)
        return {
            "network": network,
            "value": lh.PopArtValueHead(8, beta=0.9),
            "objective": ClipObjective(constant(0.1)),
        }

    whole = lh.train(CARTPOLE, config=tiny(network=lh.NetworkConfig()), **parts())
    copy = shutil.copytree(whole.directory, workdir / "copy")
    forget_after(copy, 32)
    lh.resume(copy, env=CARTPOLE, **parts())
    assert outcome(copy) == outcome(whole.directory)


@pytest.mark.parametrize("part", ["env", "network", "value", "objective"])
def test_an_object_that_is_missing_is_named(tiny, part):
    torsos = [nn.Sequential(nn.Linear(4, 8), nn.Tanh()) for _ in range(2)]
    parts = {
        "env": CARTPOLE,
        "network": lh.Network(nn.Identity(), *torsos, 8, 8),
        "value": lh.PopArtValueHead(8),
        "objective": ClipObjective(constant(0.2)),
    }
    run = lh.train(config=tiny(total_steps=32, network=lh.NetworkConfig()), **parts)
    del parts[part]
    with pytest.raises(lh.ConfigError, match=rf"pass {part}="):
        lh.resume(run.directory, total_steps=64, **parts)


def test_after_a_fault_training_goes_on_from_the_state_before_it(tiny, outcome):
    class Faulty(Crashing):
        def step(self, action):
            try:
                return super().step(action)
            except Crash:
                observation, _, *rest = self.env.step(action)
                return observation, float("nan"), *rest

    config = tiny(num_envs=1, num_steps=32, checkpoint_every=32)
    whole = lh.train(CARTPOLE, config=config)
    with pytest.raises(lh.TrainingFault):
        lh.train(partial(Faulty, 95), config=config, run_dir="faulty")
    assert outcome(lh.resume("faulty", env=CARTPOLE).directory) == outcome(whole.directory)


# -- episodes that go on -----------------------------------------------------------------------------------------

GOING_ON = {
    "alone": {},
    "with memory": {"memory.kind": "lstm", "memory.size": 4, "ppo.chunk": 8},
    "with normalised rewards": {"normalize_reward": True, "value": "linear"},
    "on a schedule": {"checkpoint_every": 64},
}


@pytest.mark.parametrize("changes", GOING_ON.values(), ids=GOING_ON)
def test_where_environments_tell_their_state_episodes_go_on_over_checkpoints(tiny, metrics, outcome, workdir, changes):
    config = tiny(**{"total_steps": 256, **changes})
    whole = lh.train(TensorCartPole(2), config=config)
    long = max(line.get("rollout/ep_len_mean", 0) for line in metrics(whole.directory))
    assert long > config.num_steps  # which none would be that a checkpoint after every rollout had cut
    for path in checkpoint.checkpoints(whole.directory)[1:-1]:
        copy = shutil.copytree(whole.directory, workdir / path.name)
        forget_after(copy, int(path.name.removeprefix("step-")))
        lh.resume(copy, env=TensorCartPole(2))
        assert outcome(copy) == outcome(whole.directory)


def test_then_a_checkpoint_changes_nothing_wherever_it_comes(tiny):
    whole = lh.train(TensorCartPole(2), config=tiny(total_steps=192, checkpoint_every=0))
    run = lh.train(TensorCartPole(2), config=tiny(total_steps=64))
    for steps in (160, 192):
        run = lh.resume(run.directory, total_steps=steps, env=TensorCartPole(2))
    assert same(run.policy.state_dict(), whole.policy.state_dict())


class Spoilt(TensorCartPole):
    """Gives a reward that isn't finite at a step of its own."""

    at = 70

    def step(self, action):
        self.at -= 1
        step = super().step(action)
        return step if self.at else step._replace(reward=step.reward * torch.nan)


def test_after_a_fault_and_where_environments_are_ahead_new_ones_begin(tiny, workdir):
    with pytest.raises(lh.TrainingFault):
        lh.train(Spoilt(2), config=tiny(total_steps=256, checkpoint_every=96), run_dir=workdir / "spoilt")
    last = [
        checkpoint.checkpoints(directory)[-1]
        for directory in (workdir / "spoilt", lh.train(TensorCartPole(2), config=tiny(overlap=True)).directory)
    ]
    assert [path.name for path in last] == ["step-000000000128", "step-000000000096"]
    assert not any((path / "environment.safetensors").exists() for path in last)
    assert (step_directory(workdir / "spoilt", 96) / "environment.safetensors").exists()
    assert lh.resume(workdir / "spoilt", env=TensorCartPole(2)).step == 256


def test_environments_that_cannot_go_on_from_the_state_of_others_are_refused(tiny):
    run = lh.train(TensorCartPole(2), config=tiny())
    with pytest.raises(lh.CheckpointError, match=r"000096 doesn't fit.*GymnasiumVecEnv cannot go on from a state"):
        lh.resume(run.directory, total_steps=128, env=CARTPOLE)


# -- further than planned ----------------------------------------------------------------------------------------


def test_a_finished_run_is_refused_and_left_alone_unless_given_more_steps(run_copy):
    before = tree(run_copy)
    for total in (None, 96, 50):
        with pytest.raises(lh.ConfigError, match=r"has taken 96 of \d+ steps: give more total steps"):
            lh.resume(run_copy, total_steps=total)
    assert tree(run_copy) == before
    assert lh.resume(run_copy, total_steps=97).step == 128


def test_processes_that_are_started_anew_after_the_last_step_have_nothing_left_to_do(run_copy, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    learned, logged = checkpoint.checkpoints(run_copy), (run_copy / "metrics.jsonl").read_text()
    run = lh.resume(run_copy)
    assert (run.step, run.interrupted) == (96, False)
    assert (checkpoint.checkpoints(run_copy), (run_copy / "metrics.jsonl").read_text()) == (learned, logged)


def test_schedules_go_on_from_the_resumed_step_and_never_below_their_end(tiny, metrics):
    config = tiny(**{"optimizer.learning_rate": Schedule(1e-2, 0.0), "ppo.clip_range": Schedule(0.2, 0.1)})
    run = lh.train("CartPole-v1", config=config)
    lh.resume(run.directory, total_steps=190)
    rates = [line["train/learning_rate"] for line in metrics(run.directory)]
    first = [1e-2 * (1 - step / 96) for step in (0, 32, 64)]
    rest = [1e-2 * (1 - step / 190) for step in (96, 128, 160)]
    assert rates == pytest.approx(first + rest)
    assert min(rates) >= 0
    lh.resume(run.directory, total_steps=193)
    assert metrics(run.directory)[-1]["train/learning_rate"] >= 0


def test_metrics_and_iterations_go_on_from_the_resumed_step(run_copy, metrics):
    before = metrics(run_copy)
    lh.resume(run_copy, total_steps=160)
    after = metrics(run_copy)
    assert after[: len(before)] == before
    assert [(line["step"], line["iteration"]) for line in after] == [(32 * i, i) for i in range(1, 6)]


def test_statistics_go_on_from_where_they_were(run_copy):
    before = lh.load_policy(run_copy)
    after = lh.resume(run_copy, total_steps=97).policy
    assert normalizer_of(before).count == 96
    assert normalizer_of(after).count == 128
    assert (before.value_head.count.item(), after.value_head.count.item()) == (3, 4)


def test_an_average_range_of_returns_that_is_missing_is_named(tiny, run_copy):
    # As where the config was changed by hand.
    path = run_copy / "config.json"
    path.write_text(path.read_text().replace('"advantage": "rollout"', '"advantage": "percentile"'))
    before = tree(run_copy)
    with pytest.raises(lh.CheckpointError, match=r"000096 doesn't fit.*PercentileAdvantage is \{\}.*'range'"):
        lh.resume(run_copy, total_steps=128)
    assert tree(run_copy) == before


# -- damaged and older checkpoints -------------------------------------------------------------------------------


def test_a_damaged_last_checkpoint_is_refused_and_the_one_before_it_works_by_path(finished, run_copy, outcome):
    last, previous = step_directory(run_copy, 96), step_directory(run_copy, 64)
    data = bytearray((last / "policy.safetensors").read_bytes())
    data[-5] ^= 4
    (last / "policy.safetensors").write_bytes(data)
    before = tree(run_copy)
    for open_run in (partial(lh.resume, total_steps=128), lh.load_policy):
        for name in (run_copy, last):
            with pytest.raises(lh.CheckpointError) as caught:
                open_run(name)
            assert str(last / "policy.safetensors") in str(caught.value)
            assert str(previous) in str(caught.value)
    assert tree(run_copy) == before
    with pytest.warns(UserWarning, match="1 later checkpoint"):
        assert lh.resume(previous).step == 96
    assert outcome(run_copy) == outcome(finished.directory)


def test_what_a_run_resumed_from_an_earlier_checkpoint_left_behind_is_not_its_last(run_copy, metrics):
    written = (run_copy / "metrics.jsonl").read_bytes()
    with pytest.warns(UserWarning, match=r"from step-000000000032: 2 later checkpoints of .* are called superseded-"):
        run = lh.resume(step_directory(run_copy, 32), total_steps=64)
    assert [line["step"] for line in metrics(run_copy)] == [32, 64]
    assert (run_copy / "superseded-step-000000000096-metrics.jsonl").read_bytes() == written
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(lh.load_policy(run_copy).value(torch.tensor(x)), run.policy.value(torch.tensor(x)))
    lh.resume(run_copy, total_steps=96)
    assert [line["step"] for line in metrics(run_copy)] == [32, 64, 96]


def test_two_trainings_do_not_write_to_one_run(run_copy, monkeypatch):
    monkeypatch.setattr(rundir, "HANDOVER", 1)
    held = rundir.hold(run_copy)
    before = tree(run_copy)
    with pytest.raises(lh.ConfigError, match="is being written to by another training"):
        lh.resume(run_copy, total_steps=128)
    assert tree(run_copy) == before
    rundir.let_go(held)
    assert lh.resume(run_copy, total_steps=128).step == 128


def test_a_config_that_no_longer_fits_the_checkpoint_is_refused_by_name(run_copy):
    path = run_copy / "config.json"
    document = json.loads(path.read_text())
    document["config"]["network"]["actor"] = [16]
    path.write_text(json.dumps(document))
    before = tree(run_copy)
    with pytest.raises(lh.CheckpointError, match=r"step-000000000096 doesn't fit"):
        lh.resume(run_copy, total_steps=128)
    assert tree(run_copy) == before


@pytest.mark.parametrize("name", ["nowhere", "latest"])
def test_what_is_not_there_is_refused(name):
    with pytest.raises(lh.ConfigError, match=r"doesn't exist|there is no run"):
        lh.resume(name)


def test_objects_that_the_run_was_made_without_are_refused(run_copy):
    before = tree(run_copy)
    with pytest.raises(lh.ConfigError, match="made without objects for value"):
        lh.resume(run_copy, total_steps=128, value=lh.RunningNormHead(8))
    assert tree(run_copy) == before
