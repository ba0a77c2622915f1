"""DQN on CartPole-v1 with a PopArt head for the Q-values, which a target network mirrors.

Try `--reward-scale 1000`, then the same with `--head linear`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import levelhead as lh

HEADS = {"popart": lh.PopArtValueHead, "linear": lh.LinearValueHead}
SOLVED = 475.0


class QNetwork(nn.Module):
    """Observations `[B, 4]` to the values of both actions, `[B, 2]`, in the units of the rewards."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head = HEADS[head](256, output_dim=2, beta=0.99)
        self.register_buffer("typical", torch.tensor([2.4, 2.0, 0.21, 2.0]))  # position, speed, angle, turning

    def features(self, observation: Tensor) -> Tensor:
        return self.trunk(observation / self.typical)

    def forward(self, observation: Tensor) -> Tensor:
        return self.head(self.features(observation))

    @torch.no_grad()
    def act(self, observation: np.ndarray) -> int:
        return int(self(torch.from_numpy(observation)).argmax())


class Replay:
    """All transitions so far."""

    def __init__(self, capacity: int) -> None:
        self.observation = torch.zeros(capacity, 4)
        self.action = torch.zeros(capacity, dtype=torch.int64)
        self.reward = torch.zeros(capacity)
        self.next_observation = torch.zeros(capacity, 4)
        self.terminated = torch.zeros(capacity, dtype=torch.bool)
        self.size = 0

    def add(
        self, observation: np.ndarray, action: int, reward: float, next_observation: np.ndarray, terminated: bool
    ) -> None:
        i = self.size
        self.observation[i] = torch.from_numpy(observation)
        self.action[i] = action
        self.reward[i] = reward
        self.next_observation[i] = torch.from_numpy(next_observation)
        self.terminated[i] = terminated
        self.size += 1


def learn(
    online: QNetwork, target: QNetwork, optimizer: torch.optim.Optimizer, replay: Replay, rows: Tensor, gamma: float
) -> None:
    """One gradient step on the transitions that `rows` names."""
    with torch.no_grad():  # in the units of the rewards, whatever the head
        following = target(replay.next_observation[rows]).amax(1)
        targets = replay.reward[rows] + gamma * torch.where(replay.terminated[rows], 0.0, following)

    # The values of a state's actions are compared with each other, so an error must weigh the same in all of them:
    # every output sees every target, which gives all outputs one scale; task=action would give each its own.
    # `update` preserves all outputs from the first call on, which the targets were made with.
    online.head.update(targets.unsqueeze(1).expand(-1, 2))

    features, action = online.features(replay.observation[rows]), replay.action[rows]
    loss = online.head.loss(features, targets, task=action).mean()  # of the actions that were taken
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def evaluate(network: QNetwork, episodes: int, seed: int) -> float:
    """Mean greedy return, in the environment's own units."""
    env, total = gym.make("CartPole-v1"), 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(network.act(observation))
            total += float(reward)
            ended = terminated or truncated
    env.close()
    return total / episodes


@dataclass(frozen=True)
class Trained:
    online: QNetwork
    target: QNetwork
    steps: int


def train(
    max_steps: int = 10_000,
    reward_scale: float = 1.0,
    head: str = "popart",
    learning_rate: float = 5e-4,
    gamma: float = 0.95,
    seed: int = 0,
    check_every: int = 500,
) -> Trained:
    """Learns until ten greedy episodes, played every `check_every` steps, show CartPole solved."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    env = gym.make("CartPole-v1")
    online, target = QNetwork(head), QNetwork(head)
    target.load_state_dict(online.state_dict())  # statistics included
    optimizer = torch.optim.Adam(online.parameters(), learning_rate)
    online.head.track(optimizer)
    # Between two copies the statistics move on; the target head moves along and goes on answering the same.
    online.head.mirror(target.head)
    replay = Replay(max_steps)

    observation, _ = env.reset(seed=seed)
    for step in range(1, max_steps + 1):
        exploring = rng.random() < max(0.05, 1 - step / 2000)
        action = int(rng.integers(2)) if exploring else online.act(observation)
        next_observation, reward, terminated, truncated, _ = env.step(action)
        # A time limit is no end: where an episode was truncated, the target network says what would have followed.
        replay.add(observation, action, reward_scale * float(reward), next_observation, terminated)
        observation = env.reset()[0] if terminated or truncated else next_observation
        if step >= 500:
            learn(online, target, optimizer, replay, torch.from_numpy(rng.integers(replay.size, size=128)), gamma)
        if step % 200 == 0:
            target.load_state_dict(online.state_dict())
        if step % check_every == 0 and evaluate(online, episodes=10, seed=10_000) >= SOLVED:
            break
    env.close()
    return Trained(online, target, step)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=10_000, help="give up after so many (default: 10,000)")
    parser.add_argument("--reward-scale", type=float, default=1.0, help="multiplies every reward (default: 1)")
    parser.add_argument("--head", choices=HEADS, default="popart", help="default: popart")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of Adam (default: 0.0005)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    trained = train(args.max_steps, args.reward_scale, args.head, args.learning_rate, seed=args.seed)
    greedy = evaluate(trained.online, episodes=50, seed=20_000)
    verdict = "solved" if greedy >= SOLVED else "not solved"
    print(f"{args.head} head, rewards times {args.reward_scale:g}: {verdict} after {trained.steps} steps,", end=" ")
    print(f"greedy return over 50 new episodes {greedy:.1f}")


if __name__ == "__main__":
    main()
