"""What is not finite stops training before the step that would have used it, and says where it was."""

import json
import math
from copy import deepcopy
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from levelhead.config import PPOConfig, ValueKind
from levelhead.envs import GymnasiumVecEnv
from levelhead.errors import TrainingFault
from levelhead.objectives import ClipObjective
from levelhead.schedules import constant
from parts import CHOICES, REALS, learn, make_batch, make_learner, make_policy
from toys import SMALL, Chain, Counting, Duo, Matching, Noise, Tampered, make_trainer, same, snapshot

NORMALIZED = replace(SMALL, normalize_observation=True)
STEPS = 16


def poisoned(field, value, at, env=2):
    """An environment number `env` of which answers `value` in `field` at call `at`."""

    def tamper(call, step):
        if call != at:
            return step
        x = getattr(step, field).clone()
        x[env] = value
        return step._replace(**{field: x})

    return tamper


def stopped(trainer, match, iterations=1):
    """Trains whole iterations, then expects a fault; nothing that training moves may have moved since."""
    for _ in range(iterations):
        next(trainer)
    before = deepcopy(trainer.state_dict())
    with pytest.raises(TrainingFault, match=match):
        next(trainer)
    after = trainer.state_dict()
    for part in ("policy", "optimizer", "advantage"):
        assert same(before[part], after[part])
    assert after["progress"]["step"] == trainer.step == iterations * STEPS * trainer.collector.env.num_envs
    assert after["progress"]["iteration"] == trainer.iteration == iterations


class Poisoned(ClipObjective):
    """Answers NaN from its n-th minibatch on."""

    def __init__(self, minibatch):
        super().__init__(constant(0.2))
        self.left = minibatch

    def __call__(self, new, batch, kl):
        self.left -= 1
        actor = super().__call__(new, batch, kl)
        return actor if self.left >= 0 else actor._replace(loss=actor.loss * math.nan)


@pytest.mark.parametrize("value", get_args(ValueKind))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["observation", "reward"])
def test_what_an_environment_answers_must_be_finite(field, bad, value):
    env = Tampered(Noise(num_envs=4), poisoned(field, bad, at=STEPS + 3))
    # An observation is acted on one step after it was answered.
    where = rf"{field} of environment 2 at step {3 + (field == 'observation')} .*iteration 2 on rank 0"
    stopped(make_trainer(env, value=value, network=NORMALIZED), where)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_a_reward_that_is_clipped_must_be_finite_too(bad):
    env = Tampered(Noise(num_envs=4), poisoned("reward", bad, at=STEPS + 3))
    stopped(make_trainer(env, clip_reward=1.0), r"reward of environment 2 at step 3 .*iteration 2 on rank 0")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_log_probability_must_be_finite_though_its_ratio_may_be(bad, monkeypatch):
    trainer = make_trainer(Noise(num_envs=4))
    collect = trainer.collector.collect

    def collected(iteration):
        rollout = collect(iteration)
        if iteration == 1:
            rollout.log_prob[5, 1] = bad
        return rollout

    monkeypatch.setattr(trainer.collector, "collect", collected)
    stopped(trainer, r"log-probability of environment 1 at step 5 .*iteration 2 on rank 0")


@pytest.mark.parametrize("iterations", [0, 1])
@pytest.mark.parametrize("poison", ["reward", Poisoned], ids=["before learning", "while learning"])
@pytest.mark.parametrize("env", [Noise, Duo])
def test_a_fault_takes_back_the_average_range_of_returns_of_every_task(env, poison, iterations):
    env, objective = env(), None
    if poison is Poisoned:
        objective = Poisoned(16 * iterations + 3)
    else:
        env = Tampered(env, poisoned("reward", math.nan, at=STEPS * iterations + 3))
    trainer = make_trainer(env, objective, ppo=PPOConfig(advantage="percentile"))
    assert not trainer.state_dict()["advantage"]["range"].any()
    stopped(trainer, rf"iteration {iterations + 1} on rank 0", iterations)
    # Without the fault it would have moved.
    assert trainer.state_dict()["advantage"]["range"].all() == (iterations > 0)


@pytest.mark.parametrize("network", [SMALL, NORMALIZED])
@pytest.mark.parametrize("iterations", [0, 2])
def test_a_fault_is_caught_in_whichever_iteration_it_comes(iterations, network):
    env = Tampered(Noise(num_envs=4), poisoned("reward", math.nan, at=STEPS * iterations, env=0))
    where = rf"reward of environment 0 at step 0 .*iteration {iterations + 1} on rank 0"
    stopped(make_trainer(env, network=network), where, iterations)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("field", "at"), [("observation", 2 * STEPS - 1), ("final_observation", 19)])
def test_observations_that_are_only_bootstrapped_from_must_be_finite_too(field, at, bad):
    env = Tampered(Chain(num_envs=4), poisoned(field, bad, at))
    stopped(make_trainer(env), r"(observation|value of a successor) of environment 2 .*iteration 2 on rank 0")


class Diverging(Counting):
    """A simulation that has blown up where an episode really ends."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return np.full_like(observation, math.nan) if terminated else observation, reward, terminated, truncated, info


def test_a_real_end_needs_no_final_observation_in_whichever_autoreset_mode():
    ends = []
    for mode in AutoresetMode:
        vector = SyncVectorEnv([lambda: Diverging(plan=((3, "t"), (2, "c")))] * 2, autoreset_mode=mode)
        *_, last = make_trainer(GymnasiumVecEnv(vector), total_steps=64, network=NORMALIZED)
        ends.append(last.step)
    assert min(ends) >= 64


def test_a_reward_that_float32_cannot_hold_is_not_finite():
    def tamper(call, step):
        return step._replace(reward=step.reward.double() * (1e300 if call == STEPS else 1.0))

    stopped(make_trainer(Tampered(Noise(num_envs=4), tamper)), r"reward of environment 0 at step 0")


@pytest.mark.parametrize("scale", [1e38, -1e38])
def test_returns_that_float32_cannot_hold_are_named(scale):
    def tamper(call, step):
        return step._replace(reward=torch.full_like(step.reward, scale if call >= STEPS else 1.0))

    stopped(make_trainer(Tampered(Chain(num_envs=4), tamper)), r"advantage.*iteration 2 on rank 0")


class Indifferent(Noise):
    """Takes real-valued actions and ignores them."""

    action_space = Matching.action_space


class Echo(Indifferent):
    """The next observation is the action."""

    def step(self, action):
        return super().step(action)._replace(observation=action)


@pytest.mark.parametrize("env", [Indifferent, Matching, Echo])
def test_a_log_std_that_is_not_finite_is_found_in_the_actor_and_not_in_what_came_of_it(env):
    trainer = make_trainer(env())
    next(trainer)
    with torch.no_grad():
        trainer.policy.action_head.sigma.log_std.fill_(math.nan)
    moments = {name: x.clone() for name, x in trainer.learner.state_dict().items()}
    with pytest.raises(TrainingFault, match=r"non-finite (action|log-probability|log.std).*iteration 2 on rank 0"):
        next(trainer)
    assert same(moments, trainer.learner.state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("env", [Noise, Chain])
def test_what_a_fault_leaves_can_be_saved_and_reported(env, bad):
    trainer = make_trainer(Tampered(env(num_envs=4), poisoned("reward", bad, at=STEPS + 3)))
    stopped(trainer, "reward of environment 2 at step 3")
    json.dumps(trainer.state_dict()["progress"], allow_nan=False)  # as a checkpoint is written
    assert all(math.isfinite(x) for x in next(trainer).metrics.values())


def test_training_goes_on_where_the_environment_recovers():
    env = Tampered(Noise(num_envs=4), poisoned("reward", math.nan, at=STEPS + 3))
    trainer = make_trainer(env, network=NORMALIZED, total_steps=4 * STEPS * 4)
    stopped(trainer, "reward")
    assert [turn.iteration for turn in trainer] == [2, 3, 4]


class Breaking(ClipObjective):
    """From call number `at` on, the loss or its gradient is not finite; keeps the state from before that call."""

    def __init__(self, at, kind):
        super().__init__(constant(0.2))
        self.at, self.kind, self.calls = at, kind, 0

    def state(self):
        policy = snapshot(self.learner.criterion.policy)
        return {**policy, **{name: x.clone() for name, x in self.learner.state_dict().items()}}

    def __call__(self, new, batch, kl):
        answer, self.calls = super().__call__(new, batch, kl), self.calls + 1
        if self.calls - 1 != self.at:
            return answer
        self.before = self.state()
        # The square root has an infinite slope at 0, which times 0 is NaN.
        bad = (0 * new.log_prob).sqrt() if self.kind == "gradient" else float(self.kind)
        return answer._replace(loss=answer.loss + bad)


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize(
    ("kind", "named"), [("nan", "loss"), ("inf", "loss"), ("-inf", "loss"), ("gradient", "actor gradient")]
)
@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_no_step_is_taken_on_what_is_not_finite_nor_after_it(at, kind, named, space):
    policy, objective = make_policy(space), Breaking(at, kind)
    learner = objective.learner = make_learner(policy, objective)
    start, batch = objective.state(), make_batch(policy, 12)
    learn(learner, batch)
    assert same(objective.before, objective.state())
    assert same(start, objective.state()) == (at == 0)
    faults = {name: bool(x) for name, x in learner.faults().items()}
    assert next(name for name, broken in faults.items() if broken) == named
    assert not faults["critic gradient"]
    # Nothing of it is left in the next iteration.
    learn(learner, batch, iteration=1)
    assert not any(learner.faults().values())
    assert not same(objective.before, objective.state())


@pytest.mark.parametrize(("kind", "named"), [("nan", "loss"), ("gradient", "actor gradient")])
def test_a_step_that_cannot_be_taken_stops_training_and_leaves_what_it_would_have_used(kind, named):
    objective = Breaking(16, kind)  # the first of the second iteration's sixteen minibatches
    trainer = make_trainer(Noise(), objective, network=NORMALIZED)
    objective.learner = trainer.learner
    next(trainer)
    before, x = deepcopy(trainer.state_dict()), torch.randn(5, 1)
    value = trainer.policy.value(x)
    with pytest.raises(TrainingFault, match=rf"non-finite {named}, in iteration 2 on rank 0"):
        next(trainer)
    after = trainer.state_dict()
    # The head's statistics have moved to the targets, its outputs have not.
    kept = [name for name in before["policy"] if not name.startswith("value_head")]
    assert same(*({name: state["policy"][name] for name in kept} for state in (before, after)))
    torch.testing.assert_close(trainer.policy.value(x), value)
    assert after["progress"] == before["progress"]


def test_no_step_is_taken_on_an_unhealthy_rollout():
    policy = make_policy()
    learner = make_learner(policy)
    before = snapshot(policy), {name: x.clone() for name, x in learner.state_dict().items()}
    learn(learner, make_batch(policy, 12), healthy=False)
    assert same(before[0], policy.state_dict())
    assert same(before[1], learner.state_dict())


def test_a_fault_amid_the_minibatches_takes_back_the_steps_of_its_iteration():
    (phase,) = make_trainer(Noise(num_envs=4)).learner.phases
    per_iteration = phase.split.epochs * phase.split.minibatches
    assert per_iteration > 1
    stopped(make_trainer(Noise(num_envs=4), Poisoned(2 * per_iteration - 1)), "loss.*iteration 2 on rank 0")
