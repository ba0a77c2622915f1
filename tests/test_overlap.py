"""Environments may go on while the policy learns, and learning knows that they did."""

import gymnasium as gym
import pytest
import torch

import levelhead as lh
from levelhead.collector import Collector
from levelhead.config import MemoryConfig, PPOConfig
from levelhead.errors import ConfigError
from levelhead.estimators import GAE, LateGAE
from toys import Chain, Matching, make_trainer, same, snapshot


class Watched(Collector):
    """Keeps, of every rollout, what it was and what the policies were: that which learns, and that which acted."""

    def __init__(self, collector):
        self.__dict__ = collector.__dict__
        self.seen, self.acting = [], []

    def _play(self, iteration):
        self.acting.append(snapshot(self.actor.policy))
        return super()._play(iteration)

    def collect(self, iteration):
        rollout = super().collect(iteration)
        self.seen.append((rollout, snapshot(self.policy)))
        return rollout


def watched(env=None, **options):
    trainer = make_trainer(env or Matching(), overlap=True, **options)
    trainer.collector = Watched(trainer.collector)
    return trainer


def evaluated(policy, state, rollout):
    """Log-probabilities and values that a policy of such parameters gives."""
    now = snapshot(policy)
    policy.load_state_dict(state)
    x = policy.reader(rollout.observation.flatten(0, 1))
    with torch.no_grad():
        actor, critic = policy.features(x, policy.network.initial_state(rollout.value.shape[1]), rollout.begins)
        log_prob = policy.action_head.evaluate(actor, rollout.action.flatten(0, 1)).log_prob
        value = policy.value_head(critic).squeeze(-1)
    policy.load_state_dict(now)
    return log_prob.view_as(rollout.value), value.view_as(rollout.value)


def test_steps_are_taken_by_the_policy_from_before_and_seen_with_the_eyes_of_now():
    trainer = watched(total_steps=10**6)
    for _ in range(4):
        next(trainer)
    trainer.collector.settle()
    seen, acting = trainer.collector.seen, trainer.collector.acting
    learned = [state for _, state in seen]
    assert not same(learned[1], learned[2])
    for i, (rollout, now) in enumerate(seen):
        # The first rollout has nobody to wait for.
        assert same(acting[i], learned[max(i - 1, 0)])
        drawn, _ = evaluated(trainer.policy, acting[i], rollout)
        log_prob, value = evaluated(trainer.policy, now, rollout)
        torch.testing.assert_close(rollout.log_prob, log_prob)
        torch.testing.assert_close(rollout.value, value)
        torch.testing.assert_close(rollout.ratio, (log_prob - drawn).exp(), rtol=1e-4, atol=1e-5)
    assert (seen[-1][0].ratio - 1).abs().max() > 1e-3


def test_advantages_are_weighted_by_how_much_likelier_the_actions_have_become_at_most_once(monkeypatch):
    trainer, found = watched(total_steps=10**6), []
    learn, scale = trainer.learner.learn, trainer.advantage

    def scaled(*args, **options):
        found.append([scale(*args, **options)])
        return found[-1][0]

    trainer.advantage = scaled
    scaled.state_dict = dict
    monkeypatch.setattr(trainer.learner, "learn", lambda batch, *a: (found[-1].append(batch), learn(batch, *a))[1])
    for _ in range(3):
        next(trainer)
    trainer.collector.settle()
    for (rollout, _), (advantage, batch) in zip(trainer.collector.seen, found, strict=True):
        expected = advantage * rollout.ratio.clamp(max=1)
        torch.testing.assert_close(batch.advantage.flatten(), expected.flatten())


@pytest.mark.parametrize("refreshed", ["gae", "vtrace"])
def test_returns_are_corrected_by_how_the_policy_has_moved_since_the_steps_were_taken(refreshed):
    trainer = watched(Chain(num_envs=4), total_steps=10**6, targets=refreshed)
    for _ in range(3):
        next(trainer)
    trainer.collector.settle()
    rollout, _ = trainer.collector.seen[-1]
    corrected, _ = trainer.estimator(rollout, rollout.masks(1))
    late = LateGAE(trainer.estimator.gamma, lam=trainer.estimator.lam)
    assert torch.equal(corrected, late(rollout, rollout.masks(1))[0])
    plain, _ = GAE(late.gamma, lam=late.lam)(rollout, rollout.masks(1))
    assert not torch.allclose(corrected, plain)
    rollout.ratio.fill_(1.0)
    torch.testing.assert_close(trainer.estimator(rollout, rollout.masks(1))[0], plain)


def test_the_last_rollout_is_followed_by_none_and_the_same_seed_gives_the_same_run():
    def outcome():
        trainer = watched(total_steps=10 * 64)
        iterations = list(trainer)
        assert trainer.collector._ahead is None
        assert len(trainer.collector.acting) == len(iterations)
        return snapshot(trainer.policy)

    assert same(outcome(), outcome())


def test_what_was_played_ahead_is_forgotten_with_its_episodes():
    trainer = watched(total_steps=10**6)
    next(trainer)
    trainer.restart_episodes()
    assert trainer.collector._ahead is None
    next(trainer)
    trainer.collector.settle()
    rollout, now = trainer.collector.seen[-1]
    assert bool(rollout.begins[0].all())
    assert same(trainer.collector.acting[-2], now)


class Broken(Exception):
    pass


class Breaking(Chain):
    def step(self, action):
        if self.clock == 100:
            raise Broken
        return super().step(action)


def test_what_an_environment_raises_on_its_thread_is_raised_where_steps_are_asked_for():
    with pytest.raises(Broken):
        list(watched(Breaking(), total_steps=10**6))


class NaNs(gym.Wrapper):
    """CartPole whose rewards break after a while."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.steps = 0

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = super().step(action)
        return observation, reward if self.steps < 40 else float("nan"), *rest


def test_a_fault_leaves_no_thread_in_the_environments(tiny, workdir):
    with pytest.raises(lh.TrainingFault, match="reward"):
        lh.train(NaNs, config=tiny(overlap=True, total_steps=960))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"memory": MemoryConfig("gru"), "ppo": PPOConfig()}, "overlap doesn't go with memory"),
        ({"targets": "mc"}, "corrected for in targets gae and vtrace; they are mc"),
        ({"targets": "nstep"}, "they are nstep"),
    ],
)
def test_what_it_cannot_correct_for_is_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        make_trainer(Matching(), overlap=True, **options)


def test_a_policy_that_learns_is_not_made_to_act():
    trainer = make_trainer(Matching())
    with pytest.raises(ValueError, match="while it learns"):
        trainer.collector.ahead(1)
