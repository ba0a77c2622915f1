"""lh.train: what it takes, what it refuses, and how it stops."""

import io
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from torch import nn

import levelhead as lh
from levelhead.objectives import ClipObjective
from levelhead.rundir import read_info
from levelhead.schedules import constant
from toys import Counting, Duo, Noise

pytestmark = pytest.mark.usefixtures("workdir", "two_tasks")
CARTPOLE = partial(gym.make, "CartPole-v1")


def vector(mode=AutoresetMode.SAME_STEP, num_envs=2):
    return SyncVectorEnv([CARTPOLE] * num_envs, autoreset_mode=mode)


def network(width=8):
    torsos = (nn.Sequential(nn.Linear(4, width), nn.Tanh()) for _ in range(2))
    return lh.Network(nn.Identity(), *torsos, width, width)


# -- what it takes -----------------------------------------------------------------------------------------------

ENVIRONMENTS = {
    "an id": lambda: "CartPole-v1",
    "a function": lambda: CARTPOLE,
    **{f"a vector environment, {mode.name}": partial(vector, mode) for mode in AutoresetMode},
    "Gymnasium's own vectorisation": lambda: gym.make_vec("CartPole-v1", num_envs=2),
    "a VecEnv": lambda: lh.GymnasiumVecEnv(vector()),
    "a VecEnv of one's own": lambda: Noise(2),
    "several ids": lambda: "Swing-v0+Hill-v0",
    "several kinds as one": lambda: lh.MultiTaskVecEnv({"one": Noise(1), "other": lh.GymnasiumVecEnv(vector())}),
    "a VecEnv with tasks": lambda: Duo(2),
}


@pytest.mark.parametrize("make", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_it_trains_on(tiny, metrics, make):
    before = lh.train(make(), config=tiny(total_steps=1)).policy.state_dict()
    run = lh.train(make(), config=tiny())
    assert run.step >= 96
    assert not run.interrupted
    assert metrics(run.directory)[-1]["step"] == run.step
    assert not torch.equal(before["value_head.linear.weight"], run.policy.state_dict()["value_head.linear.weight"])


def test_an_id_a_function_and_vector_environments_learn_the_same(tiny, outcome):
    first, *others = (
        outcome(lh.train(env, config=tiny()).directory)
        for env in ("CartPole-v1", CARTPOLE, vector(), vector(AutoresetMode.DISABLED), lh.GymnasiumVecEnv(vector()))
    )
    assert all(other == first for other in others)


@pytest.mark.parametrize(("asked", "taken"), [(1, 32), (32, 32), (33, 64), (96, 96)])
def test_total_steps_round_up_to_whole_iterations(tiny, asked, taken):
    assert lh.train("CartPole-v1", config=tiny(), total_steps=asked).step == taken


def test_arguments_override_the_config(tiny, workdir):
    given = {"total_steps": 40, "seed": 9, "value": "linear", "num_envs": 3, "reward_scale": 2.0, "device": "cpu"}
    run = lh.train("Acrobot-v1", config=tiny(), run_dir=workdir / "there", **given)
    assert {name: getattr(run.config, name) for name in given} == given
    assert run.config.env_id == "Acrobot-v1"
    assert run.directory == run.config.run_dir == workdir / "there"
    assert read_info(run.directory).config == run.config


def test_objects_are_used_as_they_are_and_noted_in_config_json(tiny):
    calls = []

    class Spy(ClipObjective):
        def __call__(self, new, batch, kl):
            calls.append(len(batch.action))
            return super().__call__(new, batch, kl)

    torsos, head, objective = network(), lh.RunningNormHead(8, beta=0.5), Spy(constant(0.2))
    run = lh.train(CARTPOLE, config=tiny(network=lh.NetworkConfig()), network=torsos, value=head, objective=objective)
    assert run.policy.network is torsos
    assert run.policy.value_head is head
    assert head.beta == 0.5
    assert calls == [16] * 12
    assert set(read_info(run.directory).custom) == {"env", "network", "value", "objective"}


def test_a_run_by_names_alone_notes_no_objects(tiny):
    assert read_info(lh.train("CartPole-v1", config=tiny(), value="linear").directory).custom == ()


@pytest.mark.parametrize(("head", "inside"), [(lh.PopArtValueHead(8), True), (lh.LinearValueHead(8), False)])
def test_what_it_says_of_the_scale_promise_is_true_of_a_head_handed_over(tiny, head, inside):
    file = io.StringIO()
    lh.train("CartPole-v1", config=tiny(), value=head, console=Console(file=file))
    assert ("bit for bit" in file.getvalue()) is inside


# -- what it refuses ---------------------------------------------------------------------------------------------

REFUSED = {
    "unknown id": (lambda: {"env": "CartPule-v1"}, "CartPule-v1.*Did you mean: `CartPole`"),
    "an environment": (
        lambda: {"env": gym.make("CartPole-v1")},
        "env is <.*CartPole.*accepted: an id, a function",
    ),
    "a number": (lambda: {"env": 5}, "env is 5; accepted: an id, a function or class"),
    "unknown objective": (lambda: {"objective": "ppo"}, r"objective is ppo; accepted: one of .*'clip'"),
    "unknown value head": (lambda: {"value": "popat"}, r"value is popat; accepted: one of .*'popart'"),
    "unknown device": (lambda: {"device": "gpu"}, r"device is gpu; accepted: one of .*'cpu'"),
    "class for a value head": (
        lambda: {"value": lh.LinearValueHead},
        r"value is <class .*accepted: a name, or a ValueHead",
    ),
    "module for a network": (lambda: {"network": torch.nn.Linear(4, 8)}, r"network is Linear.*accepted: a Network"),
    "function for an objective": (lambda: {"objective": print}, r"objective is .*accepted: a name, or an Objective"),
    "value head that doesn't fit": (lambda: {"value": lh.LinearValueHead(5)}, "reads 5 features"),
    "arguments the environment doesn't know": (lambda: {"env.kwargs": {"gravitas": 1}}, "CartPole-v1.*gravitas"),
    "other num_envs than the environments": (lambda: {"env": vector(), "num_envs": 5}, "num_envs is 5"),
    "arguments for a function": (lambda: {"env": CARTPOLE, "env.kwargs": {"x": 1}}, r"env\.kwargs"),
    "arguments for a vector environment": (lambda: {"env": vector(), "env.kwargs": {"x": 1}}, r"env\.kwargs"),
    "evaluation on the environments of training": (lambda: {"env": vector(), "eval_every": 32}, "eval_every"),
    "widths beside a network": (lambda: {"network": network(), "network.actor": (16,)}, r"network\.actor"),
    "activation beside a network": (lambda: {"network": network(), "network.activation": "relu"}, r"network\.act"),
    "clip range beside an objective": (
        lambda: {"objective": ClipObjective(constant(0.2)), "ppo.clip_range": constant(0.3)},
        r"ppo\.clip_range",
    ),
    "beta beside a head without statistics": (
        lambda: {"value": lh.LinearValueHead(8), "head.beta": constant(0.9)},
        r"head\.beta",
    ),
    "advantages divided by the std of a head without one": (
        lambda: {"value": lh.LinearValueHead(8), "ppo.advantage": "head"},
        r"ppo\.advantage",
    ),
    "log-std without continuous actions": (lambda: {"action.std": 0.5}, r"action\.std"),
    **{
        f"advantages divided by the std of {value}, which keeps none": (
            lambda value=value: {"value": value, "ppo.advantage": "head"},
            r"ppo\.advantage 'head' has nothing to act on: \w+ValueHead keeps no statistics",
        )
        for value in ("twohot", "symlog", "sqrt")
    },
    **{
        f"a value clip beside {value}": (
            lambda value=value: {"value": value, "ppo.value_clip": constant(0.2)},
            r"ppo\.value_clip has nothing to act on: .*ValueHead is a cross-entropy",
        )
        for value in ("hlgauss", "twohot")
    },
    "a value clip beside a histogram handed over": (
        lambda: {"value": lh.HLGaussValueHead(8), "ppo.value_clip": constant(0.2)},
        r"ppo\.value_clip.*HLGaussValueHead",
    ),
    "value head with too few outputs": (
        lambda: {"env": "Swing-v0+Hill-v0", "value": lh.PopArtValueHead(8)},
        "has 1 outputs.*environments 2, one per task",
    ),
    "value head with too many outputs": (
        lambda: {"env": Duo(2), "value": lh.HLGaussValueHead(8, 3)},
        "has 3 outputs.*environments 2, one per task",
    ),
    "several outputs without tasks": (
        lambda: {"value": lh.RunningNormHead(8, 2)},
        "has 2 outputs.*environments 1, one per task",
    ),
    "tasks that have nothing in common": (
        lambda: {"env": "CartPole-v1+Pendulum-v1"},
        r"CartPole-v1 Discrete\(2\), Pendulum-v1 Box",
    ),
    "fewer environments than tasks": (lambda: {"env": "Swing-v0+Hill-v0", "num_envs": 1}, "num_envs is 1"),
    "arguments for several environments": (
        lambda: {"env": "Swing-v0+Hill-v0", "env.kwargs": {"g": 5.0}},
        r"env\.kwargs are for a single environment",
    ),
}
CONFIGURED = {
    "env.kwargs", "eval_every", "head.beta", "network.activation", "network.actor", "action.std", "ppo.advantage",
    "ppo.clip_range", "ppo.value_clip",
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_it_refuses(tiny, with_fields, workdir, make, message):
    given = make()
    plain = {"network": lh.NetworkConfig()} if "network" in given else {}
    config = with_fields(tiny(**plain), {name: given.pop(name) for name in list(given) if name in CONFIGURED})
    with pytest.raises(lh.ConfigError, match=message):
        lh.train(given.pop("env", "CartPole-v1"), config=config, **given)
    assert list(workdir.iterdir()) == []


def test_a_vector_environment_that_does_not_say_how_it_resets_is_refused(tiny):
    env = vector()
    env.metadata = {}
    with pytest.raises(lh.ConfigError, match=r"autoreset_mode.*NEXT_STEP"):
        lh.train(env, config=tiny())
    env.close()


@pytest.mark.parametrize("task", [None, torch.tensor([0, 2]), torch.tensor([0.0, 1.0]), torch.tensor([0])])
def test_environments_that_do_not_say_which_of_their_tasks_they_play_leave_nothing_behind(tiny, workdir, task):
    env = Duo(2)
    env.task = task
    with pytest.raises(lh.ConfigError, match=r"torch\.int64|named 2"):
        lh.train(env, config=tiny())
    assert list(workdir.iterdir()) == []


# -- evaluation and units on the way -----------------------------------------------------------------------------


def test_evaluations_come_every_so_many_steps_and_leave_training_alone(tiny, metrics, outcome):
    plain = lh.train("CartPole-v1", config=tiny())
    evaluated = lh.train("CartPole-v1", config=tiny(eval_every=50, eval_episodes=3))
    lines = metrics(evaluated.directory)
    assert [line["step"] for line in lines if "eval/mean_return" in line] == [64]
    assert lines[1].pop("eval/mean_return") == lh.evaluate(_at(evaluated, 64), "CartPole-v1", 3, 1).mean_return
    assert lines == metrics(plain.directory)
    assert outcome(evaluated.directory)["policy.safetensors"] == outcome(plain.directory)["policy.safetensors"]


def test_evaluations_and_episodes_are_logged_by_task(tiny, metrics, two_tasks):
    run = lh.train(two_tasks, config=tiny(two_tasks, eval_every=96, eval_episodes=4))
    names = two_tasks.split("+")
    line = metrics(run.directory)[-1]
    report = lh.evaluate(run.policy, two_tasks, 4, 1)
    for name in names:
        assert line[f"eval/mean_return/{name}"] == report.by_task[name].mean_return
    assert line["eval/mean_return"] == report.mean_return
    for metric in ("rollout/ep_rew_mean", "rollout/ep_len_mean"):
        assert line[metric] == pytest.approx(np.mean([line[f"{metric}/{name}"] for name in names]))
    assert [line[f"rollout/ep_len_mean/{name}"] for name in names] == [10, 15]
    assert run.directory.parent.name == two_tasks


def _at(run, step):
    return lh.load_policy(run.directory / "checkpoints" / f"step-{step:012d}")


@pytest.mark.parametrize("scale", [2.0**20, 2.0**-20])
def test_logged_returns_stay_in_the_environments_units(tiny, metrics, scale):
    plain, scaled = (metrics(lh.train(Counting, config=tiny(reward_scale=s)).directory) for s in (1.0, scale))
    for one, other in zip(plain, scaled, strict=True):
        assert one["rollout/ep_rew_mean"] == other["rollout/ep_rew_mean"]
        assert one["value/target_mean"] * scale == pytest.approx(other["value/target_mean"])


def test_step_counts_valid_steps_alone(tiny, metrics):
    # A step that an environment spends on being reset is none.
    run = lh.train(vector(AutoresetMode.NEXT_STEP), config=tiny())
    steps = [0, *(line["step"] for line in metrics(run.directory))]
    taken = np.diff(steps)
    assert all(0 < n <= 32 for n in taken)
    assert any(n < 32 for n in taken)
    assert steps[-1] == run.step >= 96
