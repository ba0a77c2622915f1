"""Evaluation: greedy whole episodes, in the environment's units, that change nothing."""

import copy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import levelhead as lh
from toys import Counting, Toy, same, snapshot

FIVE_STEPS = partial(Counting, plan=((5, "t"),))


def played(episode, length=5):
    """Return of one of the counting environment's episodes."""
    return sum(100 * episode + t for t in range(1, length + 1)) / 4


@pytest.fixture(scope="module")
def counter(tiny, tmp_path_factory):
    """A policy for the counting environment."""
    return lh.train(FIVE_STEPS, config=tiny(total_steps=1, run_dir=tmp_path_factory.mktemp("run"))).policy


@pytest.mark.parametrize("episodes", [1, 3, 8, 11])
def test_it_plays_exactly_as_many_episodes_as_asked(finished, episodes):
    report = lh.evaluate(finished.policy, "CartPole-v1", episodes=episodes)
    assert len(report.returns) == len(report.lengths) == episodes
    assert report.returns == tuple(float(n) for n in report.lengths)  # one point per step


def test_the_same_seed_plays_the_same_episodes_and_another_seed_others(finished):
    first, again, other = (lh.evaluate(finished.policy, "CartPole-v1", 20, seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_mean_and_std_are_those_of_the_returns():
    report = lh.Report((1.0, 2.0, 6.0), (1, 1, 1))
    assert report.mean_return == 3.0
    assert report.std_return == pytest.approx((14 / 3) ** 0.5)


def test_it_is_greedy(tiny, workdir):
    actions = []

    class Recorder(gym.ActionWrapper):
        def action(self, action):
            actions.append(np.copy(action))
            return action

    policy = lh.train("Pendulum-v1", config=tiny("Pendulum-v1", total_steps=1)).policy
    observations = []

    class Watcher(gym.ObservationWrapper):
        def observation(self, observation):
            observations.append(np.copy(observation))
            return observation

    lh.evaluate(policy, lambda: Recorder(Watcher(gym.make("Pendulum-v1"))), episodes=1)
    expected = policy.act(np.array(observations[:200]))
    np.testing.assert_allclose(np.array(actions)[:200], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_it_changes_nothing_in_the_policy(finished, training):
    policy = copy.deepcopy(finished.policy).train(training)
    before = snapshot(policy)
    assert {"normalizer.count", "value_head.mean"} <= before.keys()
    generator = torch.random.get_rng_state()
    lh.evaluate(policy, "CartPole-v1", episodes=3)
    assert same(before, policy.state_dict())
    assert policy.training is training
    assert torch.equal(torch.random.get_rng_state(), generator)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("episodes", [1, 3, 5])
def test_returns_are_whole_episodes_in_every_autoreset_mode(counter, mode, episodes):
    env = SyncVectorEnv([partial(FIVE_STEPS, index=0)] * 2, autoreset_mode=mode)
    report = lh.evaluate(counter, env, episodes)
    env.close()
    shares = (episodes - episodes // 2, episodes // 2)
    assert sorted(report.returns) == sorted(played(e) for share in shares for e in range(share))
    assert report.lengths == (5,) * episodes


def test_short_episodes_do_not_crowd_out_long_ones(counter):
    lengths = iter((2, 50))
    env = SyncVectorEnv([lambda: Counting(plan=((next(lengths), "t"),))] * 2)
    assert sorted(lh.evaluate(counter, env, 10).lengths) == [2] * 5 + [50] * 5
    env.close()


@pytest.mark.parametrize("kind", ["t", "c", "b"])
def test_an_episode_ends_where_it_is_terminated_or_cut_short(counter, kind):
    report = lh.evaluate(counter, lambda: Counting(plan=((5, kind),)), episodes=4)
    assert report.returns == (played(0),) * 4


def test_returns_are_in_the_environments_units_whatever_the_learner_saw(tiny, workdir, metrics):
    run = lh.train(FIVE_STEPS, config=tiny(reward_scale=1000.0))
    assert lh.evaluate(run.policy, FIVE_STEPS, 8).mean_return == played(0)
    assert metrics(run.directory)[0]["rollout/ep_rew_mean"] == np.mean([played(e) for e in range(3)])


def test_arguments_reach_the_constructor_of_an_environment_given_by_id(finished):
    plain = lh.evaluate(finished.policy, "CartPole-v1", 3)
    other = lh.evaluate(finished.policy, "CartPole-v1", 3, env_kwargs={"sutton_barto_reward": True})
    assert plain.returns == tuple(float(n) for n in plain.lengths)
    assert other.returns == (-1.0,) * 3


@pytest.mark.parametrize("env", [lambda: gym.make("CartPole-v1"), "vector"], ids=["a function", "a vector environment"])
def test_arguments_for_an_environment_given_as_an_object_are_refused(finished, env):
    env = gym.make_vec("CartPole-v1", num_envs=2) if env == "vector" else env
    with pytest.raises(lh.ConfigError, match="env_kwargs"):
        lh.evaluate(finished.policy, env, 1, env_kwargs={"sutton_barto_reward": True})


def test_what_was_opened_is_closed_and_what_was_handed_over_is_not(finished):
    closed = []

    class Watched(gym.Wrapper):
        def close(self):
            closed.append(True)
            super().close()

    def make():
        return Watched(gym.make("CartPole-v1"))

    lh.evaluate(finished.policy, make, episodes=2)
    assert len(closed) == 2
    env = SyncVectorEnv([make])
    lh.evaluate(finished.policy, env, episodes=1)
    assert len(closed) == 2
    env.close()


@pytest.mark.parametrize("episodes", [0, -1])
def test_fewer_than_one_episode_is_refused(finished, episodes):
    with pytest.raises(lh.ConfigError, match=f"episodes is {episodes}; accepted: at least 1"):
        lh.evaluate(finished.policy, "CartPole-v1", episodes=episodes)


@pytest.mark.parametrize("env", ["Pendulum-v1", Toy(2)], ids=["an id", "a VecEnv"])
def test_an_environment_that_does_not_fit_the_policy_is_refused(finished, env):
    with pytest.raises(lh.ConfigError, match=r"observes .*, the policy \(4,\)"):
        lh.evaluate(finished.policy, env)


class FourNumbers(gym.ObservationWrapper):
    def __init__(self):
        super().__init__(gym.make("Pendulum-v1"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,))

    def observation(self, observation):
        return np.append(observation, np.float32(0))


def test_an_environment_whose_actions_do_not_fit_the_policy_is_refused(finished):
    with pytest.raises(lh.ConfigError, match="action"):
        lh.evaluate(finished.policy, FourNumbers, episodes=1)
