"""What the divergence decides: when an iteration's steps end, and how long they are."""

import pytest
import torch

from levelhead.config import CriticConfig, GroupConfig, OptimizerConfig, PPOConfig
from levelhead.divergence import KLControl
from levelhead.phases import Epochs
from levelhead.schedules import Schedule, constant
from parts import CHOICES, REALS, acted_on, configured_learner, learn, make_batch, make_policy
from toys import same, snapshot

EPOCHS, MINIBATCHES = 4, 3
JOINT = CriticConfig()
FAST = OptimizerConfig(learning_rate=constant(1e-2))
every_space = pytest.mark.parametrize("space", [CHOICES, REALS])


def run(space, limit=None, check="minibatch", optimizer=FAST, critic=JOINT, epochs=EPOCHS):
    """One iteration: the learner, its policy, metrics, and the mean divergence before each minibatch's step."""
    policy = make_policy(space, shared=(8,))
    batch = acted_on(policy, make_batch(policy, 24))
    given = {} if limit is None else {"kl_limit": constant(limit), "kl_check": check}
    ppo = PPOConfig(epochs=epochs, minibatches=MINIBATCHES, **given)
    learner = configured_learner(policy, ppo=ppo, optimizer=optimizer, critic=critic)
    seen, watch = [], learner.control.watch
    learner.control.watch = lambda kl: (seen.append(kl.item()), watch(kl))[1]
    return learner, policy, learn(learner, batch), seen


def steps(learner, group="actor"):
    """Taken so far."""
    return learner.state_dict()[f"optimizer.{group}.step"].item()


# -- where steps end ---------------------------------------------------------------------------------------------


@every_space
@pytest.mark.parametrize("at", [2, 5, 8, 12])
def test_a_minibatch_beyond_the_limit_ends_the_steps_before_its_own(space, at):
    *_, free = run(space, limit=1e9)
    assert len(free) == EPOCHS * MINIBATCHES
    # Nothing has moved before the first, so it never ends anything.
    assert free[0] == pytest.approx(0.0, abs=1e-6)
    limit = max(free[:at]) * 0.999
    first = next(i for i, kl in enumerate(free) if kl > limit)
    learner, _, _, seen = run(space, limit)
    assert steps(learner) == steps(learner, "shared") == steps(learner, "critic") == first
    assert seen == free[: first + 1]


@every_space
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_epoch_beyond_the_limit_is_the_last_one(space, at):
    *_, free = run(space, limit=1e9, check="epoch")
    means = [sum(free[i : i + MINIBATCHES]) / MINIBATCHES for i in range(0, len(free), MINIBATCHES)]
    limit = max(means[: at + 1]) * 0.999
    last = next(i for i, kl in enumerate(means) if kl > limit)
    learner, policy, _, _ = run(space, limit, "epoch")
    assert steps(learner) == (last + 1) * MINIBATCHES
    assert same(snapshot(policy), snapshot(run(space, epochs=last + 1)[1]))


@pytest.mark.parametrize("check", ["minibatch", "epoch"])
def test_a_limit_that_is_never_reached_changes_nothing(check):
    assert same(snapshot(run(CHOICES, 1e9, check)[1]), snapshot(run(CHOICES)[1]))


@pytest.mark.parametrize("check", ["minibatch", "epoch"])
def test_every_iteration_starts_anew(check):
    policy = make_policy()
    batch = acted_on(policy, make_batch(policy, 24))
    ppo = PPOConfig(epochs=EPOCHS, minibatches=MINIBATCHES, kl_limit=constant(1e-9), kl_check=check)
    learner = configured_learner(policy, ppo=ppo, optimizer=FAST)
    for iteration in range(3):
        learn(learner, acted_on(policy, batch), iteration=iteration)
        assert steps(learner) == (iteration + 1) * (1 if check == "minibatch" else MINIBATCHES)


@every_space
@pytest.mark.parametrize("check", ["minibatch", "epoch"])
def test_the_critics_own_epochs_go_on_after_the_limit(space, check):
    critic = CriticConfig(epochs_before=1, epochs_after=2, minibatches=4)
    learner, *_ = run(space, 1e-9, check, critic=critic)
    taken = 1 if check == "minibatch" else MINIBATCHES
    assert steps(learner) == steps(learner, "shared") == taken
    assert steps(learner, "critic") == taken + (1 + 2) * 4


@every_space
@pytest.mark.parametrize("at", [2, 6])
def test_metrics_are_those_of_the_steps_that_were_taken(space, at):
    *_, free = run(space, limit=1e9)
    learner, _, metrics, seen = run(space, max(free[:at]) * 0.999)
    taken = int(steps(learner))
    assert 0 < taken < len(free)
    assert metrics["train/kl"].item() == pytest.approx(sum(seen[:taken]) / taken, rel=1e-5, abs=1e-12)


def test_a_step_that_was_refused_is_in_no_metric():
    _, _, metrics, seen = run(CHOICES, limit=1e-9)
    assert len(seen) == 2
    # The one step is taken where nothing has moved.
    assert metrics["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["train/clip_fraction"] == 0


def test_the_limit_follows_its_schedule():
    control = KLControl(Schedule(1.0, 0.1), "minibatch", None)
    for progress, kl, stops in ((0.0, 0.9, False), (1.0, 0.9, True), (1.0, 0.09, False)):
        control.advance(progress)
        control.begin()
        control.watch(torch.tensor(kl))
        assert bool(control.stopped) is stops


ADAPTED = OptimizerConfig(learning_rate=constant(3e-3), kl_target=constant(1e-5))


@pytest.mark.parametrize("limit", [None, 2e-5])
@pytest.mark.parametrize("check", ["minibatch", "epoch"])
@pytest.mark.parametrize("critic", [JOINT, CriticConfig(epochs_after=1)], ids=["joint", "critic after"])
@pytest.mark.parametrize("optimizer", [FAST, ADAPTED], ids=["fixed", "adapted"])
def test_a_device_that_is_not_waited_for_does_the_same(monkeypatch, limit, check, critic, optimizer):
    # On the CPU an iteration's steps are left as soon as they are over; elsewhere they are gone through and skipped.
    def outcome():
        learner, policy, metrics, _ = run(CHOICES, limit, check, optimizer, critic)
        metrics = {name: x.clone() for name, x in metrics.items()}
        return {**snapshot(policy), **{name: x.clone() for name, x in learner.state_dict().items()}, **metrics}

    left = outcome()
    assert limit is None or left["optimizer.actor.step"] < EPOCHS * MINIBATCHES
    monkeypatch.setattr(Epochs, "_over", False)
    gone_through = outcome()
    assert {name for name, x in left.items() if not torch.equal(x, gone_through[name])} == set()


# -- how long they are -------------------------------------------------------------------------------------------


def rsl_rl(kl, rate, target):
    """The rule as published, in plain numbers."""
    if kl > 2 * target:
        return max(1e-5, rate / 1.5)
    if 0 < kl < target / 2:
        return min(1e-2, rate * 1.5)
    return rate


@pytest.mark.parametrize("rate", [1e-5, 1.2e-5, 1e-3, 9e-3, 1e-2])
@pytest.mark.parametrize("kl", [0.0, 1e-9, 0.0049, 0.0051, 0.01, 0.0199, 0.0201, 5.0])
def test_a_rate_follows_the_published_rule(kl, rate):
    control = KLControl(None, "minibatch", constant(0.01))
    factor = control.rate(torch.tensor(kl), torch.tensor(rate)).item()
    assert factor * rate == pytest.approx(rsl_rl(kl, rate, 0.01), rel=1e-5)


@pytest.mark.parametrize("rate", [1e-7, 3e-6, 0.05, 1.0])
def test_on_target_a_rate_stays_as_it_is_wherever_it_is(rate):
    # During warm-up it is small on purpose; lifted to 1e-5 then, it would end that much too high.
    control = KLControl(None, "minibatch", constant(0.01))
    assert control.rate(torch.tensor(0.01), torch.tensor(rate)) == 1.0


@pytest.mark.parametrize("kl", [0.0, 1.0, float("nan")])
def test_without_a_target_rates_are_left_alone(kl):
    assert KLControl(constant(1.0), "minibatch", None).rate(torch.tensor(kl), torch.tensor(0.3)) == 1.0


@every_space
@pytest.mark.parametrize("target", [1e-7, 1e-4, 10.0])
def test_over_an_iteration_the_rate_is_what_the_rule_makes_of_every_minibatch(space, target):
    optimizer = OptimizerConfig(
        learning_rate=constant(1e-3), kl_target=constant(target), shared=GroupConfig(learning_rate=constant(1e-4))
    )
    learner, _, metrics, seen = run(space, optimizer=optimizer)
    expected = 1e-3
    for kl in seen:
        expected = rsl_rl(kl, expected, target)
    rates = {name: rate.tensor.item() for name, rate in learner.optimizer.learning_rates.items()}
    assert len(seen) == EPOCHS * MINIBATCHES
    assert expected != 1e-3
    assert rates == pytest.approx({"actor": expected, "shared": expected / 10, "critic": 1e-3}, rel=1e-4)
    assert metrics["train/learning_rate"].item() == pytest.approx(expected, rel=1e-4)
    # And there it begins the next.
    learner.advance(0.5, 1)
    assert learner.optimizer.learning_rates["actor"].tensor.item() == pytest.approx(expected, rel=1e-4)


def test_only_a_limit_or_a_target_needs_the_divergence():
    assert not KLControl(None, "minibatch", None).needs_kl
    assert KLControl(constant(1.0), "epoch", None).needs_kl
    assert KLControl(None, "minibatch", constant(1.0)).needs_kl
    for objective, options, needed in (
        ("clip", {}, False),
        ("a2c", {"ppo": PPOConfig(epochs=1)}, False),
        ("vpg", {}, False),
        ("kl", {}, True),
        ("trpo", {}, True),
        ("clip", {"optimizer": OptimizerConfig(kl_target=constant(0.01))}, True),
        ("clip", {"ppo": PPOConfig(kl_limit=constant(0.01))}, True),
    ):
        assert configured_learner(make_policy(), objective, **options).needs_kl is needed
