"""Stable-Baselines3's PPO trains on the head's axis, keeps outputs, and saves and loads the head."""

import pytest
import torch
from stable_baselines3 import PPO
from torch.testing import assert_close


@pytest.fixture(scope="module")
def model(example):
    return example("sb3_value_net").train(popart=True, reward_scale=1000.0, total_steps=8192, seed=1)


def test_it_learns_at_a_scale_where_ppo_is_slow(example, model):
    sb3 = example("sb3_value_net")
    assert sb3.evaluate(model, episodes=5) > 120
    head = model.policy.value_net
    assert head.count == 8
    assert head.mean > 5000
    targets = torch.as_tensor(model.rollout_buffer.returns)
    assert targets.abs().max() < 20  # the buffer was normalised for the loss


def test_the_loss_is_taken_on_the_normalised_axis_and_values_stay_in_reward_units(example, model, monkeypatch):
    seen = []

    def look(self):
        buffer, policy = self.rollout_buffer, self.policy
        observation = torch.as_tensor(buffer.observations).flatten(0, 1)
        with torch.no_grad():
            raw = policy.predict_values(observation).squeeze(1)
            normalized, _, _ = policy.evaluate_actions(observation, torch.as_tensor(buffer.actions).flatten())
        old = torch.as_tensor(buffer.values).flatten()
        # The buffer holds what the critic said before its statistics moved; it still says the same.
        assert_close(policy.value_net.denormalize(old), raw, rtol=1e-4, atol=1e-1)
        assert_close(normalized.squeeze(1), old, rtol=1e-4, atol=1e-4)
        seen.append(raw.std().item())

    monkeypatch.setattr(PPO, "train", look)
    before = model.policy.value_net.mean.clone()
    model.learn(2048, reset_num_timesteps=False)
    assert len(seen) == 2
    assert min(seen) > 1000
    assert not torch.equal(before, model.policy.value_net.mean)


def test_a_saved_model_loads_with_its_statistics_and_goes_on(example, model, tmp_path):
    sb3 = example("sb3_value_net")
    model.save(tmp_path / "model.zip")
    loaded = sb3.PopArtPPO.load(tmp_path / "model.zip", env=sb3.make_envs(1000.0), device="cpu")
    for name, x in model.policy.state_dict().items():
        assert torch.equal(x, loaded.policy.state_dict()[name])
    observation = torch.randn(16, 4)
    assert torch.equal(loaded.policy.predict_values(observation), model.policy.predict_values(observation))
    head, optimizer = loaded.policy.value_net, loaded.policy.optimizer
    moment, std = optimizer.state[head.linear.weight]["exp_avg"].clone(), head.std.clone()
    assert moment.ne(0).any()
    head.update(1e6 * torch.randn(100))
    assert_close(optimizer.state[head.linear.weight]["exp_avg"], (moment * std / head.std).float())
    loaded.learn(1024)
    assert head.count == model.policy.value_net.count + 2


def test_it_prints_both_returns(example, capsys):
    example("sb3_value_net").main(["--total-steps", "1024"])
    assert len(capsys.readouterr().out.splitlines()) == 3
