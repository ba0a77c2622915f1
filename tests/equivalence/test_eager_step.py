"""The learner's epochs over flat tensors against the same update written out with plain PyTorch in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from levelhead.schedules import constant
from parts import CHOICES, GROUP, REALS, Probe, learn, make_batch, make_learner, make_policy, run_torso

GROUPS = {
    "shared": replace(GROUP, learning_rate=constant(2e-3), eps=1e-4, max_grad_norm=0.3),
    "actor": replace(GROUP, learning_rate=constant(1e-3), eps=1e-3, max_grad_norm=0.2),
    "critic": replace(GROUP, learning_rate=constant(4e-3), eps=1e-2, max_grad_norm=1.0),
}


def distribution(policy, features):
    head = policy.action_head
    if hasattr(head, "sigma"):
        return Independent(Normal(head.linear(features), head.sigma.log_std.exp()), 1)
    return Categorical(logits=head.linear(features))


def plain_update(policy, batch, minibatches, value_clip, entropy_coef, value_coef):
    """PPO on the given minibatches of row indices, the policy's parameters being optimised one by one."""
    batch = batch.take(torch.arange(batch.advantage.shape[1]))
    groups = policy.groups()
    optimizer = torch.optim.Adam(
        [
            {"params": parameters, "lr": GROUPS[name].learning_rate(0.0), "eps": GROUPS[name].eps}
            for name, parameters in groups.items()
        ],
        foreach=False,
    )
    for rows in minibatches:
        shared = run_torso(policy.network.shared, batch.observation[rows].double())
        pi = distribution(policy, run_torso(policy.network.actor, shared))
        action = batch.action[rows]
        ratio = (pi.log_prob(action.double() if action.is_floating_point() else action) - batch.log_prob[rows]).exp()
        advantage = batch.advantage[rows].double()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        z = policy.value_head.linear(run_torso(policy.network.critic, shared))
        z = z.squeeze(-1) if batch.task is None else z[torch.arange(len(rows)), batch.task[rows]]
        y, old = batch.target[rows].double(), batch.old_value[rows].double()
        error = (z - y).square()
        if value_clip is not None:
            error = torch.maximum(error, (old + (z - old).clamp(-value_clip, value_clip) - y).square())
        loss = (-surrogate + value_coef * error - entropy_coef * pi.entropy()).mean()
        optimizer.zero_grad()
        loss.backward()
        for name, parameters in groups.items():
            norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
            for p in parameters:
                p.grad.mul_(min(1.0, GROUPS[name].max_grad_norm / float(norm)))
        optimizer.step()


@pytest.mark.parametrize("space", [CHOICES, REALS])
@pytest.mark.parametrize("shared", [(), (8,)])
@pytest.mark.parametrize("value_clip", [None, 0.3])
@pytest.mark.parametrize(("rows", "share", "tasks"), [(24, 1.0, 1), (23, 0.7, 1), (23, 0.7, 3)])
def test_the_learner_does_what_plain_pytorch_does(space, shared, value_clip, rows, share, tasks):
    policy = make_policy(space, shared, tasks)
    plain, probe = copy.deepcopy(policy).double(), Probe()
    batch = make_batch(policy, rows)
    valid = torch.rand(rows, generator=torch.Generator().manual_seed(3)) < share
    coefficients = {"entropy_coef": constant(0.3), "value_coef": constant(0.7)}
    clip = None if value_clip is None else constant(value_clip)
    learner = make_learner(policy, probe, epochs=3, minibatches=3, groups=GROUPS, value_clip=clip, **coefficients)
    start = [p.detach().clone() for p in policy.parameters()]
    learn(learner, batch, valid)
    counted = [[i for i, w in zip(index, weight, strict=True) if w != 0] for index, weight in probe.minibatches(batch)]
    plain_update(plain, batch, counted, value_clip, entropy_coef=0.3, value_coef=0.7)
    for (name, ours), reference, before in zip(policy.named_parameters(), plain.parameters(), start, strict=True):
        moved = (reference - before).abs().max()
        assert moved > 1e-4, name
        assert (ours - reference).abs().max() < 1e-3 * moved, name
