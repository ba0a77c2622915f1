"""What the actor maximises, from evaluation and batch to per-sample losses."""

import pytest
import torch
from torch.testing import assert_close

from levelhead.actions import Evaluation
from levelhead.losses import clip_surrogate
from levelhead.objectives import (
    A2CObjective,
    ClipObjective,
    KLObjective,
    TrustRegionObjective,
    VPGObjective,
)
from levelhead.schedules import Schedule, constant
from parts import acted_on, batch_of, configured_learner, learn, make_batch, make_policy
from toys import same


def rows(log_prob, advantage):
    nothing = torch.zeros(len(log_prob))
    batch = batch_of(nothing.unsqueeze(1), nothing, log_prob, advantage, nothing, nothing)
    return batch.take(torch.arange(len(log_prob)))


def sample(seed=0, size=200):
    generator = torch.Generator().manual_seed(seed)
    old, move, advantage = torch.randn(3, size, generator=generator)
    new = (old + 0.3 * move).requires_grad_()
    return Evaluation(new, torch.zeros(size), None), rows(old, advantage)


def test_the_loss_is_the_negative_clipped_surrogate_of_the_probability_ratio():
    new, batch = sample()
    ratio = new.log_prob.exp() / batch.log_prob.exp()
    got = ClipObjective(constant(0.2))(new, batch, None)
    assert_close(got.loss, -clip_surrogate(ratio, batch.advantage, 0.2), rtol=1e-5, atol=1e-6)
    (clipped,) = got.metrics
    assert_close(clipped, ((ratio < 0.8) | (ratio > 1.2)).float())
    assert 0 < clipped.mean() < 1


OBJECTIVES = {
    "clip": lambda: ClipObjective(constant(0.2)),
    "dual clip": lambda: ClipObjective(constant(0.2), dual=3.0),
    "kl": lambda: KLObjective(constant(0.01)),
    "trpo": lambda: TrustRegionObjective(constant(0.01)),
    "a2c": A2CObjective,
    "vpg": VPGObjective,
}


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_gradient_at_the_old_policy_is_the_policy_gradient(make):
    new, batch = sample()
    batch = rows(new.log_prob.detach(), batch.advantage)
    # The divergence of a policy from itself is 0, and as flat as it can be.
    kl = 0.5 * (new.log_prob - batch.log_prob).square()
    make()(new, batch, kl).loss.sum().backward()
    assert torch.equal(new.log_prob.grad, -batch.advantage)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_names_its_metrics_and_what_it_needs(make):
    objective = make()
    new, batch = sample()
    kl = torch.rand(200, generator=torch.Generator().manual_seed(1)) if objective.needs_kl else None
    answer = objective(new, batch, kl)
    assert len(answer.metrics) == len(objective.metric_names)
    assert answer.loss.shape == (200,)
    assert all(x.shape == (200,) and not x.requires_grad for x in answer.metrics)


def test_only_the_loss_carries_a_gradient():
    got = ClipObjective(constant(0.2))(*sample(), None)
    assert got.loss.requires_grad
    assert not any(x.requires_grad for x in got.metrics)


def test_nothing_is_clipped_where_the_policy_has_not_moved():
    new, batch = sample()
    got = ClipObjective(constant(0.2))(new, rows(new.log_prob.detach(), batch.advantage), None)
    assert (got.metrics[0] == 0).all()


@pytest.mark.parametrize(("progress", "width"), [(0.0, 0.4), (0.5, 0.3), (1.0, 0.2), (2.0, 0.2)])
def test_the_clip_range_follows_its_schedule(progress, width):
    objective = ClipObjective(Schedule(0.4, 0.2))
    objective.advance(progress)
    new, batch = sample()
    ratio = (new.log_prob - batch.log_prob).exp()
    assert_close(objective(new, batch, None).loss, -clip_surrogate(ratio, batch.advantage, width), rtol=1e-5, atol=1e-6)


# -- the policy gradient -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [A2CObjective, VPGObjective])
def test_the_gradient_is_that_of_the_log_probability_wherever_the_policy_is(kind):
    new, batch = sample()
    kind()(new, batch, None).loss.sum().backward()
    assert (new.log_prob - batch.log_prob).abs().max() > 0.5
    assert torch.equal(new.log_prob.grad, -batch.advantage)


def test_that_of_a_trust_region_has_the_ratio_in_it():
    new, batch = sample()
    TrustRegionObjective(constant(0.01))(new, batch, None).loss.sum().backward()
    ratio = (new.log_prob.detach() - batch.log_prob).exp()
    assert_close(new.log_prob.grad, -ratio * batch.advantage)


# -- dual clip ---------------------------------------------------------------------------------------------------


def test_a_dual_clip_bounds_what_a_bad_action_can_cost():
    new, batch = sample(size=2000)
    new = new._replace(log_prob=(batch.log_prob + 5 * (new.log_prob - batch.log_prob)).detach().requires_grad_())
    plain, dual = (ClipObjective(constant(0.2), dual=bound)(new, batch, None) for bound in (None, 2.0))
    bad, ratio = batch.advantage < 0, (new.log_prob - batch.log_prob).exp()
    beyond = bad & (ratio > 2)
    assert 0 < beyond.sum() < len(beyond)
    assert torch.equal(dual.loss[~beyond], plain.loss[~beyond])
    assert_close(dual.loss[beyond], -2 * batch.advantage[beyond])
    assert torch.equal(dual.metrics[0], plain.metrics[0])
    dual.loss.sum().backward()
    assert (new.log_prob.grad[beyond] == 0).all()


# -- the penalty on the divergence -------------------------------------------------------------------------------


def weighted(weight, target=0.01):
    objective = KLObjective(constant(target))
    objective.weight.fill_(weight)
    return objective


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_the_penalty_is_the_weighted_divergence(weight):
    new, batch = sample()
    kl = torch.rand(200, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = weighted(weight)(new, batch, kl).loss
    ratio = (new.log_prob - batch.log_prob).exp()
    assert_close(loss, weight * kl - ratio * batch.advantage)
    loss.sum().backward()
    assert_close(kl.grad, torch.full_like(kl, weight))
    assert_close(new.log_prob.grad, -(ratio * batch.advantage).detach())


def test_a_penalty_without_the_divergence_is_refused():
    with pytest.raises(ValueError, match="needs the divergence"):
        KLObjective(constant(0.01))(*sample(), None)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1), (0.01, 1), (0.0149, 1), (0.0151, 2), (9.0, 2), (float("nan"), 1)],
)
@pytest.mark.parametrize("weight", [0.25, 1.0, 40.0])
def test_the_weight_doubles_or_halves_where_the_target_is_missed_by_half(kl, factor, weight):
    objective = weighted(weight)
    # What is reported is the weight that was used.
    assert objective.adapt(torch.tensor(kl))["train/kl_coef"] == weight
    assert objective.weight == weight * factor


@pytest.mark.parametrize(("kl", "bound"), [(1.0, KLObjective.BOUNDS[1]), (0.0, KLObjective.BOUNDS[0])])
def test_the_weight_stays_between_bounds_and_comes_back_at_once(kl, bound):
    objective = weighted(1.0)
    for _ in range(30):
        objective.adapt(torch.tensor(kl))
    assert objective.weight == bound
    objective.adapt(torch.tensor(1.0 - kl))
    assert objective.weight == bound * (0.5 if kl else 2.0)


def test_the_target_follows_its_schedule():
    objective = KLObjective(Schedule(0.1, 0.001))
    for progress, weight in ((0.0, 0.5), (1.0, 1.0)):
        objective.advance(progress)
        objective.adapt(torch.tensor(0.01))
        assert objective.weight == weight


def test_the_weight_is_its_state_and_stays_the_tensor_it_was():
    one, other = weighted(1.0), weighted(1.0)
    place = one.weight.data_ptr()
    one.adapt(torch.tensor(1.0))
    assert one.weight.data_ptr() == place
    other.load_state_dict(one.state_dict())
    assert other.weight == 2.0
    with pytest.raises(ValueError, match="KLObjective"):
        other.load_state_dict({})


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "kl"])
def test_the_others_have_no_state(name):
    assert OBJECTIVES[name]().state_dict() == {}


def test_an_iteration_of_the_learner_tells_the_penalty_how_far_the_policy_is():
    policy = make_policy()
    batch = acted_on(policy, make_batch(policy, 12))
    learner = configured_learner(policy, "kl")
    metrics = learn(learner, batch)
    with torch.no_grad():
        x = batch.take(torch.arange(12))
        features, _ = policy.features(x.observation, x.state, x.begins)
        now = policy.action_head.evaluate(features, x.action).parameters
        assert_close(metrics["train/kl"], policy.action_head.kl(x.parameters, now).mean())
    assert metrics["train/kl"] < 0.01 / 1.5
    assert metrics["train/kl_coef"] == 1.0
    assert learner.state_dict()["objective.weight"] == 0.5
    other = configured_learner(make_policy(), "kl")
    other.load_state_dict(learner.state_dict())
    assert same(other.state_dict(), learner.state_dict())
    assert learn(other, batch)["train/kl_coef"] == 0.5
