"""Evaluation: greedy whole episodes, in the environment's units, that change nothing."""

import copy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import levelhead as lh
from levelhead import evaluation
from levelhead.envs import VecEnv
from toys import ONE_NUMBER, TWO_CHOICES, Counting, Switching, Toy, counting_envs, readout, same, snapshot

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
    assert "value_head.mean" in before
    assert any(name.endswith("normalizer.count") for name in before)
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


class Priceless(gym.Wrapper):
    def step(self, action):
        observation, _, *rest = self.env.step(action)
        return observation, float("nan"), *rest


def test_an_episode_without_end_counts_as_it_is(counter, monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST", 30)
    with pytest.warns(UserWarning, match="an episode has taken 30 steps and counts as it is"):
        report = lh.evaluate(counter, partial(Counting, plan=((1000, "t"),)), episodes=3)
    assert report.lengths == (30, 30, 30)


def test_a_reward_that_is_not_finite_is_named(finished):
    with pytest.raises(lh.TrainingFault, match="non-finite reward of environment 0, in evaluation"):
        lh.evaluate(finished.policy, lambda: Priceless(gym.make("CartPole-v1")), episodes=2)


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
    with pytest.raises(lh.ConfigError, match=r"observes Box.*, the policy Box"):
        lh.evaluate(finished.policy, env)


# -- several tasks -----------------------------------------------------------------------------------------------


class Assigned(VecEnv):
    """Environments that play one task each, for whole episodes as long as the number of their task says."""

    observation_space, action_space = ONE_NUMBER, TWO_CHOICES

    def __init__(self, task, names=("a", "b", "c")):
        self.tasks, self.task = names, torch.tensor(task)
        self.num_envs = len(task)

    def reset(self, seed):
        self.clock = torch.zeros(self.num_envs, dtype=torch.int64)
        return torch.ones(self.num_envs, 1)

    def step(self, action):
        self.clock += 1
        ended = self.clock > self.task
        self.clock[ended] = 0
        return lh.Step(torch.ones(self.num_envs, 1), 10.0**self.task, ended, torch.zeros_like(ended))

    def close(self):
        pass


def test_a_report_is_split_by_task_and_whole_without():
    report = lh.Report((1.0, 2.0, 6.0), (1, 4, 2), ("x", "y", "x"))
    assert report.by_task == {"x": lh.Report((1.0, 6.0), (1, 2)), "y": lh.Report((2.0,), (4,))}
    assert report.mean_return == (3.5 + 2.0) / 2
    assert lh.Report((1.0,), (1,)).by_task == {}


@pytest.mark.parametrize(
    ("task", "episodes", "played"),
    [
        ([0, 0, 1, 2], 6, {"a": 2, "b": 2, "c": 2}),
        ([0, 0, 0, 0, 1], 8, {"a": 4, "b": 4}),
        ([1, 0, 0], 5, {"a": 3, "b": 2}),
        ([0, 2], 3, {"a": 2, "c": 1}),
        ([0, 1, 2], 2, {"a": 1, "b": 1}),
        ([1, 1], 3, {"b": 3}),
    ],
)
def test_tasks_share_the_episodes_evenly_however_many_environments_play_them(task, episodes, played):
    report = lh.evaluate(readout(tasks=3), Assigned(task), episodes)
    assert len(report.tasks) == len(report.returns) == episodes
    assert {name: len(part.returns) for name, part in report.by_task.items()} == played
    for name, part in report.by_task.items():
        k = "abc".index(name)
        assert part.lengths == (k + 1,) * played[name]
        assert part.returns == ((k + 1) * 10.0**k,) * played[name]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_episode_belongs_to_the_task_that_it_played_where_tasks_change(mode):
    report = lh.evaluate(readout(tasks=3), Switching(counting_envs(mode, [((2, "t"), (3, "c"), (4, "t"))])), 7)
    assert report.tasks == tuple("abcabca")
    assert report.lengths == (2, 3, 4, 2, 3, 4, 2)


def test_shares_follow_the_tasks_that_are_played_after_the_reset():
    class Late(Assigned):
        def __init__(self):
            super().__init__([0, 0, 0, 0])

        def reset(self, seed):
            self.task = torch.tensor([0, 0, 0, 1])
            return super().reset(seed)

    report = lh.evaluate(readout(tasks=3), Late(), 4)
    assert {name: len(part.returns) for name, part in report.by_task.items()} == {"a": 2, "b": 2}


def test_a_policy_of_several_tasks_plays_them_all(tiny, workdir, two_tasks):
    policy = lh.train(two_tasks, config=tiny(two_tasks, total_steps=1)).policy
    report = lh.evaluate(policy, two_tasks, episodes=7)
    by_task = {name: part.lengths for name, part in report.by_task.items()}
    assert by_task == {"Swing-v0": (10,) * 4, "Hill-v0": (15,) * 3}


def test_any_number_of_tasks_can_be_evaluated(tiny, workdir, module):
    where = "gymnasium.envs.classic_control:PendulumEnv"
    lines = [f"gymnasium.register('Swing{k}-v0', {where!r}, max_episode_steps=5)\n" for k in range(9)]
    name = module("many_swings", "import gymnasium\n" + "".join(lines))
    ids = "+".join(f"Swing{k}-v0" for k in range(9))
    policy = lh.train(ids, config=tiny(ids, imports=(name,), num_envs=9, total_steps=1)).policy
    assert len(lh.evaluate(policy, ids, 20).returns) == 20


def test_fewer_episodes_than_tasks_are_refused_before_anything_runs(tiny, workdir, two_tasks):
    policy = lh.train(two_tasks, config=tiny(two_tasks, total_steps=1, run_dir=workdir / "run")).policy
    with pytest.raises(lh.ConfigError, match=r"episodes is 1; .* at least 2"):
        lh.evaluate(policy, two_tasks, episodes=1)
    with pytest.raises(lh.ConfigError, match=r"eval_episodes is 1; .* at least 2"):
        lh.train(two_tasks, config=tiny(two_tasks, eval_every=32, eval_episodes=1, run_dir=workdir / "other"))
    assert not (workdir / "other").exists()


def test_tasks_in_another_order_are_refused(tiny, two_tasks, workdir):
    policy = lh.train(two_tasks, config=tiny(two_tasks, total_steps=1)).policy
    with pytest.raises(lh.ConfigError, match="the policy's are"):
        lh.evaluate(policy, "+".join(reversed(two_tasks.split("+"))), episodes=2)


# -- environments that do not fit --------------------------------------------------------------------------------


class FourNumbers(gym.ObservationWrapper):
    def __init__(self):
        super().__init__(gym.make("Pendulum-v1"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,))

    def observation(self, observation):
        return np.append(observation, np.float32(0))


def test_an_environment_whose_actions_do_not_fit_the_policy_is_refused(finished):
    with pytest.raises(lh.ConfigError, match="action"):
        lh.evaluate(finished.policy, FourNumbers, episodes=1)
