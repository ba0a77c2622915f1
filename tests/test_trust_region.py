"""The natural-gradient step: its direction, its length, and where nothing moves."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from equivalence.test_replay import ACTIONS, MEMORIES, rambling
from levelhead.config import ActionConfig, PPOConfig
from levelhead.objectives import LineSearch, TrustRegionObjective
from levelhead.schedules import Schedule, constant
from levelhead.tree import tree_map
from levelhead.trust_region import conjugate_gradient, fisher_product
from parts import CHOICES, REALS, acted_on, configured_learner, learn, make_batch, make_policy
from toys import Duo, Matching, make_trainer, same, snapshot

seeds = st.integers(0, 2**32 - 1)
HEADS = {
    "categorical": (CHOICES, {}),
    "gaussian": (REALS, {}),
    "gaussian, conditioned": (REALS, {"action": ActionConfig(sigma="conditioned")}),
    "beta": (REALS, {"action": ActionConfig(distribution="beta")}),
}
every_head = pytest.mark.parametrize(("space", "options"), HEADS.values(), ids=HEADS)
ONE_PASS = PPOConfig(epochs=1, minibatches=1)
BACKENDS = torch.backends.mkldnn, torch.backends.cudnn


def jolt(policy, seed=0, size=0.3):
    """The policy, far enough from where it started for inputs to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float32))
    return policy


# -- the Fisher matrix -------------------------------------------------------------------------------------------


class Acting(nn.Module):
    """What of a policy decides the actions: observations to the parameters of their distribution."""

    def __init__(self, policy):
        super().__init__()
        self.torso, self.head = policy.network.actor, policy.action_head

    def forward(self, x, action):
        return self.head.evaluate(self.torso(x, (), None)[0], action).parameters


def dense(space, options, rows=5):
    """A small policy in float64: itself, its divergence as a function of all its numbers, and these."""
    policy = jolt(make_policy(space, **options)).double()
    acting, batch = Acting(policy), make_batch(policy.float(), rows)
    policy.double()
    x = batch.observation[0].double()
    action = batch.action[0].double() if batch.action.is_floating_point() else batch.action[0]
    named = dict(acting.named_parameters())
    old = tree_map(torch.Tensor.detach, acting(x, action))

    def divergence(flat):
        parts = flat.split([p.numel() for p in named.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        return acting.head.kl(old, functional_call(acting, values, (x, action))).mean()

    start = torch.cat([p.detach().flatten() for p in named.values()])
    kl = acting.head.kl(old, acting(x, action)).mean()
    return acting, kl, divergence, start, x, action


@every_head
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_fisher_product_is_that_with_the_hessian_of_the_divergence(space, options, damping):
    acting, kl, divergence, start, *_ = dense(space, options)
    hessian = torch.autograd.functional.hessian(divergence, start)
    assert hessian.norm() > 0.01
    product = fisher_product(kl, list(acting.parameters()), damping)
    for v in torch.randn(3, len(start), generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        assert_close(product(v), hessian @ v + damping * v, rtol=1e-9, atol=1e-10)


def test_which_is_the_expected_square_of_the_score():
    acting, kl, _, start, x, action = dense(CHOICES, {})
    fisher = torch.zeros(len(start), len(start), dtype=torch.float64)
    for row in range(len(x)):
        log_pi = acting(x[row : row + 1], action[row : row + 1]).log_softmax(-1)[0]
        for choice in range(len(log_pi)):
            score = torch.autograd.grad(log_pi[choice], list(acting.parameters()), retain_graph=True)
            flat = torch.cat([g.flatten() for g in score])
            fisher += log_pi[choice].exp().item() * torch.outer(flat, flat) / len(x)
    product = fisher_product(kl, list(acting.parameters()), 0.0)
    for v in torch.randn(3, len(start), generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        assert_close(product(v), fisher @ v, rtol=1e-9, atol=1e-10)


# -- conjugate gradients -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 8), st.sampled_from([1e-6, 1.0, 1e6]))
def test_as_many_conjugate_gradients_as_dimensions_solve_the_system(seed, size, scale):
    generator = torch.Generator().manual_seed(seed)
    root, b = torch.randn(size, size, generator=generator).double(), torch.randn(size, generator=generator).double()
    a = scale * (root @ root.T + torch.eye(size))
    for iterations in (size, size + 5):
        x = conjugate_gradient(lambda v: a @ v, b, iterations)
        assert (a @ x - b).norm() <= 1e-6 * b.norm()


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_every_iteration_brings_the_solution_nearer(seed):
    generator = torch.Generator().manual_seed(seed)
    root, b = torch.randn(6, 6, generator=generator).double(), torch.randn(6, generator=generator).double()
    a = root @ root.T + torch.eye(6)
    solution, distances = torch.linalg.solve(a, b), []
    for iterations in range(7):
        off = conjugate_gradient(lambda v: a @ v, b, iterations) - solution
        distances.append((off @ a @ off).item())
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(distances))
    assert distances[0] > 1e6 * distances[-1]


def test_where_the_residual_has_become_0_nothing_is_divided_by_it():
    assert torch.equal(conjugate_gradient(lambda v: v, torch.zeros(3), 5), torch.zeros(3))
    assert torch.equal(conjugate_gradient(lambda v: 2 * v, torch.ones(3), 5), torch.full((3,), 0.5))


# -- the step ----------------------------------------------------------------------------------------------------


def trpo(policy, delta=0.01, search=None, **ppo):
    """A learner, one trust-region step and one step of the critic per iteration."""
    objective = TrustRegionObjective(constant(delta), search=search)
    return configured_learner(policy, objective, ppo=PPOConfig(epochs=1, minibatches=1, **ppo))


def judged(learner, batch):
    """Loss, entropy bonus included, and divergence of the policy as it is now."""
    rows = batch.take(torch.arange(batch.advantage.shape[1]))
    weight = torch.full((batch.advantage.shape[1],), 1 / batch.advantage.shape[1])
    with torch.no_grad():
        terms = learner.criterion.actor.of(rows, weight)
    return terms.loss.item(), terms.kl.item()


def acting(policy):
    return {name: x for name, x in snapshot(policy).items() if "critic" not in name and "value" not in name}


@every_head
@settings(deadline=None, max_examples=12)
@given(
    seed=seeds,
    delta=st.sampled_from([1e-4, 1e-2, 0.3]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    entropy=st.sampled_from([0.0, 0.1]),
)
def test_no_step_leaves_the_bound_or_raises_the_loss(space, options, seed, delta, scale, entropy):
    policy = jolt(make_policy(space, shared=(4,), **options), seed)
    batch = make_batch(policy, 20, seed)
    batch = acted_on(policy, replace(batch, advantage=scale * batch.advantage))
    learner = trpo(policy, delta, entropy_coef=constant(entropy))
    loss, start = judged(learner, batch)[0], acting(policy)
    metrics = learn(learner, batch)
    now, kl = judged(learner, batch)
    assert not any(learner.faults().values())
    assert kl <= delta
    if metrics["train/step_fraction"] > 0:
        assert now <= loss + 1e-6 * abs(loss)
        assert metrics["train/step_kl"].item() == pytest.approx(kl, rel=1e-3, abs=1e-7)
        assert not same(start, acting(policy))
    else:
        assert same(start, acting(policy))


@every_head
def test_a_step_goes_nearly_as_far_as_the_bound_allows_and_improves_the_surrogate(space, options):
    policy = jolt(make_policy(space, **options))
    batch = acted_on(policy, make_batch(policy, 50))
    learner = trpo(policy, 1e-3)
    loss, _ = judged(learner, batch)
    metrics = learn(learner, batch)
    now, kl = judged(learner, batch)
    # Damping shortens it a little, and each trial is 0.8 of the one before in length.
    assert 0.3e-3 < kl <= 1e-3
    assert now < loss - 1e-3
    assert metrics["train/step_norm"] > 0


@every_head
def test_where_the_quadratic_model_goes_too_far_the_step_is_shortened(space, options):
    # Far away the divergence isn't quadratic, and nothing damps the step.
    fractions = []
    for seed in range(6):
        policy = jolt(make_policy(space, **options), seed)
        batch = acted_on(policy, make_batch(policy, 20, seed))
        learner = trpo(policy, 2.0, LineSearch(iterations=40, damping=1e-5, backtracks=30))
        fractions.append(learn(learner, batch)["train/step_fraction"].item())
        assert judged(learner, batch)[1] <= 2.0
    assert 0 < min(fractions) < 1
    # Every trial is 0.8 of the one before.
    trials = [math.log(fraction) / math.log(0.8) for fraction in fractions if fraction > 0]
    assert trials == pytest.approx([round(trial) for trial in trials], abs=1e-3)


def test_the_step_goes_along_the_natural_gradient():
    policy = jolt(make_policy(CHOICES))
    batch = acted_on(policy, make_batch(policy, 30))
    learner = trpo(policy, 1e-4, LineSearch(iterations=100))
    parameters = policy.groups()["actor"]
    rows, weight = batch.take(torch.arange(30)), torch.full((30,), 1 / 30)
    before = torch.cat([p.detach().flatten() for p in parameters])
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(learner.criterion.actor.of(rows, weight).loss, parameters)]
    )
    product = fisher_product(learner.criterion.actor.of(rows, weight).kl, parameters, 0.1)
    fisher = torch.stack([product(v) for v in torch.eye(len(before))]).double()
    natural = -torch.linalg.solve(fisher, gradient.double())
    metrics = learn(learner, batch)
    step = torch.cat([p.detach().flatten() for p in parameters]).double() - before.double()
    assert torch.cosine_similarity(step, natural, 0) > 0.999
    # The longest step is the one whose quadratic divergence is the bound.
    longest = (2e-4 / (natural @ fisher @ natural)).sqrt() * natural
    assert_close(step, metrics["train/step_fraction"].double() * longest, rtol=2e-2, atol=1e-4)


def test_the_bound_follows_its_schedule():
    policy = jolt(make_policy(CHOICES))
    batch = acted_on(policy, make_batch(policy, 50))
    learner = configured_learner(policy, TrustRegionObjective(Schedule(1.0, 1e-5)), ppo=PPOConfig(epochs=1))
    learner.advance(1.0, 0)
    learn(learner, batch)
    assert 0 < judged(learner, batch)[1] <= 1e-5


def test_rows_that_are_not_valid_have_no_part_in_it():
    valid = torch.arange(20) % 3 > 0
    outcomes = []
    for filler in (0.0, 50.0, math.nan):
        policy = jolt(make_policy(CHOICES))
        batch = acted_on(policy, make_batch(policy, 20))
        batch = replace(batch, advantage=torch.where(valid, batch.advantage, filler))
        learn(trpo(policy), batch, valid)
        outcomes.append(snapshot(policy))
    assert same(outcomes[0], outcomes[1])
    assert same(outcomes[0], outcomes[2])


# -- where nothing moves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_without_advantages_the_actor_stays(space):
    policy = jolt(make_policy(space))
    batch = acted_on(policy, make_batch(policy, 20))
    learner, start = trpo(policy), acting(policy)
    metrics = learn(learner, replace(batch, advantage=torch.zeros_like(batch.advantage)))
    assert same(start, acting(policy))
    assert metrics["train/step_fraction"] == metrics["train/step_norm"] == metrics["train/step_kl"] == 0
    assert not any(learner.faults().values())


def test_where_no_length_will_do_the_actor_stays():
    policy = jolt(make_policy(CHOICES))
    batch = acted_on(policy, make_batch(policy, 20))
    learner, start = trpo(policy, search=LineSearch(backtracks=0)), acting(policy)
    assert learn(learner, batch)["train/step_fraction"] == 0
    assert same(start, acting(policy))


class Exploding(TrustRegionObjective):
    """A loss that is finite, with a gradient that isn't."""

    def __call__(self, new, batch, kl):
        answer = super().__call__(new, batch, kl)
        return answer._replace(loss=answer.loss + (new.log_prob - new.log_prob.detach()).abs().sqrt())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_advantage_that_is_not_finite_moves_nothing_and_is_named(bad):
    policy = jolt(make_policy(CHOICES))
    batch = acted_on(policy, make_batch(policy, 20))
    batch.advantage[0, 3] = bad
    learner, start = trpo(policy), snapshot(policy)
    moments = {name: x.clone() for name, x in learner.state_dict().items()}
    learn(learner, batch)
    assert same(start, snapshot(policy))
    assert same(moments, learner.state_dict())
    assert {"loss", "policy gradient"} <= {name for name, broken in learner.faults().items() if broken}


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_named():
    policy = jolt(make_policy(CHOICES))
    batch = acted_on(policy, make_batch(policy, 20))
    learner = configured_learner(policy, Exploding(constant(0.01)), ppo=ONE_PASS)
    start = snapshot(policy)
    learn(learner, batch)
    assert same(start, snapshot(policy))
    broken = {name for name, flag in learner.faults().items() if flag}
    assert broken == {"policy gradient", "natural gradient"}


def test_an_iteration_that_is_not_healthy_moves_nothing():
    policy = jolt(make_policy(CHOICES))
    start = snapshot(policy)
    learn(trpo(policy), acted_on(policy, make_batch(policy, 20)), healthy=False)
    assert same(start, snapshot(policy))


# -- with everything that a policy may have ----------------------------------------------------------------------


SEVERAL = [
    *((kind, kind in ("discrete", "several", "hybrid", "autoregressive"), MEMORIES[0]) for kind in ACTIONS),
    *(("discrete", False, memory) for memory in MEMORIES[1:]),
    *((kind, False, MEMORIES[1]) for kind in ("real", "beta", "hybrid")),
    *(("autoregressive", True, memory) for memory in (MEMORIES[2], MEMORIES[-1])),
]


@pytest.mark.parametrize(
    ("kind", "masked", "memory"), SEVERAL, ids=lambda x: x if isinstance(x, str) else getattr(x, "kind", None)
)
def test_every_head_and_memory_takes_its_step(kind, masked, memory):
    space, action = ACTIONS[kind]
    trainer = make_trainer(
        rambling(space, masked),
        memory=memory,
        action=ActionConfig(**action),
        ppo=PPOConfig(epochs=1, minibatches=2),
        num_steps=12,
        objective=TrustRegionObjective(constant(0.01)),
    )
    start, backends = snapshot(trainer.policy), [backend.enabled for backend in BACKENDS]
    metrics = next(trainer).metrics
    assert 0 < metrics["train/step_kl"] <= 0.01
    assert metrics["train/step_fraction"] > 0
    assert not any(trainer.learner.faults().values())
    assert [backend.enabled for backend in BACKENDS] == backends
    for name, parameter in trainer.policy.named_parameters():
        assert not torch.equal(parameter, start[name]), name


def test_several_tasks_share_one_step():
    trainer = make_trainer(Duo(), TrustRegionObjective(constant(0.01)), ppo=ONE_PASS)
    assert 0 < next(trainer).metrics["train/step_kl"] <= 0.01


@pytest.mark.parametrize("memory", [MEMORIES[0], MEMORIES[1]], ids=["none", "lstm"])
def test_the_same_seed_gives_the_same_steps(memory):
    def run(seed):
        trainer = make_trainer(Matching(4), "trpo", seed=seed, num_steps=6, total_steps=48, memory=memory, ppo=ONE_PASS)
        list(trainer)
        return snapshot(trainer.policy)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


class Refusing(TrustRegionObjective):
    def __call__(self, new, batch, kl):
        assert not any(backend.enabled for backend in BACKENDS)
        raise RuntimeError("enough")


def test_kernels_are_left_as_they_were_even_after_an_error():
    policy, before = make_policy(Discrete(3)), [backend.enabled for backend in BACKENDS]
    learner = configured_learner(policy, Refusing(constant(0.01)), ppo=ONE_PASS)
    with pytest.raises(RuntimeError, match="enough"):
        learn(learner, acted_on(policy, make_batch(policy, 6)))
    assert [backend.enabled for backend in BACKENDS] == before
    assert any(before)
