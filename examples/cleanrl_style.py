"""PPO with an LSTM in a single file, in the manner of CleanRL, with a PopArt head for the critic.

The task is CartPole-v1 without its velocities: a policy without memory cannot tell which way the pole is falling. Try
`--reward-scale 1e6`, or any other: with a power of two, the same seed trains the same policy.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical

import levelhead as lh

OBSERVATION_DIM, ACTIONS = 2, 2
BOUNDS = np.array([2.4, 0.21], np.float32)
"""Of the cart's position and the pole's angle, beyond which an episode ends."""
State = tuple[Tensor, Tensor]
"""Of the LSTM, `[N, H]` each."""


@dataclass(frozen=True)
class Settings:
    total_steps: int = 100_000
    reward_scale: float = 1.0
    seed: int = 1
    num_envs: int = 32
    num_steps: int = 32
    """Of each environment per rollout."""
    time_limit: int = 500
    learning_rate: float = 2.5e-3
    """At the start; it falls to 0."""
    gamma: float = 0.99
    lam: float = 0.95
    epochs: int = 4
    minibatches: int = 4
    clip_range: float = 0.2
    value_coef: float = 0.5
    max_grad_norm: float = 0.5


def make_envs(settings: Settings) -> SyncVectorEnv:
    def make() -> gym.Env:
        env = gym.make("CartPole-v1", max_episode_steps=settings.time_limit)
        positions = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_DIM,))
        return gym.wrappers.TransformObservation(env, lambda observation: observation[[0, 2]] / BOUNDS, positions)

    # SAME_STEP: where an episode ends, the observation is the next one's first, and info holds the true last one.
    return SyncVectorEnv([make] * settings.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


class Agent(nn.Module):
    """An encoder and an LSTM, which actor and critic share."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = hidden
        self.encoder = nn.Sequential(nn.Linear(OBSERVATION_DIM, hidden), nn.Tanh())
        self.lstm = nn.LSTMCell(hidden, hidden)
        self.actor = nn.Linear(hidden, ACTIONS)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        self.critic = lh.PopArtValueHead(hidden)

    def initial_state(self, num_envs: int) -> State:
        return torch.zeros(num_envs, self.hidden), torch.zeros(num_envs, self.hidden)

    def step(self, observation: Tensor, started: Tensor, state: State) -> State:
        """The state after `[N, D]` observations; it is forgotten first where `started`, `[N]`, says so."""
        h, c = (torch.where(started.unsqueeze(1), 0.0, x) for x in state)
        return self.lstm(self.encoder(observation), (h, c))

    def features(self, observation: Tensor, started: Tensor, state: State) -> Tensor:
        """What actor and critic read, `[T, N, H]`, along `[T, N, D]` observations."""
        features = []
        for x, new in zip(observation, started, strict=True):
            state = self.step(x, new, state)
            features.append(state[0])
        return torch.stack(features)

    def value(self, features: Tensor) -> Tensor:
        """In the units of the rewards, without the trailing 1 of the head."""
        return self.critic(features).squeeze(-1)


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments; every field but `state` is `[T, N, ...]`."""

    observation: Tensor
    started: Tensor
    """Whether an episode began with this observation."""
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    value: Tensor
    """Raw, as is `next_value`: GAE works in the units of the rewards."""
    next_value: Tensor
    state: State
    """Of the LSTM before the first step."""


class Collector:
    """Acts in the environments, and remembers between rollouts where they and the LSTM stand."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.envs = make_envs(settings)
        observation, _ = self.envs.reset(seed=settings.seed)
        self.observation = torch.from_numpy(observation)
        self.started = torch.ones(settings.num_envs, dtype=torch.bool)
        self.state: State | None = None
        self.running = np.zeros(settings.num_envs)
        self.returns: list[float] = []
        """Of all episodes that have ended, in the environment's own units."""

    @torch.no_grad()
    def collect(self, agent: Agent) -> Rollout:
        state = first = self.state or agent.initial_state(self.settings.num_envs)
        rows: list[dict[str, Tensor]] = []
        for _ in range(self.settings.num_steps):
            observation, started = self.observation, self.started
            state = agent.step(observation, started, state)
            policy = Categorical(logits=agent.actor(state[0]))
            action = policy.sample()
            following, reward, terminated, truncated, info = self.envs.step(action.numpy())
            ended = terminated | truncated
            self.running += reward
            self.returns += self.running[ended].tolist()
            self.running[ended] = 0.0

            # After a time limit something would have followed: the final observation is worth what the critic says,
            # remembering this episode. `state` itself doesn't move on: next comes another episode.
            final_value = torch.zeros(self.settings.num_envs)
            if truncated.any():
                final = following.copy()
                final[ended] = np.stack(info["final_obs"][ended])
                going_on = torch.zeros_like(started)
                final_value = agent.value(agent.step(torch.from_numpy(final), going_on, state)[0])

            self.observation, self.started = torch.from_numpy(following.copy()), torch.from_numpy(ended)
            rows.append(
                {
                    "observation": observation,
                    "started": started,
                    "action": action,
                    "log_prob": policy.log_prob(action),
                    "reward": self.settings.reward_scale * torch.from_numpy(reward).float(),
                    "terminated": torch.from_numpy(terminated.copy()),
                    "truncated": torch.from_numpy(truncated.copy()),
                    "value": agent.value(state[0]),
                    "next_value": final_value,  # of episodes that were cut; all others are filled in below
                }
            )
        self.state = state
        last_value = agent.value(agent.step(self.observation, self.started, state)[0])
        data = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        value_after = torch.cat((data["value"][1:], last_value.unsqueeze(0)))
        data["next_value"] = torch.where(data["truncated"], data["next_value"], value_after)
        return Rollout(**data, state=first)


def learn(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, settings: Settings) -> None:
    r = rollout
    advantage, target = lh.gae(r.reward, r.value, r.next_value, r.terminated, r.truncated, settings.gamma, settings.lam)
    # No epsilon is added to the standard deviation: it would be a scale.
    advantage = (advantage - advantage.mean()) / advantage.std()

    # Once per rollout and before the epochs, so that all of them learn on one axis. Targets go in as they are.
    agent.critic.observe(target)

    for _ in range(settings.epochs):
        # Whole columns: each environment's steps stay in order, from the state that its LSTM had.
        for columns in torch.randperm(settings.num_envs).chunk(settings.minibatches):
            state = (r.state[0][columns], r.state[1][columns])
            features = agent.features(r.observation[:, columns], r.started[:, columns], state)
            policy = Categorical(logits=agent.actor(features))
            ratio = (policy.log_prob(r.action[:, columns]) - r.log_prob[:, columns]).exp()
            clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
            gain = torch.minimum(ratio * advantage[:, columns], clipped * advantage[:, columns]).mean()

            # The head normalises the targets, so the loss is of the order of 1, and so is its share of the gradient
            # that the actor gets through the LSTM and that is clipped below.
            value_loss = agent.critic.loss(features, target[:, columns]).mean()
            optimizer.zero_grad()
            (settings.value_coef * value_loss - gain).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), settings.max_grad_norm)
            optimizer.step()


def train(settings: Settings, report_every: int = 0) -> tuple[Agent, list[float]]:
    """The agent, and the returns of its training episodes; a line every so many iterations."""
    torch.manual_seed(settings.seed)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), settings.learning_rate, eps=1e-5)
    agent.critic.track(optimizer)
    collector = Collector(settings)
    batch = settings.num_envs * settings.num_steps
    iterations = -(-settings.total_steps // batch)
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - i / iterations)
        learn(agent, optimizer, collector.collect(agent), settings)
        if report_every and (i + 1) % report_every == 0:
            recent = np.mean(collector.returns[-100:])
            print(f"step {(i + 1) * batch}: return {recent:.1f}", end=", ")
            print(f"value targets {agent.critic.mean.item():.4g} +- {agent.critic.std.item():.4g}", flush=True)
    collector.envs.close()
    return agent, collector.returns


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", type=int, default=Settings.total_steps, help="default: 100,000")
    parser.add_argument("--reward-scale", type=float, default=1.0, help="multiplies every reward (default: 1)")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    _, returns = train(Settings(args.total_steps, args.reward_scale, args.seed), report_every=20)
    print(f"mean return of the last 100 episodes: {np.mean(returns[-100:]):.1f}")


if __name__ == "__main__":
    main()
