"""Gymnasium's vector environments: three autoreset modes, one story."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from levelhead.envs import GymnasiumVecEnv, make_gymnasium
from levelhead.errors import ConfigError
from toys import ONE_NUMBER, PLANS, Counting, counting_envs, expected_story, told_story

every_mode = pytest.mark.parametrize("mode", list(AutoresetMode))


@every_mode
@pytest.mark.parametrize("copy", [True, False])
def test_every_mode_tells_the_story_that_the_environments_tell(mode, copy):
    for i, story in enumerate(told_story(counting_envs(mode, copy=copy), 40)):
        assert len(story) >= 20
        assert story == [x for x, _ in zip(expected_story(i, PLANS[i]), story, strict=False)]


def test_only_rows_of_environments_that_are_being_reset_are_invalid():
    env = counting_envs(AutoresetMode.NEXT_STEP)
    env.reset(0)
    ended = torch.zeros(3, dtype=torch.bool)
    for _ in range(20):
        step = env.step(torch.zeros(3, dtype=torch.int64))
        valid = torch.ones(3, dtype=torch.bool) if step.valid is None else step.valid
        assert torch.equal(valid, ~ended)
        ended = step.terminated | step.truncated
        assert not (ended & ~valid).any()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_no_row_is_lost_where_environments_reset_at_once(mode):
    assert [len(story) for story in told_story(counting_envs(mode), 40)] == [40] * 3


@every_mode
def test_a_reset_forgets_what_was_under_way(mode):
    env = counting_envs(mode)
    first = told_story(env, 3)  # leaves environments that are due for a reset
    assert told_story(env, 3) == first


@every_mode
def test_ended_rows_hold_their_final_observation_and_all_others_what_comes_next(mode):
    env = counting_envs(mode)
    env.reset(0)
    for _ in range(20):
        step = env.step(torch.zeros(3, dtype=torch.int64))
        ended = step.terminated | step.truncated
        if step.final_observation is not None:
            assert torch.equal(step.final_observation[~ended], step.observation[~ended])
            assert (step.final_observation != step.observation).squeeze(-1)[ended].all()


@pytest.mark.parametrize("mode", [None, "nonsense"])
def test_an_environment_that_does_not_say_how_it_resets_is_refused(mode):
    env = SyncVectorEnv([Counting])
    env.metadata = {} if mode is None else {"autoreset_mode": mode}
    with pytest.raises(ConfigError, match=r"autoreset_mode.*NEXT_STEP, SAME_STEP, DISABLED"):
        GymnasiumVecEnv(env)


def test_arrays_are_shared_with_torch_and_not_copied():
    env = counting_envs(AutoresetMode.SAME_STEP, copy=False)
    array = env.env._observations
    assert env.reset(0).data_ptr() == array.ctypes.data
    observation = env.step(torch.zeros(3, dtype=torch.int64)).observation
    assert observation.data_ptr() == env.env._observations.ctypes.data
    array[0] = 123.0
    assert observation[0].item() == 123.0


def test_attributes_are_those_of_a_single_environment():
    env = make_gymnasium("Pendulum-v1", 3)
    assert env.num_envs == 3
    assert env.observation_space.shape == (3,)
    assert env.action_space == Box(-2.0, 2.0, (1,))
    assert env.reset(1).shape == (3, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_arrive_in_the_dtype_of_the_action_space(dtype):
    space = Box(-1, 1, (2,), dtype)
    env = make_gymnasium(lambda: Counting(action_space=space), 2)
    env.reset(0)
    action = torch.rand(2, 2)
    env.step(action)
    for one, row in zip(env.env.envs, action, strict=True):
        assert one.received[-1].dtype == dtype
        assert np.array_equal(one.received[-1], row.numpy())
        assert space.contains(one.received[-1])


def test_the_same_seed_starts_the_same_episodes():
    one, again, other = (make_gymnasium("CartPole-v1", 3).reset(seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 3


def test_arguments_reach_the_constructor():
    env = make_gymnasium("Pendulum-v1", 2, {"g": 3.5})
    assert [one.unwrapped.g for one in env.env.envs] == [3.5, 3.5]


@pytest.mark.parametrize(
    ("env", "kwargs"), [("CartPoleTypo-v1", {}), ("Pendulum-v1", {"gravity": 1}), ("gone:X-v0", {})]
)
def test_an_environment_that_cannot_be_made_is_named(env, kwargs):
    with pytest.raises(ConfigError, match=env):
        make_gymnasium(env, 1, kwargs)


def test_closing_reaches_the_environments():
    closed = []

    class Closing(gym.Env):
        observation_space = action_space = ONE_NUMBER

        def close(self):
            closed.append(self)

    make_gymnasium(Closing, 2).close()
    assert len(closed) == 2
