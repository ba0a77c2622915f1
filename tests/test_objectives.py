"""What the actor maximises, from evaluation and batch to per-sample losses."""

import pytest
import torch
from torch.testing import assert_close

from levelhead.actions import Evaluation
from levelhead.losses import clip_surrogate
from levelhead.objectives import ClipObjective
from levelhead.schedules import Schedule, constant
from parts import batch_of


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


def test_the_gradient_at_the_old_policy_is_the_policy_gradient():
    new, batch = sample()
    batch = rows(new.log_prob.detach(), batch.advantage)
    ClipObjective(constant(0.2))(new, batch, None).loss.sum().backward()
    assert torch.equal(new.log_prob.grad, -batch.advantage)


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
