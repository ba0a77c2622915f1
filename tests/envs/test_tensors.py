"""Environments in tensors, in the forms in which simulators give them, tell the story that the environment tells."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode

import levelhead as lh
from levelhead.collector import Collector
from levelhead.envs import TensorVecEnv
from levelhead.errors import ConfigError
from parts import HostReads
from toys import ONE_NUMBER, PLANS, TWO_CHOICES, counting_envs, expected_story, readout, told_story


class AsGymnasium:
    """Counting environments as ManiSkill's vector wrapper has them; final observations under a key, or none."""

    single_observation_space, single_action_space = ONE_NUMBER, TWO_CHOICES

    def __init__(self, key="final_observation"):
        self.key = key
        self.inner = counting_envs(AutoresetMode.SAME_STEP)
        self.num_envs = self.inner.num_envs
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return self.inner.reset(seed), {}

    def step(self, action):
        step = self.inner.step(action)
        found = self.key is not None and step.final_observation is not None
        info = {self.key: step.final_observation, f"_{self.key}": step.terminated | step.truncated} if found else {}
        return step.observation, step.reward, step.terminated, step.truncated, info

    def close(self):
        self.inner.close()
        self.closed = True


class AsIsaacLab:
    """With observations in groups and no final ones; what it holds is that of another environment within."""

    def __init__(self):
        self.inner = AsGymnasium(key=None)
        groups = Dict({"policy": ONE_NUMBER, "critic": Box(-np.inf, np.inf, (2,))})
        self.unwrapped = SimpleNamespace(
            num_envs=self.inner.num_envs, single_observation_space=groups, single_action_space=TWO_CHOICES
        )

    def _groups(self, x):
        return {"policy": x, "critic": torch.cat((x, x), 1)}

    def reset(self, seed=None, env_ids=None):
        observation, info = self.inner.reset(seed=seed)
        return self._groups(observation), info

    def step(self, action):
        observation, *rest = self.inner.step(action)
        return self._groups(observation), *rest


class Groups:
    """Knows its parts by name and is no dict, as a `TensorDict`."""

    def __init__(self, **parts):
        self.parts = parts

    def __getitem__(self, name):
        return self.parts[name]


class AsRslRl:
    """Four answers, observations in groups that are no dict, and one buffer for all of them."""

    def __init__(self, time_outs=True):
        self.inner = AsGymnasium(key=None)
        self.num_envs = self.inner.num_envs
        self.time_outs = time_outs
        self.buffer = torch.zeros(self.num_envs, 1)

    def reset(self):
        self.buffer.copy_(self.inner.reset(seed=0)[0])
        return Groups(policy=self.buffer), {}

    def step(self, action):
        observation, reward, terminated, truncated, _ = self.inner.step(action)
        self.buffer.copy_(observation)
        extras = {"time_outs": truncated & ~terminated} if self.time_outs else {}
        return Groups(policy=self.buffer), reward, (terminated | truncated).long(), extras


def isaac_lab():
    return TensorVecEnv(AsIsaacLab(), group="policy")


def rsl_rl(**options):
    return TensorVecEnv(AsRslRl(**options), "policy", ONE_NUMBER, TWO_CHOICES)


def expected(steps, change=lambda row: row):
    return [[change(row) for row in islice(expected_story(i, plan), steps)] for i, plan in enumerate(PLANS)]


def not_told_the_end(row):
    """The same row where the last observation before an end stands in for the final one."""
    observation, reward, successor, terminated, truncated = row
    return observation, reward, observation if terminated or truncated else successor, terminated, truncated


@pytest.mark.parametrize("key", ["final_observation", "final_obs"])
def test_final_observations_are_told_where_they_are_given(key):
    assert told_story(TensorVecEnv(AsGymnasium(key)), 40) == expected(40)


def test_the_observation_before_an_end_stands_in_for_a_final_one_that_is_not_given():
    assert told_story(isaac_lab(), 40) == expected(40, not_told_the_end)


def test_time_outs_are_told_from_real_ends():
    def ended_once(row):  # by whichever came first
        *rest, terminated, truncated = not_told_the_end(row)
        return *rest, terminated, truncated and not terminated

    assert told_story(rsl_rl(), 40) == expected(40, ended_once)


def test_without_time_outs_all_ends_are_real_ones():
    def ended(row):
        *rest, terminated, truncated = not_told_the_end(row)
        return *rest, terminated or truncated, False

    assert told_story(rsl_rl(time_outs=False), 40) == expected(40, ended)


def test_a_reset_forgets_what_came_before():
    env = isaac_lab()
    told_story(env, 7)
    assert told_story(env, 20) == expected(20, not_told_the_end)


@pytest.mark.parametrize(("make", "given"), [(lambda: TensorVecEnv(AsGymnasium()), True), (isaac_lab, False)])
def test_the_value_after_a_cut_is_that_of_the_final_observation_or_of_the_one_before(make, given):
    collector = Collector(make(), readout(), 7, seed=1)
    for iteration in range(4):
        rollout = collector.collect(iteration)
        observation = rollout.observation.squeeze(-1)
        truncated, open_ = rollout.truncated & ~rollout.terminated, ~rollout.truncated & ~rollout.terminated
        assert truncated.any()
        assert torch.equal(rollout.next_value[open_], 3 * (observation + 1)[open_])
        assert torch.equal(rollout.next_value[truncated], 3 * (observation + given)[truncated])


@pytest.mark.parametrize("make", [lambda: TensorVecEnv(AsGymnasium()), isaac_lab, rsl_rl])
def test_a_step_reads_nothing(make, monkeypatch):
    env = make()
    env.reset(0)
    told = [env.env.step(torch.zeros(3, dtype=torch.int64)) for _ in range(10)]
    replay = iter(told)
    monkeypatch.setattr(env.env, "step", lambda action: next(replay))
    with HostReads() as host:
        for _ in told:
            env.step(torch.zeros(3, dtype=torch.int64))
    assert host.reads == []
    assert host.operations > 0


def test_observations_and_actions_keep_their_structure():
    space = Dict({"a": Tuple((ONE_NUMBER, Discrete(3))), "b": Box(0, 255, (2, 2), np.uint8)})
    first = {"a": (torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)), "b": torch.zeros(2, 2, 2, dtype=torch.uint8)}
    second = {"a": (torch.ones(2, 1), torch.ones(2, dtype=torch.int64)), "b": torch.ones(2, 2, 2, dtype=torch.uint8)}
    received, cut = [], torch.tensor([True, False])

    class Nested:
        num_envs, single_observation_space = 2, space
        single_action_space = Tuple((TWO_CHOICES, ONE_NUMBER))

        def reset(self, seed=None):
            return first, {}

        def step(self, action):
            received.append(action)
            return {**second, "debug": None}, torch.zeros(2), ~cut & cut, cut, {}

    env = TensorVecEnv(Nested())
    assert env.reset(0).keys() == first.keys()
    action = (torch.ones(2, dtype=torch.int64), torch.ones(2, 1))
    step = env.step(action)
    assert received[0] == action
    assert step.observation == second
    final = step.final_observation
    assert final["a"][0].squeeze(1).tolist() == final["a"][1].tolist() == final["b"][:, 0, 1].tolist() == [0, 1]


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_a_seed_is_handed_on_in_31_bits():
    env = AsGymnasium()
    TensorVecEnv(env).reset(2**32 - 1)
    assert env.seeds == [2**31 - 1]


def test_torch_is_seeded_where_a_reset_takes_no_seed():
    class Drawing(AsRslRl):
        def reset(self):
            return Groups(policy=torch.rand(self.num_envs, 1)), {}

    env = TensorVecEnv(Drawing(), "policy", ONE_NUMBER, TWO_CHOICES)
    assert torch.equal(env.reset(3), env.reset(3))
    assert not torch.equal(env.reset(3), env.reset(4))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "options", "reason"),
    [
        (SimpleNamespace(num_envs=2), {}, "no reset to start episodes"),
        (AsRslRl(), {"group": "policy"}, "no single_action_space: give action_space"),
        (AsRslRl(), {"action_space": TWO_CHOICES}, "no single_observation_space: give observation_space"),
        (AsIsaacLab(), {"group": "actor"}, "no group 'actor'"),
        (AsGymnasium(), {"group": "policy"}, "no group 'policy'"),
        (counting_envs(AutoresetMode.NEXT_STEP).env, {}, "resets by AutoresetMode.NEXT_STEP"),
    ],
)
def test_what_an_environment_lacks_is_named(env, options, reason):
    with pytest.raises(ConfigError, match=reason):
        TensorVecEnv(env, **options)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_evaluated_and_resumed_on_it(workdir, tiny):
    run = lh.train(isaac_lab(), config=tiny(total_steps=96))
    assert run.step >= 96
    assert lh.evaluate(run.policy, isaac_lab(), episodes=3).lengths
    assert lh.resume(run.directory, env=isaac_lab(), total_steps=192).step >= 192


def test_closing_it_closes_what_it_wraps():
    env = AsGymnasium()
    TensorVecEnv(env).close()
    assert env.closed
    rsl_rl().close()  # which has nothing to close
