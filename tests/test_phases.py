"""The parts that learning consists of: who moves in each, and how often."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from levelhead.config import CriticConfig, NetworkConfig, OptimizerConfig, PPOConfig
from levelhead.phases import Epochs, Order, Split, minibatches
from levelhead.schedules import constant
from parts import CHOICES, REALS, acted_on, configured_learner, learn, make_batch, make_policy
from toys import Matching, make_trainer, same, snapshot

OBJECTIVES = ["clip", "kl", "a2c", "vpg", "trpo"]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
every_space = pytest.mark.parametrize("space", [CHOICES, REALS])
SHARED = NetworkConfig(shared=(8,), actor=(8,), critic=(8,))


def passes(objective, epochs, minibatches):
    """Epochs and minibatches, once where an objective's gradient holds once."""
    return PPOConfig(epochs=1 if objective == "a2c" else epochs, minibatches=minibatches)


def state(learner, policy):
    """Copies of parameters by group and of all that the optimiser keeps, by group too."""
    flat = {name: part.parameter.detach().clone() for name, part in learner.optimizer.flat.items()}
    return flat, {name: x.clone() for name, x in learner.optimizer.state_dict().items()}


def moved(before, after):
    """Groups whose parameters differ, and groups of which anything that the optimiser keeps does."""
    flat = {name for name in before[0] if not torch.equal(before[0][name], after[0][name])}
    kept = {name.partition(".")[0] for name in before[1] if not torch.equal(before[1][name], after[1][name])}
    return flat, kept


@every_space
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_epochs_of_the_critic_alone_touch_nothing_else(space, decay):
    policy = make_policy(space, shared=(8,))
    learner = configured_learner(policy, optimizer=OptimizerConfig(weight_decay=decay))
    learn(learner, make_batch(policy, 12))  # so that there are moments to be kept
    learner.phases = [Epochs(learner.criterion.critic, learner.optimizer, Split(2, 3))]
    before = state(learner, policy)
    metrics = learn(learner, make_batch(policy, 12))
    assert moved(before, state(learner, policy)) == ({"critic"}, {"critic"})
    assert {"train/value_loss", "grad/critic_norm", "train/loss"} <= set(metrics)
    assert not {"grad/actor_norm", "grad/shared_norm", "train/policy_gradient_loss"} & set(metrics)


def test_epochs_of_the_actor_alone_leave_the_critic():
    policy = make_policy(shared=(8,))
    learner = configured_learner(policy)
    learner.phases = [Epochs(learner.criterion.actor, learner.optimizer, Split(2, 3))]
    before = state(learner, policy)
    learn(learner, make_batch(policy, 12))
    assert moved(before, state(learner, policy)) == ({"shared", "actor"}, {"shared", "actor"})


def test_the_loss_of_critic_or_actor_alone_is_its_part_of_the_joint_one():
    policy = make_policy(REALS, shared=(8,))
    criterion = configured_learner(
        policy, ppo=PPOConfig(entropy_coef=constant(0.1), value_coef=constant(0.7))
    ).criterion
    rows, weight = make_batch(policy, 12).take(torch.arange(12)), torch.full((12,), 1 / 12)
    joint, actor, critic = (loss.of(rows, weight) for loss in (criterion.joint, criterion.actor, criterion.critic))
    assert joint.loss.item() == pytest.approx((actor.loss + critic.loss).item(), rel=1e-5)
    torch.testing.assert_close(joint.means, torch.cat((actor.means, critic.means)))
    named = dict(policy.named_parameters())
    parts = [torch.autograd.grad(x.loss, named.values(), materialize_grads=True) for x in (joint, actor, critic)]
    for name, whole, of_actor, of_critic in zip(named, *parts, strict=True):
        if name.startswith("network.shared"):
            assert (of_critic == 0).all(), name
            assert not torch.allclose(whole, of_actor), name
        else:
            torch.testing.assert_close(whole, of_actor + of_critic)


# -- how often ---------------------------------------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize(("epochs", "parts"), [(1, 1), (3, 4)])
def test_an_iteration_takes_as_many_steps_as_it_says(objective, epochs, parts):
    policy = make_policy(shared=(8,))
    ppo = passes(objective, epochs, parts)
    learner = configured_learner(policy, objective, ppo=ppo)
    batch = acted_on(policy, make_batch(policy, 12))
    learn(learner, batch)
    taken = {name: learner.state_dict()[f"optimizer.{name}.step"].item() for name in ("shared", "actor", "critic")}
    whole = ppo.epochs * ppo.minibatches
    # A trust-region step isn't one of Adam's.
    acting = {"vpg": 1, "trpo": 0}.get(objective, whole)
    assert taken == {"shared": acting, "actor": acting, "critic": whole}


@pytest.mark.parametrize("objective", ["clip", "kl", "a2c"])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(("before", "after", "own"), [(1, 0, None), (0, 2, None), (2, 1, 5), (0, 1, 1)])
def test_the_critics_own_epochs_come_on_top(objective, joint, before, after, own):
    policy = make_policy(shared=(8,))
    ppo = passes(objective, 2, 3)
    critic = CriticConfig(joint, before, after, own)
    learner = configured_learner(policy, objective, ppo=ppo, critic=critic)
    learn(learner, acted_on(policy, make_batch(policy, 12)))
    whole, alone = ppo.epochs * ppo.minibatches, (before + after) * (own or ppo.minibatches)
    taken = {name: learner.state_dict()[f"optimizer.{name}.step"].item() for name in ("shared", "actor", "critic")}
    assert taken == {"shared": whole, "actor": whole, "critic": joint * whole + alone}


def test_the_critics_own_epochs_come_on_top_where_the_actor_is_frozen_too():
    policy = make_policy()
    critic = CriticConfig(epochs_before=1, epochs_after=2, minibatches=5)
    learner = configured_learner(policy, ppo=PPOConfig(epochs=2, minibatches=3, freeze_actor=1), critic=critic)
    learn(learner, make_batch(policy, 15))
    assert learner.state_dict()["optimizer.critic.step"] == 2 * 3 + 3 * 5
    assert learner.state_dict()["optimizer.actor.step"] == 0


@pytest.mark.parametrize("before", [True, False])
def test_they_come_before_the_actors_or_after(before):
    policy = make_policy(shared=(8,))
    critic = CriticConfig(epochs_before=int(before), epochs_after=int(not before))
    learner = configured_learner(policy, critic=critic)
    order, follow = [], learner.optimizer.follow
    learner.optimizer.follow = lambda loss, groups, *rest: (order.append(len(groups)), follow(loss, groups, *rest))[1]
    learn(learner, make_batch(policy, 12))
    assert order == [1] * 4 + [3] * 16 if before else [3] * 16 + [1] * 4


@every_space
@pytest.mark.parametrize("objective", ["clip", "kl", "a2c"])
def test_a_critic_that_learns_apart_has_no_say_in_what_the_two_share(space, objective):
    acting = []
    for scale in (1.0, 100.0):
        policy = make_policy(space, shared=(8,))
        critic = CriticConfig(joint=False, epochs_after=2)
        learner = configured_learner(policy, objective, ppo=passes(objective, 2, 3), critic=critic)
        batch = acted_on(policy, make_batch(policy, 12))
        before = snapshot(policy)
        metrics = learn(learner, replace(batch, target=scale * batch.target))
        assert {"train/value_loss", "train/policy_gradient_loss", "grad/critic_norm"} <= set(metrics)
        assert not torch.equal(policy.value_head.linear.weight, before["value_head.linear.weight"])
        acting.append([learner.optimizer.flat[name].parameter.detach() for name in ("shared", "actor")])
    assert all(torch.equal(one, other) for one, other in zip(*acting, strict=True))


def test_in_joint_epochs_it_has():
    acting = []
    for scale in (1.0, 100.0):
        policy = make_policy(shared=(8,))
        batch = make_batch(policy, 12)
        learner = configured_learner(policy)
        learn(learner, replace(batch, target=scale * batch.target))
        acting.append(learner.optimizer.flat["shared"].parameter.detach())
    assert not torch.equal(*acting)


@every_objective
@pytest.mark.parametrize("frozen", [1, 2])
def test_a_frozen_actor_stays_for_so_many_iterations_while_the_critic_learns(objective, frozen):
    ppo = replace(passes(objective, 2, 2), freeze_actor=frozen)
    trainer = make_trainer(Matching(), objective, total_steps=4 * 128, network=SHARED, ppo=ppo)
    names = {name for name, _ in trainer.policy.named_parameters()}
    critic = {name for name in names if "critic" in name or "value" in name}
    before = snapshot(trainer.policy)
    for turn in trainer:
        after = snapshot(trainer.policy)
        kept = [name for name in names if torch.equal(before[name], after[name])]
        assert set(kept) == (names - critic if turn.iteration <= frozen else set())
        before = after
        if turn.iteration == frozen:
            taken = trainer.learner.optimizer.state_dict()
            assert taken["critic.step"] > 0
            assert taken["actor.step"] == taken["shared.step"] == 0
    assert trainer.done


@pytest.mark.parametrize("frozen", [1, 3])
def test_the_weight_of_a_penalty_waits_for_the_actor(frozen):
    # Where nothing may move, that nothing has moved says nothing of the penalty.
    ppo = PPOConfig(epochs=1, minibatches=1, freeze_actor=frozen)
    trainer = make_trainer(Matching(), "kl", total_steps=10 * 128, ppo=ppo)
    for _ in range(frozen):
        next(trainer)
    assert trainer.learner.criterion.objective.weight == 1.0


def test_where_several_phases_have_a_metric_it_is_that_of_the_first():
    policy = make_policy()
    batch = make_batch(policy, 12)
    learner = configured_learner(policy, critic=CriticConfig(epochs_after=3), ppo=PPOConfig(epochs=1, minibatches=1))
    alone = configured_learner(make_policy(), ppo=PPOConfig(epochs=1, minibatches=1))
    assert same(learn(learner, batch), learn(alone, batch))


@every_objective
def test_the_metrics_of_an_iteration_do_not_reach_the_next(objective):
    policy = make_policy()
    batch = acted_on(policy, make_batch(policy, 12))
    learner = configured_learner(policy, objective, ppo=passes(objective, 1, 2), optimizer=OptimizerConfig(constant(0)))
    first = learn(learner, replace(batch, target=100 * batch.target))
    second = learn(learner, batch)
    assert second["train/value_loss"] < first["train/value_loss"] / 100


def order_of(shards, environments):
    return Order([seeded(k) for k in range(shards)], partial(seeded, shards), environments)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("columns", "count", "shards"), [(12, 4, 1), (10, 3, 1), (7, 7, 1), (5, 4, 1), (3, 5, 1), (12, 3, 2)]
)
@pytest.mark.parametrize("chunks", [1, 2])
def test_weights_of_every_minibatch_sum_to_1_over_its_valid_rows(columns, count, shards, chunks):
    columns *= chunks
    valid = torch.rand(3, columns, generator=seeded(1)) < 0.6
    order = order_of(shards, columns // chunks)
    for epoch in zip(*minibatches(valid, Split(2, count), order), strict=True):
        seen = torch.zeros(columns)
        for index, weight in zip(*epoch, strict=True):
            rows = weight.view(3, len(index))
            assert weight.sum().item() == pytest.approx(1.0 if rows.any() else 0.0)
            assert ((rows > 0) <= valid[:, index]).all()
            seen.index_add_(0, index, (rows.sum(0) > 0).float())
        assert torch.equal(seen, valid.any(0).float())


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_a_minibatch_is_an_equal_slice_of_each_shard_whatever_the_others_hold(count):
    # Two chunks of three shards with three environments each.
    valid, shards, size = torch.ones(2, 18, dtype=torch.bool), 3, 3
    [index], [weight] = minibatches(valid, Split(1, count), order_of(shards, 9))
    for k, part in enumerate(index.chunk(shards, 1)):
        [alone], _ = minibatches(
            torch.ones(2, 6, dtype=torch.bool), Split(1, count), Order([seeded(k)], partial(seeded, 0), size)
        )
        own = part // 9 * size + part % 9 - k * size
        counted = weight.view(count, 2, shards, -1)[:, 0, k] > 0
        assert torch.equal(own[counted], alone[counted])
        assert counted.sum() == 6  # all there are
