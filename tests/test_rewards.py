"""Rewards divided by the spread of returns, and clipped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import levelhead as lh
from levelhead.rewards import RewardTransform
from levelhead.rollout import Rollout
from toys import Duo, Noise

GAMMA = 0.9


def rollout(reward, ended, valid):
    """With nothing in it but what rewards depend on."""
    nothing = dict.fromkeys(Rollout.__dataclass_fields__)
    flags = {"terminated": ended, "truncated": torch.zeros_like(ended), "valid": valid}
    return Rollout(**{**nothing, "reward": reward, **flags})


def episodes(seed, steps=12, n=3):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(steps, n, generator=generator) + 0.5
    ended, valid = (torch.rand(2, steps, n, generator=generator) < torch.tensor([0.2, 0.9]).view(2, 1, 1)).unbind()
    return rollout(reward, ended & valid, valid)


def stds(rollouts):
    """What rewards are divided by, rollout by rollout, from all returns of the past."""
    total, seen = np.zeros(rollouts[0].reward.shape[1]), []
    for r in rollouts:
        for reward, ended, valid in zip(r.reward.double(), r.terminated, r.valid, strict=True):
            total = GAMMA * total + np.where(valid, reward, 0.0)
            seen += total[valid.numpy()].tolist()
            total[ended.numpy()] = 0.0
        yield np.std(seen)


def test_rewards_are_divided_by_the_standard_deviation_of_all_discounted_returns_so_far():
    transform, rollouts = RewardTransform(3, GAMMA, normalize=True), [episodes(seed) for seed in range(4)]
    for given, std in zip(rollouts, stds(rollouts), strict=True):
        got, valid = transform(given).reward, given.valid
        assert_close(got[valid], given.reward[valid] / std, rtol=1e-5, atol=0.0)
        assert (got[~valid] == 0).all()


@pytest.mark.parametrize("clip", [0.3, 2.0])
def test_what_is_clipped_is_what_comes_out(clip):
    given = episodes(0)
    divided = RewardTransform(3, GAMMA, normalize=True)(given).reward
    assert torch.equal(RewardTransform(3, GAMMA, True, clip)(given).reward, divided.clamp(-clip, clip))
    whole = torch.where(given.valid, given.reward, 0.0)
    assert torch.equal(RewardTransform(3, GAMMA, False, clip)(given).reward, whole.clamp(-clip, clip))


@pytest.mark.parametrize("power", [-40, -3, 5, 40])
def test_the_scale_of_rewards_has_no_influence_bit_for_bit(power):
    transforms = [RewardTransform(3, GAMMA, normalize=True) for _ in range(2)]
    for seed in range(3):
        given = episodes(seed)
        scaled = replace(given, reward=given.reward * 2.0**power)
        assert torch.equal(transforms[0](given).reward, transforms[1](scaled).reward)


def test_rewards_of_no_spread_stay_as_they_are():
    given = episodes(0)
    assert (RewardTransform(3, GAMMA, normalize=True)(replace(given, reward=0 * given.reward)).reward == 0).all()


def test_a_new_episode_forgets_the_return_and_not_the_statistics():
    one, two = (RewardTransform(3, GAMMA, normalize=True) for _ in range(2))
    one(episodes(0))
    assert one.returns.any()
    two.load_state_dict(one.state_dict())
    assert not torch.equal(one(episodes(1)).reward, two(episodes(1)).reward)
    one.reset()
    two.load_state_dict(one.state_dict())
    two.reset()
    assert torch.equal(one(episodes(2)).reward, two(episodes(2)).reward)


def test_a_resumed_run_has_the_statistics_that_it_had(tiny, outcome, workdir):
    options = {"value": "linear", "normalize_reward": True}
    whole = lh.train("Pendulum-v1", config=tiny("Pendulum-v1", **options))
    lh.train("Pendulum-v1", config=tiny("Pendulum-v1", **options, total_steps=64, run_dir=workdir / "part"))
    lh.resume(workdir / "part", total_steps=96)
    assert outcome(workdir / "part") == outcome(whole.directory)


def train(tiny, value="linear", **changes):
    return lh.train("Pendulum-v1", config=tiny("Pendulum-v1", value=value, **changes))


def test_a_linear_head_keeps_the_scale_promise_with_it(tiny, metrics):
    runs = [train(tiny, normalize_reward=True, reward_scale=scale) for scale in (1.0, 2.0**20)]
    for x, y in zip(*(run.policy.state_dict().values() for run in runs), strict=True):
        assert torch.equal(x, y)
    # Episodes are told in the environment's units.
    assert metrics(runs[0].directory) == metrics(runs[1].directory)


def test_beside_a_head_that_levels_it_is_warned_of(tiny):
    with pytest.warns(UserWarning, match=r"normalize_reward and PopArtValueHead both level.*--value linear"):
        train(tiny, "popart", normalize_reward=True)


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        ({"normalize_reward": True}, "any power of two"),
        ({"normalize_reward": True, "clip_reward": 10.0}, "any power of two"),
        ({"clip_reward": 1.0}, "through clipped rewards"),
        ({}, "through LinearValueHead"),
    ],
)
def test_what_the_scale_does_is_told(changes, promise):
    env = Noise(num_envs=4)
    config = lh.Config("toy", value="linear", num_envs=4, num_steps=8, device="cpu", **changes)
    trainer = lh.build_trainer(config, env, lh.build_policy(config, env.observation_space, env.action_space))
    assert promise in trainer.scale_promise


def test_several_tasks_have_no_scale_in_common():
    config = lh.Config("toy", value="linear", num_envs=2, num_steps=8, device="cpu", normalize_reward=True)
    env = Duo(2)
    policy = lh.build_policy(config, env.observation_space, env.action_space, tasks=env.tasks)
    with pytest.raises(lh.ConfigError, match="normalize_reward has one scale"):
        lh.build_trainer(config, env, policy)
