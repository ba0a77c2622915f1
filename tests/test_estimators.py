"""Whichever returns and baseline are chosen, the estimate of the policy gradient is right on average."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from levelhead.actions import Evaluation
from levelhead.estimators import GAE, Estimator, NStep, VTrace
from levelhead.networks import State
from levelhead.objectives import A2CObjective, ClipObjective, KLObjective, VPGObjective
from levelhead.rollout import Rollout
from levelhead.schedules import constant
from parts import batch_of

# A state and an action to a reward and the next state, None for an end; episodes start in 0 or 2, at even odds.
WORLD = {
    (0, 0): (1.0, 1),
    (0, 1): (-3.0, None),
    (1, 0): (10.0, None),
    (1, 1): (4.0, None),
    (2, 0): (0.5, 1),
    (2, 1): (-2.0, 0),
}
STARTS = {0: 0.5, 2: 0.5}
THETA = torch.tensor([[0.3, -0.2], [-0.5, 0.4], [0.1, 0.7]], dtype=torch.float64)
VALUES = torch.tensor([7.0, -4.0, 2.5], dtype=torch.float64)
"""The critic's, by state: arbitrary, and wrong."""
STEPS = 6
"""Two episodes of at most three steps each."""


def episodes(state):
    """All from `state` on: state, action, reward, next state."""
    for action in (0, 1):
        reward, following = WORLD[state, action]
        for rest in [()] if following is None else episodes(following):
            yield ((state, action, reward, following), *rest)


def exact_gradient(gamma, theta):
    """How often each state is visited, times what the policy's gradient is worth there: the policy gradient theorem."""
    pi = theta.softmax(-1)

    def quality(state, action):
        reward, following = WORLD[state, action]
        return reward + (0.0 if following is None else gamma * worth(following))

    def worth(state):
        return sum(pi[state, action].item() * quality(state, action) for action in (0, 1))

    visits = dict.fromkeys(range(3), 0.0)

    def walk(state, share):
        visits[state] += share
        for action in (0, 1):
            following = WORLD[state, action][1]
            if following is not None:
                walk(following, share * pi[state, action].item())

    for state, share in STARTS.items():
        walk(state, share)
    total = sum(visits[s] * pi[s, a] * quality(s, a) for s, a in WORLD)
    return torch.autograd.grad(total, theta)[0]


def every_story(theta):
    """All stories of one environment that plays two episodes: `[M, T]` each, and the probability of every one.

    Rows after the second episode are not valid.
    """
    log_pi = theta.detach().log_softmax(-1)
    one = [path for start in STARTS for path in episodes(start)]
    stories = [(*first, *second) for first, second in itertools.product(one, one)]
    shape = len(stories), STEPS
    state, action = torch.zeros(2, *shape, dtype=torch.int64)
    reward, next_value = torch.full((2, *shape), torch.nan, dtype=torch.float64)
    terminated, valid = torch.zeros(2, *shape, dtype=torch.bool)
    chance = torch.full((len(stories),), 0.25, dtype=torch.float64)  # of both starts
    for m, story in enumerate(stories):
        for t, (s, a, r, following) in enumerate(story):
            state[m, t], action[m, t], reward[m, t], valid[m, t] = s, a, r, True
            terminated[m, t] = following is None
            next_value[m, t] = torch.nan if following is None else VALUES[following]
            chance[m] *= log_pi[s, a].exp()
    return state, action, reward, next_value, terminated, valid, chance


def rollout_of(reward, value, next_value, terminated, valid):
    nothing = torch.zeros_like(reward)
    return Rollout(
        observation=nothing,
        action=nothing,
        action_mask=None,
        parameters=nothing,
        log_prob=nothing,
        reward=reward,
        terminated=terminated,
        truncated=torch.zeros_like(terminated),
        valid=valid,
        begins=terminated,
        state=State((), (), ()),
        value=value,
        next_value=next_value,
        last_features=nothing,
    )


def expected_gradient(estimator, objective=None):
    """The mean over everything that can happen to two environments side by side, each weighing what it is likely.

    Summed over steps: divided by their number, which chance decides too, an estimate is right only as they become many.
    """
    theta = THETA.clone().requires_grad_()
    stories = every_story(theta)
    first, second = torch.cartesian_prod(*[torch.arange(len(stories[0]))] * 2).T
    # [P, T, N]: both environments of every pair of stories.
    state, action, reward, next_value, terminated, valid = (torch.stack((x[first], x[second]), -1) for x in stories[:6])
    chance = stories[6][first] * stories[6][second]
    assert chance.sum().item() == pytest.approx(1.0, rel=1e-12)

    def estimate(reward, value, next_value, terminated, valid):
        return estimator(rollout_of(reward, value, next_value, terminated, valid), [valid])[0]

    advantage = torch.vmap(estimate)(reward, VALUES[state], next_value, terminated, valid)
    log_prob = theta.log_softmax(-1)[state, action].flatten()
    nothing = torch.zeros_like(log_prob.detach())
    batch = batch_of(nothing, nothing, log_prob.detach(), advantage.flatten(), nothing, nothing).take(
        torch.arange(len(nothing))
    )
    loss = (objective or VPGObjective())(Evaluation(log_prob, nothing, None), batch, kl=nothing).loss
    weight = valid * chance.view(-1, 1, 1)
    count = 4.0  # episodes
    loss = torch.where(valid.flatten(), loss, 0.0) @ weight.flatten() / count
    return -torch.autograd.grad(loss, theta)[0]


ESTIMATORS = {
    "monte carlo": GAE(1.0, lam=1.0),
    "as many steps as there are": NStep(1.0, n=STEPS),
    "v-trace": VTrace(1.0, lam=1.0),
}
LADDER = [
    (baseline, credit, gamma)
    for baseline in ("none", "mean", "value")
    for credit in ("episode", "to-go")
    for gamma in (1.0, 0.9)
]


def test_with_gamma_1_the_exact_gradient_is_that_of_the_expected_return():
    theta = THETA.clone().requires_grad_()
    log_pi = theta.log_softmax(-1)
    total = 0.0
    for start, share in STARTS.items():
        for path in episodes(start):
            chance = torch.stack([log_pi[s, a] for s, a, *_ in path]).sum().exp()
            total = total + share * chance * sum(r for _, _, r, _ in path)
    (direct,) = torch.autograd.grad(total, theta)
    assert_close(exact_gradient(1.0, THETA.clone().requires_grad_()), direct, rtol=1e-12, atol=1e-12)
    assert direct.abs().min() > 0.01


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("baseline", "credit", "gamma"), LADDER)
def test_every_rung_of_the_ladder_is_right_on_average(name, baseline, credit, gamma):
    estimator = replace(ESTIMATORS[name], gamma=gamma, baseline=baseline, credit=credit)
    exact = exact_gradient(gamma, THETA.clone().requires_grad_())
    assert_close(expected_gradient(estimator), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [A2CObjective, lambda: ClipObjective(constant(0.2)), lambda: KLObjective(constant(1))])
def test_so_it_is_with_every_objective_at_the_policy_that_acted(make):
    estimator = GAE(0.9, "value", "to-go", 1.0)
    exact = exact_gradient(0.9, THETA.clone().requires_grad_())
    assert_close(expected_gradient(estimator, make()), exact, rtol=0, atol=1e-10)


class MeanOfAll(GAE):
    """A baseline that the sample itself is part of."""

    def _credited(self, rollout: Rollout, masks, advantage, target):
        (mask,) = masks
        return target - torch.where(mask, target, 0.0).sum() / mask.sum()


def test_a_mean_that_holds_the_samples_own_return_would_be_wrong_on_average():
    exact = exact_gradient(1.0, THETA.clone().requires_grad_())
    off = (expected_gradient(MeanOfAll(1.0, lam=1.0)) - exact).abs().max()
    assert off > 0.05 * exact.abs().max()


def test_a_wrong_critic_is_no_longer_harmless_where_returns_are_bootstrapped_from_it():
    exact = exact_gradient(1.0, THETA.clone().requires_grad_())
    estimator: Estimator
    for estimator in (GAE(1.0, lam=0.5), NStep(1.0, n=1)):
        assert (expected_gradient(estimator) - exact).abs().max() > 0.05 * exact.abs().max()


# -- how the parts are put together -----------------------------------------------------------------------------


def random_rollout(seed=0, shape=(7, 3)):
    generator = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, *shape, generator=generator)
    ended, cut, invalid = torch.rand(3, *shape, generator=generator) < 0.2
    rollout = rollout_of(reward, value, next_value, ended, ~invalid)
    return replace(rollout, truncated=cut), generator


@pytest.mark.parametrize("credit", ["episode", "to-go"])
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_the_targets_of_the_critic_depend_on_neither_baseline_nor_credit(estimator, credit):
    rollout, _ = random_rollout()
    masks = [rollout.valid]
    _, target = replace(estimator, gamma=0.9)(rollout, masks)
    for baseline in ("none", "mean", "value"):
        _, other = replace(estimator, gamma=0.9, credit=credit, baseline=baseline)(rollout, masks)
        assert torch.equal(other, target)


@pytest.mark.parametrize("credit", ["episode", "to-go"])
def test_baselines_differ_by_what_they_subtract(credit):
    rollout, _ = random_rollout()
    masks = [rollout.valid]

    def advantage(baseline):
        return GAE(0.9, baseline, credit, 0.7)(rollout, masks)[0]

    valid = rollout.valid
    assert_close((advantage("none") - advantage("value"))[valid], rollout.value[valid], rtol=1e-5, atol=1e-6)
    first = advantage("none")[:, 1:][valid[:, 1:]].mean()  # what the first environment's samples are compared with
    difference = (advantage("none") - advantage("mean"))[:, 0][valid[:, 0]]
    assert_close(difference, first.expand_as(difference), rtol=1e-5, atol=1e-6)


def test_v_trace_reads_the_ratio_where_there_is_one():
    rollout, generator = random_rollout()
    masks = [rollout.valid]
    ratio = torch.randn(rollout.reward.shape, generator=generator).exp()
    plain, weighted = (VTrace(0.9, lam=0.8)(r, masks)[1] for r in (rollout, replace(rollout, ratio=ratio)))
    assert_close(plain, GAE(0.9, lam=0.8)(rollout, masks)[1])
    assert not torch.allclose(plain, weighted)
    assert torch.equal(GAE(0.9, lam=0.8)(replace(rollout, ratio=ratio), masks)[1], GAE(0.9, lam=0.8)(rollout, masks)[1])


def test_only_v_trace_is_asked_again():
    assert [kind.refreshed for kind in (GAE, NStep, VTrace)] == [False, False, True]
