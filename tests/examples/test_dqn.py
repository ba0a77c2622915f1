"""DQN solves CartPole at any reward scale, with a target network that is on the online network's axis."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.testing import assert_close

NEVER = 1_000_000


def test_it_learns_with_rewards_times_a_thousand(example):
    dqn = example("dqn")
    trained = dqn.train(max_steps=2050, reward_scale=1000.0, check_every=NEVER)
    assert dqn.evaluate(trained.online, episodes=5, seed=0) > 100
    head = trained.online.head
    assert head.mean[0] > 3000  # values of several steps, each 1000
    assert torch.equal(head.mean, head.mean[:1].expand(2))
    assert torch.equal(head.std, head.std[:1].expand(2))
    assert torch.equal(head.std, trained.target.head.std)  # though 50 steps have passed since the last copy


def test_a_power_of_two_trains_the_same_network(example):
    one, large = (
        example("dqn").train(max_steps=800, reward_scale=scale, check_every=NEVER).online for scale in (1.0, 2.0**20)
    )
    assert one.head.count[0] > 300
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), large.parameters(), strict=True))
    assert torch.equal(large.head.std, 2.0**20 * one.head.std)


def test_a_step_leaves_the_target_networks_values_as_they_were(example):
    dqn = example("dqn")
    trained = dqn.train(max_steps=700, check_every=NEVER)
    online, target = trained.online, trained.target
    online.head.mirror(target.head)
    optimizer = torch.optim.Adam(online.parameters(), 1e-2)
    online.head.track(optimizer)
    replay, x = dqn.Replay(64), torch.randn(64, 4)
    for i in range(64):
        replay.add(x[i].numpy(), i % 2, 500.0 * i, x[i].numpy(), terminated=True)
    before, std = target(x), online.head.std.clone()
    online_before = online(x)
    for _ in range(20):
        dqn.learn(online, target, optimizer, replay, torch.arange(64), gamma=0.9)
    assert online.head.std[0] > 10 * std[0]
    assert_close(target(x), before, rtol=1e-3, atol=1e-2)
    assert (online(x) - online_before).abs().max() > 100


def test_only_a_real_end_cuts_the_bootstrap_off(example):
    dqn = example("dqn")
    torch.manual_seed(0)
    online, target = dqn.QNetwork("linear"), dqn.QNetwork("linear")
    with torch.no_grad():
        target.head.linear.bias.fill_(10.0)
    replay, zero = dqn.Replay(2), np.zeros(4, np.float32)
    replay.add(zero, 0, 1.0, zero, terminated=True)
    replay.add(zero, 1, 1.0, zero, terminated=False)
    optimizer = torch.optim.SGD(online.head.parameters(), lr=1.0)
    steps = []
    for rows in (torch.tensor([0]), torch.tensor([1])):
        with torch.no_grad():
            online.head.linear.weight.zero_()
            online.head.linear.bias.zero_()
        dqn.learn(online, target, optimizer, replay, rows, gamma=0.5)
        steps.append(online.head.linear.bias.detach() / 2)  # gradient of the square: twice the error
    assert steps[0].tolist() == pytest.approx([1.0, 0.0])
    assert steps[1].tolist() == pytest.approx([0.0, 1.0 + 0.5 * 10.0])


def test_a_time_limit_is_stored_as_no_end(example, monkeypatch):
    dqn, stored = example("dqn"), []
    monkeypatch.setattr(dqn.gym, "make", partial(gym.make, max_episode_steps=5))
    monkeypatch.setattr(dqn.Replay, "add", lambda self, *transition: stored.append(transition))
    dqn.train(max_steps=50, check_every=NEVER)
    assert len(stored) == 50
    assert not any(transition[-1] for transition in stored)  # CartPole takes at least eight steps to fall


def test_it_prints_whether_it_is_solved(example, capsys):
    example("dqn").main(["--max-steps", "10", "--head", "linear"])
    assert capsys.readouterr().out.startswith("linear head, rewards times 1: not solved after 10 steps")
