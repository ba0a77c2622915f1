"""Environments with known answers, learned in a second or two, at any scale of the reward."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import levelhead as lh
from levelhead.config import ActionConfig, MemoryConfig, NetworkConfig, OptimizerConfig, PPOConfig
from levelhead.envs import make_gymnasium
from levelhead.schedules import constant
from parts import features_of
from toys import Bandit, Chain, Guarded, Hybrid, Matching, Pixels, Recall, Tampered, make_trainer

FAST = OptimizerConfig(learning_rate=constant(1e-2))
every_scale = pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])


def shifted(env, by):
    return Tampered(env, lambda _, step: step._replace(reward=step.reward + by))


def trained(env, iterations, **options):
    steps = iterations * options.get("num_steps", 16) * env.num_envs
    trainer = make_trainer(env, total_steps=steps, **{"optimizer": FAST, **options})
    *_, last = trainer
    return trainer.policy, last.metrics


def share_of_best(policy):
    with torch.no_grad():
        logits = policy.action_head.linear(features_of(policy, policy.reader(torch.ones(1, 1)))[0])
    return logits.softmax(-1)[0, 1].item()


@every_scale
@pytest.mark.parametrize("value", ["popart", "runningnorm"])
@pytest.mark.parametrize("advantage", ["rollout", "head"])
def test_the_better_of_two_arms_is_found(scale, value, advantage):
    policy, _ = trained(Bandit(scale=scale), 20, value=value, ppo=PPOConfig(advantage=advantage))
    assert share_of_best(policy) > 0.95
    assert policy.act([1.0]) == 1


def test_a_shift_of_every_reward_changes_nothing_that_matters():
    plain, moved = (trained(shifted(Bandit(), by), 8)[0] for by in (0.0, 4096.0))
    assert share_of_best(moved) == pytest.approx(share_of_best(plain), abs=0.02)


@every_scale
@pytest.mark.parametrize("length", [1, 5])
def test_a_chain_cut_by_a_time_limit_is_worth_its_reward_for_ever(scale, length):
    env = Chain(scale=scale)
    env.length = length
    policy, _ = trained(env, 50, ppo=PPOConfig(gamma=0.9))
    # Taking the cut for an end would make it worth at most (1 - 0.9^length) times that: 1 and 4.1 of these 10.
    assert policy.value(torch.ones(1, 1)).item() == pytest.approx(scale / (1 - 0.9), rel=0.03)


@every_scale
def test_a_real_valued_action_meets_its_target(scale):
    network = NetworkConfig(actor=(32,), critic=(32,))
    optimizer = OptimizerConfig(learning_rate=constant(3e-3))
    policy, _ = trained(Matching(scale=scale), 60, network=network, optimizer=optimizer)
    x = torch.linspace(-0.9, 0.9, 19).unsqueeze(1)
    error = (torch.from_numpy(policy.act(x)) - x).square().mean().sqrt()
    assert error < 0.1
    assert policy.action_head.sigma.log_std < -1.5  # noise only costs


def test_the_entropy_bonus_holds_noise_up_that_the_reward_would_take_away():
    ppo = PPOConfig(epochs=8)
    plain, encouraged = (
        trained(Matching(), 20, ppo=replace(ppo, entropy_coef=constant(x)))[0].action_head.sigma.log_std.item()
        for x in (0.0, 1.0)
    )
    assert encouraged > plain + 0.3


# -- memory, masks, hybrid actions and pictures ----------------------------------------------------------------------


def taught(make, iterations, **options):
    """A policy trained on eight environments, and what it makes of a hundred greedy episodes."""
    policy, _ = trained(make_gymnasium(make, 8), iterations, **options)
    return policy, lh.evaluate(policy, make, 100).mean_return


@every_scale
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_sign_is_remembered_by_those_who_can(scale, kind):
    options = {"reward_scale": scale, "ppo": PPOConfig(minibatches=2), "num_steps": 32}
    assert taught(Recall, 40, memory=MemoryConfig(kind, 16), **options)[1] > 0.95
    assert taught(Recall, 40, **options)[1] < 0.7


def test_among_what_a_mask_leaves_the_better_choice_is_found():
    # Ten preferences in order, learned though only two choices are ever legal together; both would give 3.
    assert taught(Guarded, 80)[1] > 5.5


@pytest.mark.parametrize("gates", [{}, {"1": {"0": [0]}}])
def test_a_type_is_learned_together_with_its_parameter(gates):
    policy, score = taught(Hybrid, 80, action=ActionConfig(gates=gates))
    assert policy.action_head.names == ("0", "1")
    assert score > 4.0  # the other types pay 5 / 3
    x = np.linspace(-0.9, 0.9, 19, dtype=np.float32).reshape(-1, 1)
    kind, number = policy.act(x)
    assert (kind == 0).all()
    assert np.abs(number - x).mean() < 0.15


@pytest.mark.parametrize("encoder", ["nature", "impala"])
def test_pictures_are_told_apart(encoder):
    network = NetworkConfig(actor=(), critic=(), image_encoder=encoder)
    optimizer = OptimizerConfig(learning_rate=constant(5e-4))
    assert taught(Pixels, 3, network=network, optimizer=optimizer)[1] > 4.9  # of 5; by chance 2.5
