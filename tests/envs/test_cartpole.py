"""CartPole in torch is Gymnasium's."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import levelhead as lh
from levelhead.envs import TensorCartPole
from parts import HostReads
from toys import make_trainer

POLICIES = {"random": lambda x, drawn: drawn, "upright": lambda x, drawn: (x[:, 2] + x[:, 3] > 0).long()}
"""From states and random actions to actions; the second keeps the pole up until the time limit."""


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_actions_lead_to_gymnasiums_trajectories(policy):
    env = TensorCartPole(5, max_episode_steps=60)
    singles = [gym.make("CartPole-v1", max_episode_steps=60) for _ in range(5)]
    assert env.observation_space == singles[0].observation_space
    assert env.action_space == singles[0].action_space
    generator = torch.Generator().manual_seed(1)
    observation, ends = env.reset(3), {"terminated": 0, "truncated": 0}

    def begin(i):
        singles[i].reset(seed=0)
        singles[i].unwrapped.state = observation[i].double().numpy()

    for i in range(5):
        begin(i)
    for _ in range(200):
        action = POLICIES[policy](observation, torch.randint(2, (5,), generator=generator))
        step = env.step(action)
        observation = step.observation
        for i, single in enumerate(singles):
            x, reward, terminated, truncated, _ = single.step(int(action[i]))
            np.testing.assert_allclose(step.final_observation[i], x, rtol=0, atol=2e-5)
            assert step.reward[i] == reward
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            ends["terminated"] += terminated
            ends["truncated"] += truncated
            if terminated or truncated:
                assert (observation[i].abs() <= 0.05).all()
                begin(i)
            else:
                assert torch.equal(observation[i], step.final_observation[i])
    assert ends["truncated" if policy == "upright" else "terminated"] >= 10


def test_a_seed_decides_all():
    def play(seed):
        env = TensorCartPole(4)
        env.reset(seed + 1)
        env.step(torch.ones(4, dtype=torch.int64))
        told = [env.reset(seed).clone()]  # whatever came before
        told += [env.step(torch.ones(4, dtype=torch.int64)).observation.clone() for _ in range(40)]
        return torch.stack(told)

    first = play(3)
    assert torch.equal(play(3), first)
    assert not torch.equal(play(4), first)
    assert len(first[0].unique(dim=0)) == 4


def test_first_states_are_spread_as_gymnasiums_are():
    first = TensorCartPole(100_000).reset(0)
    assert first.abs().max() <= 0.05
    assert first.mean(0).abs().max() < 1e-3
    assert (first.std(0) - 0.1 / 12**0.5).abs().max() < 1e-3


def test_its_steps_read_nothing():
    env = TensorCartPole(4)
    env.reset(0)
    with HostReads() as host:
        for _ in range(30):
            env.step(torch.ones(4, dtype=torch.int64))
    assert host.reads == []


def test_it_is_learned():
    optimizer = lh.OptimizerConfig(learning_rate=lh.Schedule(1e-2, 1e-3, "linear"))
    ppo = lh.PPOConfig(epochs=10, minibatches=4)
    *_, last = make_trainer(TensorCartPole(32), num_steps=32, total_steps=50_000, ppo=ppo, optimizer=optimizer)
    assert last.metrics["rollout/ep_len_mean"] > 250


def test_it_goes_on_from_its_state_with_the_same_episodes_one_after_another():
    actions = torch.randint(2, (80, 5), generator=torch.Generator().manual_seed(0))
    first, second = (TensorCartPole(5, max_episode_steps=30) for _ in range(2))
    first.reset(3)
    for action in actions[:40]:
        first.step(action)
    state = first.get_state()
    expected = [first.step(action) for action in actions[40:]]
    assert sum(int((step.terminated | step.truncated).sum()) for step in expected) > 5
    second.set_state(state)
    for action, step in zip(actions[40:], expected, strict=True):
        answer = second.step(action)
        assert torch.equal(answer.observation, step.observation)
        assert torch.equal(answer.truncated, step.truncated)


def test_a_run_is_trained_on_it_and_evaluated(workdir, tiny):
    run = lh.train(TensorCartPole(2), config=tiny())
    assert lh.evaluate(run.policy, TensorCartPole(2), episodes=2).lengths
