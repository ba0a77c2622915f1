"""What Gymnasium's own vector environment does, done with less in between."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from levelhead.envs.sync import SyncEnvs
from levelhead.errors import ConfigError
from levelhead.masks import MASK_KEY
from levelhead.tree import tree_leaves


class Nested(gym.Env):
    """Observations and actions in dicts and tuples; episodes end after 3, 4, 5, ... steps, every other one cut."""

    def __init__(self):
        self.observation_space = Dict({"a": Box(-9, 9, (2,), np.float64), "b": Tuple((Discrete(9), Box(-9, 9, ())))})
        self.action_space = Tuple((Discrete(3, start=2), Box(-1.0, 1.0, (2,))))
        self.episodes = 0

    def observe(self):
        x = self.np_random.normal(size=2)
        return {"a": x, "b": (int(self.np_random.integers(9)), np.array(x[0], dtype=np.float32))}

    def told(self):
        return {"left": self.left, MASK_KEY: self.np_random.integers(2, size=3, dtype=np.int8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self.left = self.episodes + 1, 2 + self.episodes % 3
        return self.observe(), self.told()

    def step(self, action):
        choice, x = action
        assert self.action_space.contains((choice, x))
        self.left -= 1
        ended, cut = self.left == 0, self.episodes % 2 == 0
        return self.observe(), float(choice + x[0]), ended and not cut, ended and cut, self.told()


def told(env, steps=30):
    """Everything that an environment answers to the same actions, as flat lists."""
    observation, info = env.reset(seed=5)
    env.action_space.seed(7)
    story = [tree_leaves(observation), info.get(MASK_KEY)]
    story = [[x.copy() for x in story[0]], story[1]]
    for _ in range(steps):
        observation, *rest, info = env.step(env.action_space.sample())
        finals = [None if x is None else tree_leaves(x) for x in info.get("final_obs", [])]
        story += [[x.copy() for x in tree_leaves(observation)], [x.copy() for x in rest], finals]
        story += [None if MASK_KEY not in info else info[MASK_KEY].copy()]
    env.close()
    return story


def makes_of(kind):
    return {
        "CartPole": [lambda: gym.make("CartPole-v1", max_episode_steps=9)] * 3,
        "nested": [Nested] * 3,
    }[kind]


@pytest.mark.parametrize("kind", ["CartPole", "nested"])
def test_tells_the_same_story(kind):
    theirs = SyncVectorEnv(makes_of(kind), copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    ours = SyncEnvs(makes_of(kind))
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    expected, given = told(theirs), told(ours)
    assert any(finals for finals in expected[4::4]), "no episode ended"
    np.testing.assert_equal(given, expected)


class Frugal(gym.Env):
    """Writes every observation into the same array."""

    observation_space, action_space = Box(-9, 9, (1,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.x = getattr(self, "x", np.zeros(1, dtype=np.float32))
        self.x[0] = 0
        return self.x, {}

    def step(self, action):
        self.x[0] += 1
        return self.x, 0.0, False, bool(self.x[0] == 2), {}


def test_final_observations_survive_the_reset_that_follows():
    env = SyncEnvs([Frugal])
    env.reset(seed=1)
    env.step(np.zeros(1, dtype=np.int64))
    observation, *_, info = env.step(np.zeros(1, dtype=np.int64))
    assert observation[0] == 0
    assert info["final_obs"][0] == 2


def test_environments_that_differ_are_refused():
    with pytest.raises(ConfigError, match=r"the environments differ: one has Box.*, another Box"):
        SyncEnvs([lambda: gym.make("CartPole-v1"), lambda: gym.make("Acrobot-v1")])
    with pytest.raises(ConfigError, match=r"another Discrete\(2\)"):
        SyncEnvs([Frugal, lambda: gym.wrappers.TransformAction(Frugal(), lambda a: a, Discrete(3))])


class Masked(Frugal):
    """Says of so many choices what is legal."""

    def __init__(self, choices):
        super().__init__()
        self.choices = choices

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {MASK_KEY: np.ones(self.choices, dtype=bool)}


def test_a_mask_that_is_unlike_others_is_named():
    env = SyncEnvs([partial(Masked, 2), partial(Masked, 3)])
    with pytest.raises(ConfigError, match="the action_mask of environment 1 is unlike others'"):
        env.reset(seed=1)


@pytest.mark.parametrize(
    "answer",
    [
        (0, 0.0, False, {}),
        (0, np.zeros(2), False, False, {}),
        None,
        (0, "much", False, False, {}),
    ],
    ids=["of an old kind", "two rewards", "nothing", "words"],
)
def test_an_answer_that_is_none_is_refused(answer):
    env = SyncEnvs([Frugal])
    env.reset(seed=1)
    env.envs[0].step = lambda action: answer
    with pytest.raises(ConfigError, match=r"an environment answered a step with .*; expected an obs"):
        env.step(np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize(
    "answer", [0, np.zeros(2), (0, 1), None], ids=["of an old kind", "two numbers", "a pair", "nothing"]
)
@pytest.mark.parametrize("again", [False, True], ids=["at first", "after an end"])
def test_a_reset_that_answers_no_infos_is_refused(answer, again):
    env = SyncEnvs([Frugal])
    if again:
        env.reset(seed=1)
        env.envs[0].step = lambda action: (np.zeros(1, np.float32), 0.0, True, False, {})
    env.envs[0].reset = lambda **_: answer
    with pytest.raises(
        ConfigError, match=r"an environment answered a reset with .*; expected an observation and a dict"
    ):
        env.step(np.zeros(1, dtype=np.int64)) if again else env.reset(seed=1)


def test_an_observation_of_another_shape_is_refused_and_not_spread_over_the_row():
    class Short(Frugal):
        observation_space = Box(-9, 9, (3,), np.float32)

    with pytest.raises(ConfigError, match=r"observation has shape \(1,\); expected \(3,\)"):
        SyncEnvs([Short] * 2).reset(seed=1)


def test_everyone_is_closed():
    closed = []

    class Closing(Frugal):
        def close(self):
            closed.append(self)

    env = SyncEnvs([Closing, Closing])
    env.close()
    assert closed == env.envs
