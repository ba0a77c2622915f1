"""Epochs of minibatches: which rows count, what is clipped, and what stops a step."""

from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Tuple

from levelhead.config import ActionConfig, ValueKind
from levelhead.objectives import ClipObjective
from levelhead.schedules import Schedule, constant
from parts import CHOICES, GROUP, REALS, HostReads, Probe, learn, make_batch, make_learner, make_policy
from toys import same, snapshot

SPLITS = [(12, 4), (10, 3), (7, 7), (9, 2), (5, 4), (8, 1)]


@pytest.mark.parametrize(("rows", "minibatches"), SPLITS)
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_every_valid_row_counts_once_per_epoch_and_no_other_does(rows, minibatches, share):
    policy, probe = make_policy(), Probe()
    batch = make_batch(policy, rows)
    valid = torch.arange(rows) < rows * share
    learn(make_learner(policy, probe, epochs=3, minibatches=minibatches), batch, valid)
    seen = probe.minibatches(batch)
    assert len(seen) == 3 * minibatches
    assert len({len(index) for index, _ in seen}) == 1
    for epoch in range(3):
        counted = []
        for index, weight in seen[epoch * minibatches : (epoch + 1) * minibatches]:
            mine = [i for i, w in zip(index, weight, strict=True) if w != 0]
            counted += mine
            assert mine or share < 1.0
            assert all(w == pytest.approx(1 / len(mine)) for w in weight if w != 0)
        assert sorted(counted) == valid.nonzero().flatten().tolist()


def orders(seed, iteration, epochs=2):
    policy, probe = make_policy(), Probe()
    batch = make_batch(policy, 12)
    learn(make_learner(policy, probe, seed, epochs=epochs, minibatches=1), batch, iteration=iteration)
    return [tuple(index) for index, _ in probe.minibatches(batch)]


def test_every_epoch_of_every_iteration_has_an_order_of_its_own_decided_by_the_seed():
    every = [order for seed in (1, 2) for iteration in (0, 1) for order in orders(seed, iteration)]
    assert len(set(every)) == len(every) == 8
    assert orders(1, 1) == every[2:4]


def altered(batch, rows, bad):
    """`batch` with something else in `rows`; actions stay legal."""

    def change(x):
        x = x.clone()
        x[:, rows] = bad if x.is_floating_point() else 0
        return x

    given = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: change(x) for name, x in given.items() if isinstance(x, torch.Tensor)})


@pytest.mark.parametrize("space", [CHOICES, REALS])
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("bad", [1.0, -50.0, float("nan"), float("inf")])
def test_rows_that_are_not_valid_have_no_influence_whatever_they_hold(space, tasks, bad):
    policy, other = make_policy(space, tasks=tasks), make_policy(space, tasks=tasks)
    batch, valid = make_batch(policy, 10), torch.tensor([True, True, False, True, False] * 2)
    learners = make_learner(policy), make_learner(other)
    one = learn(learners[0], batch, valid)
    two = learn(learners[1], altered(batch, ~valid, bad), valid)
    assert not any(learners[1].faults().values())
    assert same(policy.state_dict(), other.state_dict())
    assert same(one, two)


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_a_huge_critic_gradient_does_not_reach_the_actor(space):
    policy, other = make_policy(space), make_policy(space)
    batch = make_batch(policy, 12)
    learn(make_learner(policy), batch)
    metrics = learn(make_learner(other), replace(batch, target=1e12 * batch.target))
    assert metrics["grad/critic_norm"] > 1e10
    for (name, x), y in zip(policy.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y) == ("actor" in name or "action" in name), name


@pytest.mark.parametrize("shared", [(), (8,)])
def test_each_group_is_clipped_to_its_own_norm_and_reported_unclipped(shared):
    policy = make_policy(shared=shared)
    limits = {"shared": 1e-3, "actor": 2e-3, "critic": 4e-3}
    groups = {name: replace(GROUP, max_grad_norm=limit) for name, limit in limits.items()}
    learner = make_learner(policy, epochs=1, minibatches=1, groups=groups)
    metrics = learn(learner, make_batch(policy, 12))
    assert set(learner.optimizer.flat) == (set(limits) if shared else {"actor", "critic"})
    for name, flat in learner.optimizer.flat.items():
        assert flat.gradient.norm().item() == pytest.approx(limits[name], rel=1e-4)
        assert metrics[f"grad/{name}_norm"] > limits[name]


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_parameters_and_moments_stay_the_tensors_they_were(space):
    policy = make_policy(space, shared=(8,))
    learner = make_learner(policy)

    def places():
        named = {**dict(policy.named_parameters()), **learner.state_dict()}
        return {name: (id(x), x.data_ptr()) for name, x in named.items() if isinstance(x, torch.Tensor)}

    before, values = places(), snapshot(policy)
    learn(learner, make_batch(policy, 12))
    assert places() == before
    for name, x in policy.named_parameters():
        assert not torch.equal(x, values[name]), name


def test_the_moments_of_the_value_layer_follow_when_it_is_rewritten():
    policy = make_policy()
    learner, head = make_learner(policy), policy.value_head
    head.update(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    learn(learner, make_batch(policy, 12))
    before = {name: x.clone() for name, x in learner.state_dict().items()}
    std = head.std.clone()
    head.update(1e3 * torch.randn(50, generator=torch.Generator().manual_seed(1)))
    ratio = (std / head.std).item()
    assert ratio < 0.1
    layer = head.linear.weight.numel() + head.linear.bias.numel()  # the end of the critic's group
    for name, power in (("optimizer.critic.exp_avg", 1), ("optimizer.critic.exp_avg_sq", 2)):
        before[name][-layer:] *= ratio**power
    after = learner.state_dict()
    for name, x in before.items():
        torch.testing.assert_close(after[name], x, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("value", get_args(ValueKind))
def test_the_loss_of_a_task_moves_its_own_output_alone(value):
    policy = make_policy(tasks=3, value=value)
    layer = policy.value_head.linear
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    batch = make_batch(policy, 12)
    learn(make_learner(policy), replace(batch, task=torch.ones_like(batch.task)))
    for now, then in zip((layer.weight, layer.bias), before, strict=True):
        # The rows of a head of several bins are ordered by output, then by bin.
        moved = (now != then).unflatten(0, (3, -1)).flatten(1).any(1)
        assert moved.tolist() == [False, True, False]


@pytest.mark.parametrize("space", [CHOICES, REALS])
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("value", get_args(ValueKind))
def test_learning_never_waits_for_the_device(space, tasks, value):
    policy = make_policy(space, tasks=tasks, value=value)
    clip = constant(0.2) if policy.value_head.squared else None
    learner, batch = make_learner(policy, value_clip=clip), make_batch(policy, 10)
    with HostReads() as counter:
        learn(learner, batch)
    assert counter.operations > 100
    assert counter.reads == []
    with counter:
        bool(batch.advantage.isfinite().all())
    assert counter.reads != []


def test_metrics_are_means_over_the_rows():
    policy = make_policy(REALS)
    batch = make_batch(policy, 12)
    with torch.no_grad():
        policy.action_head.sigma.log_std.copy_(torch.tensor([0.1, -0.5, 0.7]))
        rows = batch.take(torch.arange(12))
        actor, critic = policy.features(rows.observation, rows.state, rows.begins)
        ratio = (policy.action_head.evaluate(actor, rows.action).log_prob - rows.log_prob).exp()
        surrogate = torch.minimum(ratio * rows.advantage, ratio.clamp(0.8, 1.2) * rows.advantage).mean()
        error = (policy.value_head.forward_normalized(critic).squeeze(-1) - rows.target).square().mean()
        distribution = torch.distributions.Normal(torch.zeros(3), policy.action_head.sigma.log_std.exp())
        entropy = distribution.entropy().sum()  # over dimensions: not their mean
    got = learn(make_learner(policy, epochs=1, minibatches=1, value_coef=constant(0.7)), batch)
    assert got["train/policy_gradient_loss"] == pytest.approx(-surrogate.item(), rel=1e-4)
    assert got["train/value_loss"] == pytest.approx(error.item(), rel=1e-4)
    assert got["entropy/action"] == pytest.approx(entropy.item(), rel=1e-5)
    assert got["train/entropy_loss"] == -got["entropy/action"]
    assert got["train/loss"] == pytest.approx((-surrogate + 0.7 * error - 0.1 * entropy).item(), rel=1e-4)
    assert got["train/clip_fraction"] == pytest.approx(((ratio - 1).abs() > 0.2).float().mean().item())
    assert got["train/approx_kl"] == pytest.approx((ratio - 1 - ratio.log()).mean().item(), rel=1e-3)


def test_the_entropy_of_several_heads_is_told_by_head():
    policy = make_policy(Tuple([Discrete(3), Box(-1.0, 1.0, (2,))]), action=ActionConfig(gates={"1": {"0": [0]}}))
    got = learn(make_learner(policy, epochs=1, minibatches=1), make_batch(policy, 6))
    assert got["entropy/0"] + got["entropy/1"] == pytest.approx(got["entropy/action"].item(), rel=1e-6)
    assert got["entropy/0"] == pytest.approx(np.log(3), rel=1e-2)  # nearly uniform at the start
    assert got["entropy/1"] == pytest.approx((1 + np.log(2 * np.pi)) / 3, rel=1e-2)  # a third of the time


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0, 1.5])
def test_every_rate_and_coefficient_follows_its_own_schedule(progress):
    schedules = {"shared": Schedule(0.5, 0.25), "actor": Schedule(1e-2, 0.0), "critic": constant(1e-3)}
    groups = {name: replace(GROUP, learning_rate=rate) for name, rate in schedules.items()}
    objective, policy = ClipObjective(Schedule(0.2, 0.1)), make_policy(shared=(8,))
    coefficients = {"entropy_coef": Schedule(0.05, 0.001), "value_coef": Schedule(1.0, 2.0)}
    learner = make_learner(policy, objective, epochs=1, minibatches=1, groups=groups, **coefficients)
    learner.advance(progress, 0)
    metrics = learn(learner, make_batch(policy, 12))
    for name, rate in schedules.items():
        assert learner.optimizer.learning_rates[name].tensor == pytest.approx(rate(progress))
        assert learner.optimizer.learning_rates[name].tensor >= 0
    assert metrics["train/learning_rate"] == pytest.approx(schedules["actor"](progress))
    assert metrics["train/entropy_coef"] == pytest.approx(Schedule(0.05, 0.001)(progress))
    assert objective.clip_range.tensor == pytest.approx(Schedule(0.2, 0.1)(progress))
    entropy, value = (coefficients[name](progress) for name in ("entropy_coef", "value_coef"))
    parts = metrics["train/policy_gradient_loss"] + value * metrics["train/value_loss"]
    assert metrics["train/loss"] == pytest.approx(parts.item() - entropy * metrics["entropy/action"].item(), rel=1e-4)


def test_a_learner_that_was_never_advanced_is_at_the_beginning_of_its_schedules():
    changes = {"entropy_coef": Schedule(0.5, 0.0), "value_coef": Schedule(0.25, 1.0), "value_clip": Schedule(0.1, 0.9)}
    policies = make_policy(), make_policy()
    learners = [make_learner(policy, **changes) for policy in policies]
    learners[0].advance(0.0, 0)
    for learner, policy in zip(learners, policies, strict=True):
        learn(learner, make_batch(policy, 12))
    assert same(policies[0].state_dict(), policies[1].state_dict())


def test_a_learning_rate_of_zero_holds_its_group_still():
    policy = make_policy()
    before = snapshot(policy)
    still = replace(GROUP, learning_rate=constant(0.0))
    learn(make_learner(policy, groups={"actor": still, "critic": GROUP}), make_batch(policy, 12))
    for name, x in policy.named_parameters():
        assert torch.equal(x, before[name]) == ("actor" in name or "action" in name), name
