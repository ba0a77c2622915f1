"""Recurrent PPO: memory, time limits and scale are handled as the file says."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.testing import assert_close


class Clock(gym.Env):
    """Shows which episode and which step it is; a time limit ends every episode after five."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        self.episode, self.now = self.episode + 1, 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.episode, self.now], np.float32)

    def step(self, action):
        self.now += 1
        return self.observe(), 1.0, False, self.now == 5, {}


@pytest.fixture
def agent(example):
    torch.manual_seed(0)
    agent = example("cleanrl_style").Agent()
    torch.nn.init.normal_(agent.critic.linear.weight)
    agent.critic.update(torch.randn(100) * 1000 + 300)
    return agent


def test_a_rollout_can_be_read_again_from_the_state_before_it(example, agent):
    cleanrl = example("cleanrl_style")
    collector = cleanrl.Collector(cleanrl.Settings(num_envs=3, num_steps=20, time_limit=7))
    first, second = collector.collect(agent), collector.collect(agent)
    assert first.state[0].eq(0).all()
    assert second.state[0].ne(0).any()
    for rollout in (first, second):
        assert rollout.started[1:].any()
        features = agent.features(rollout.observation, rollout.started, rollout.state)
        assert_close(agent.value(features), rollout.value, rtol=1e-5, atol=1e-2)
        log_prob = torch.distributions.Categorical(logits=agent.actor(features)).log_prob(rollout.action)
        assert_close(log_prob, rollout.log_prob, rtol=1e-5, atol=1e-6)


def test_minibatches_are_whole_columns_from_the_state_that_the_lstm_had(example, agent, monkeypatch):
    cleanrl, seen = example("cleanrl_style"), []
    settings = cleanrl.Settings(num_envs=4, num_steps=20, time_limit=7, epochs=2, minibatches=2)
    collector = cleanrl.Collector(settings)
    collector.collect(agent)
    rollout, features = collector.collect(agent), agent.features

    def look(*given):
        seen.append(agent.value(features(*given)))
        return features(*given)

    monkeypatch.setattr(agent, "features", look)
    cleanrl.learn(agent, torch.optim.SGD(agent.parameters(), lr=0.0), rollout, settings)
    assert len(seen) == 4
    for epoch in (seen[:2], seen[2:]):
        read_again = torch.cat(epoch, dim=1).sort(dim=1).values
        assert_close(read_again, rollout.value.sort(dim=1).values, rtol=1e-3, atol=1e-1)


def test_after_a_time_limit_the_final_observation_is_valued_with_the_memory_of_its_episode(example, agent, monkeypatch):
    cleanrl = example("cleanrl_style")
    monkeypatch.setattr(
        cleanrl, "make_envs", lambda s: SyncVectorEnv([Clock] * s.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    rollout = cleanrl.Collector(cleanrl.Settings(num_envs=2, num_steps=12)).collect(agent)
    assert rollout.truncated.nonzero()[:, 0].unique().tolist() == [4, 9]
    for episode in (0, 1):
        whole = torch.tensor([[episode, now] for now in range(6)], dtype=torch.float32).unsqueeze(1).expand(6, 2, 2)
        started = torch.tensor([True] + [False] * 5).unsqueeze(1).expand(6, 2)
        with torch.no_grad():
            value = agent.value(agent.features(whole, started, agent.initial_state(2)))
        rows = slice(5 * episode, 5 * episode + 5)
        assert_close(rollout.value[rows], value[:5], rtol=1e-5, atol=1e-2)
        assert_close(rollout.next_value[rows], value[1:], rtol=1e-5, atol=1e-2)


def test_a_power_of_two_trains_the_same_agent_bit_for_bit(example):
    cleanrl = example("cleanrl_style")
    settings = cleanrl.Settings(total_steps=1024, num_envs=8, num_steps=32)
    (one, returns), (large, same) = (cleanrl.train(replace(settings, reward_scale=scale)) for scale in (1.0, 2.0**20))
    assert one.critic.count == 4
    assert returns == same
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), large.parameters(), strict=True))
    assert torch.equal(large.critic.mean, 2.0**20 * one.critic.mean)


def test_it_learns_what_takes_memory(example):
    cleanrl = example("cleanrl_style")
    _, returns = cleanrl.train(cleanrl.Settings(total_steps=12_288, reward_scale=1000.0))
    assert np.mean(returns[-20:]) > 40
    assert np.mean(returns[:20]) < 30


def test_it_prints_the_last_returns(example, capsys):
    example("cleanrl_style").main(["--total-steps", "1024"])
    assert capsys.readouterr().out.startswith("mean return of the last 100 episodes: ")
