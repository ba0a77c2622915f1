"""Steps on groups of parameters: what is clipped together, what decays, what warms up, and what stays."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from levelhead.config import NetworkConfig, OptimizerConfig, PPOConfig
from levelhead.optimizer import Optimizer, OptimizerSettings
from levelhead.schedules import Schedule, constant
from parts import CHOICES, GROUP, GROUPS, REALS, configured_learner, learn, make_batch, make_policy
from toys import Matching, make_trainer, same, snapshot

ALL = ("shared", "actor", "critic")


def optimizer_of(policy, groups=GROUPS, **settings):
    return Optimizer(policy, OptimizerSettings(groups, **settings))


def loss_of(policy, slopes):
    """A loss whose gradient in all numbers of a group is `slopes[group]`."""
    return sum(slopes[name] * p.sum() for name, group in policy.groups().items() for p in group)


def step(optimizer, loss, groups, stopped=None):
    """One step down a loss's gradient; what `follow` answers."""
    optimizer.backward(loss)
    return optimizer.follow(loss.detach(), groups, stopped)


def gradients(optimizer):
    return {name: flat.gradient.clone() for name, flat in optimizer.flat.items()}


# -- clipping ----------------------------------------------------------------------------------------------------

SLOPES = {"shared": 0.01, "actor": 1.0, "critic": 100.0}


def test_a_global_clip_scales_all_groups_by_one_factor():
    policy = make_policy(shared=(8,))
    optimizer = optimizer_of(policy, max_grad_norm=0.5)
    norms = step(optimizer, loss_of(policy, SLOPES), ALL)[1:]
    got = gradients(optimizer)
    for norm, (name, flat) in zip(norms, optimizer.flat.items(), strict=True):
        assert norm.item() == pytest.approx(SLOPES[name] * flat.parameter.numel() ** 0.5, rel=1e-5)
    whole = norms.norm().item()
    for name, gradient in got.items():
        assert_close(gradient, torch.full_like(gradient, SLOPES[name] * 0.5 / whole))
    assert torch.cat(list(got.values())).norm().item() == pytest.approx(0.5, rel=1e-5)


def test_a_separate_clip_scales_each_by_its_own():
    policy = make_policy(shared=(8,))
    limits = {"shared": 0.2, "actor": 0.3, "critic": 0.4}
    groups = {name: replace(GROUP, max_grad_norm=limit) for name, limit in limits.items()}
    optimizer = optimizer_of(policy, groups)
    norms = step(optimizer, loss_of(policy, {**SLOPES, "shared": 1e-4}), ALL)[1:]
    assert norms[0] < 0.2
    got = gradients(optimizer)
    assert got["shared"].norm().item() == pytest.approx(norms[0].item(), rel=1e-5)  # short enough
    for name in ("actor", "critic"):
        assert got[name].norm().item() == pytest.approx(limits[name], rel=1e-5)


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_gradient_that_is_short_enough_or_0_stays(limit):
    for slope in (1e-4, 0.0):
        policy = make_policy()
        optimizer = optimizer_of(policy, max_grad_norm=limit)
        step(optimizer, loss_of(policy, {"actor": slope, "critic": slope}), ("actor", "critic"))
        assert all((gradient == slope).all() for gradient in gradients(optimizer).values())


def test_a_global_clip_is_that_of_the_groups_that_move():
    policy = make_policy()
    optimizer = optimizer_of(policy, max_grad_norm=0.5)
    step(optimizer, loss_of(policy, {"actor": 1.0, "critic": 1e6}), ("actor",))
    assert optimizer.flat["actor"].gradient.norm().item() == pytest.approx(0.5, rel=1e-5)


# -- weight decay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_matrices_alone_decay(space):
    policy = make_policy(space, shared=(8,))
    torch.nn.init.ones_(policy.value_head.linear.bias)
    optimizer, before = optimizer_of(policy, weight_decay=0.5), snapshot(policy)
    step(optimizer, loss_of(policy, dict.fromkeys(ALL, 0.0)), ALL)
    for name, p in policy.named_parameters():
        factor = 1 - 0.5 * 1e-2 if p.ndim > 1 else 1.0
        assert_close(p.detach(), before[name] * factor, rtol=1e-6, atol=0)
        assert (p.ndim > 1) == name.endswith("weight"), name


@pytest.mark.parametrize("decay", [0.0, 0.1, 10.0])
def test_it_is_that_of_adamw(decay):
    policy = make_policy(REALS, shared=(8,))
    reference = copy.deepcopy(policy)
    optimizer = optimizer_of(policy, weight_decay=decay)
    kinds = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(kinds, lr=1e-2, eps=1e-5)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        slopes = [0.01 * torch.randn(p.shape, generator=generator) for p in policy.parameters()]
        step(optimizer, sum((s * p).sum() for s, p in zip(slopes, policy.parameters(), strict=True)), ALL)
        for p, slope in zip(reference.parameters(), slopes, strict=True):
            p.grad = slope
        theirs.step()
    for ours, other in zip(policy.parameters(), reference.parameters(), strict=True):
        assert_close(ours, other, rtol=1e-5, atol=1e-6)


def test_decay_and_the_rewrite_of_the_value_layer_commute():
    x, outputs = torch.randn(5, 8, generator=torch.Generator().manual_seed(2)), []
    for decay_first in (True, False):
        policy = make_policy()
        optimizer, head = optimizer_of(policy, weight_decay=20.0), policy.value_head
        head.update(torch.randn(40, generator=torch.Generator().manual_seed(1)))
        torch.nn.init.constant_(head.linear.bias, 0.3)
        outputs.append(head(x).detach())

        def decay(policy=policy, optimizer=optimizer):
            step(optimizer, loss_of(policy, {"actor": 0.0, "critic": 0.0}), ("actor", "critic"))

        def rewrite(head=head):
            head.update(1e3 + 50 * torch.randn(40, generator=torch.Generator().manual_seed(3)))

        for change in (decay, rewrite) if decay_first else (rewrite, decay):
            change()
        outputs.append(head(x).detach())
    assert_close(outputs[1], outputs[3], rtol=1e-4, atol=1e-3)
    assert (outputs[1] - outputs[0]).abs().max() > 0.1


def trained(scale, **options):
    trainer = make_trainer(Matching(scale=scale), total_steps=3 * 128, **options)
    list(trainer)
    return trainer.policy


@pytest.mark.parametrize("value", ["popart", "runningnorm", "hlgauss"])
@pytest.mark.parametrize("clip", ["separate", "global"])
@pytest.mark.parametrize("exponent", [20, -20])
def test_the_scale_promise_holds_with_decay_either_clip_and_warm_up(value, clip, exponent):
    settings = OptimizerConfig(learning_rate=constant(1e-2), weight_decay=0.1, clip=clip, warmup=1)
    options = {"value": value, "optimizer": settings, "network": NetworkConfig(shared=(8,), actor=(8,), critic=(8,))}
    plain, scaled = (trained(s, **options) for s in (1.0, 2.0**exponent))
    for (name, one), other in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_step_that_is_skipped_takes_no_weight_away():
    policy = make_policy()
    optimizer, before = optimizer_of(policy, weight_decay=0.5), snapshot(policy)
    slopes = {"actor": 1.0, "critic": 1.0}
    step(optimizer, loss_of(policy, slopes), ("actor", "critic"), stopped=torch.tensor(1.0))
    optimizer.begin(torch.tensor(False))
    step(optimizer, loss_of(policy, slopes), ("actor", "critic"))
    assert same(before, snapshot(policy))
    optimizer.begin(torch.tensor(True))
    step(optimizer, loss_of(policy, slopes), ("actor", "critic"), stopped=torch.tensor(0.0))
    assert not same(before, snapshot(policy))


# -- learning rates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "shares"), [(0, [1, 1, 1]), (1, [1 / 2, 1, 1]), (3, [1 / 4, 2 / 4, 3 / 4, 1, 1])])
def test_learning_rates_rise_to_their_schedules_in_equal_parts(warmup, shares):
    schedule = Schedule(1e-2, 0.0)
    policy = make_policy(shared=(8,))
    optimizer = optimizer_of(policy, {name: replace(GROUP, learning_rate=schedule) for name in ALL}, warmup=warmup)
    for iteration, share in enumerate(shares):
        optimizer.advance(iteration / 10, iteration)
        for rate in optimizer.learning_rates.values():
            assert rate.tensor.item() == pytest.approx(share * schedule(iteration / 10), rel=1e-6)


def test_a_factor_is_for_the_acting_groups_and_stays():
    policy = make_policy(shared=(8,))
    optimizer = optimizer_of(policy, warmup=1)
    optimizer.advance(0.0, 0)
    for factor in (3.0, 0.5):
        optimizer.adapt(torch.tensor(factor))

    def rates():
        return {name: rate.tensor.item() for name, rate in optimizer.learning_rates.items()}

    assert rates() == pytest.approx({"shared": 0.75e-2, "actor": 0.75e-2, "critic": 0.5e-2})
    optimizer.advance(0.5, 1)
    assert rates() == pytest.approx({"shared": 1.5e-2, "actor": 1.5e-2, "critic": 1e-2})
    other = optimizer_of(make_policy(shared=(8,)))
    other.load_state_dict(optimizer.state_dict())
    assert other.rate_factor == 1.5


# -- some of the groups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [("actor",), ("critic",), ("shared", "actor"), ("shared", "critic")])
def test_groups_that_are_not_named_stay_with_their_moments(groups):
    policy = make_policy(shared=(8,))
    optimizer = optimizer_of(policy, weight_decay=0.1)
    slopes = dict.fromkeys(ALL, 1.0)
    step(optimizer, loss_of(policy, slopes), ALL)
    flat = {name: part.parameter.detach().clone() for name, part in optimizer.flat.items()}
    moments = {name: x.clone() for name, x in optimizer.state_dict().items()}
    step(optimizer, loss_of(policy, slopes), groups)
    for name in ALL:
        assert torch.equal(flat[name], optimizer.flat[name].parameter) == (name not in groups), name
    for name, x in optimizer.state_dict().items():
        group = name.partition(".")[0]
        assert torch.equal(x, moments[name]) == (group not in groups), name


def test_a_gradient_left_by_one_step_is_not_in_the_next():
    policy, other = make_policy(), make_policy()
    optimizers = optimizer_of(policy), optimizer_of(other)
    step(optimizers[0], loss_of(policy, {"actor": 5.0, "critic": 7.0}), ("actor",))
    step(optimizers[0], loss_of(policy, {"actor": 0.0, "critic": 1e-3}), ("critic",))
    step(optimizers[1], loss_of(other, {"actor": 0.0, "critic": 1e-3}), ("critic",))
    assert torch.equal(optimizers[0].flat["critic"].parameter, optimizers[1].flat["critic"].parameter)


# -- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("where", ALL)
def test_a_gradient_that_is_not_finite_is_named_and_stops_all_that_follow(bad, clip, where):
    policy = make_policy(shared=(8,))
    optimizer = optimizer_of(policy, max_grad_norm=clip, weight_decay=0.1)
    optimizer.begin(torch.tensor(True))
    before = snapshot(policy)
    slope = (policy.groups()[where][0] - policy.groups()[where][0].detach()).sum()
    slope.register_hook(lambda gradient: gradient * bad)  # of a loss that is finite
    step(optimizer, loss_of(policy, dict.fromkeys(ALL, 0.1)) + slope, ALL)
    step(optimizer, loss_of(policy, dict.fromkeys(ALL, 0.1)), ("actor",))
    faults = {name for name, broken in optimizer.faults().items() if broken}
    assert faults == {f"{where} gradient"}
    assert same(before, snapshot(policy))


def test_a_fault_of_any_step_is_told_under_its_name_until_the_next_iteration():
    policy = make_policy()
    optimizer = optimizer_of(policy)
    optimizer.begin(torch.tensor(True))
    step(optimizer, loss_of(policy, {"actor": 1.0, "critic": 1.0}), ("actor", "critic"))
    assert not any(optimizer.faults().values())
    step(optimizer, loss_of(policy, {"actor": 1.0, "critic": 1.0}) * math.nan, ("critic",))
    assert {name for name, broken in optimizer.faults().items() if broken} == {"loss", "critic gradient"}
    before = snapshot(policy)
    optimizer.begin(torch.tensor(True))
    assert not any(optimizer.faults().values())
    step(optimizer, loss_of(policy, {"actor": 1.0, "critic": 1.0}), ("actor", "critic"))
    assert not same(before, snapshot(policy))


def test_what_is_checked_beside_losses_blocks_steps_too():
    policy = make_policy()
    optimizer, before = optimizer_of(policy), snapshot(policy)
    optimizer.begin(torch.tensor(True))
    assert optimizer.check(("one", "two"), torch.tensor([1.0, 2.0]))
    assert not optimizer.check(("one", "two"), torch.tensor([1.0, math.nan]))
    assert not optimizer.check(("one", "two"), torch.tensor([1.0, 2.0]))
    step(optimizer, loss_of(policy, {"actor": 1.0, "critic": 1.0}), ("actor", "critic"))
    assert {name for name, broken in optimizer.faults().items() if broken} == {"two"}
    assert same(before, snapshot(policy))


def test_the_config_decides_clip_decay_and_warm_up():
    settings = OptimizerConfig(clip="global", max_grad_norm=0.7, weight_decay=0.2, warmup=4)
    optimizer = configured_learner(make_policy(), optimizer=settings).optimizer.settings
    assert (optimizer.max_grad_norm, optimizer.weight_decay, optimizer.warmup) == (0.7, 0.2, 4)
    assert configured_learner(make_policy()).optimizer.settings.max_grad_norm is None


def test_a_learner_of_several_phases_knows_the_faults_of_all():
    policy = make_policy()
    learner = configured_learner(policy, "vpg", ppo=PPOConfig(epochs=2, minibatches=2))
    batch = make_batch(policy, 8)
    learn(learner, replace(batch, target=batch.target * math.nan))
    assert {name for name, broken in learner.faults().items() if broken} == {"loss", "critic gradient"}
