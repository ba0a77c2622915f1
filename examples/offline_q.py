"""Offline regression of Q-values on LunarLander-v3: a trained agent plays, then a network with a PopArt head learns.

python examples/offline_q.py collect    # trains an agent, lets it play, and writes lunarlander.npz
python examples/offline_q.py fit        # learns Q(observation, action) from that
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import levelhead as lh

ENV_ID, OBSERVATION_DIM, ACTIONS, GAMMA = "LunarLander-v3", 8, 4, 0.99


# -- collect -----------------------------------------------------------------------------------------------------


def train_agent(total_steps: int, seed: int, run_dir: Path | None = None) -> lh.Policy:
    # The preset's discount is 0.999; the critic is to complete returns that are discounted by 0.99, so it learns those.
    config = lh.preset(ENV_ID)
    config = replace(config, ppo=replace(config.ppo, gamma=GAMMA))
    run = lh.train(ENV_ID, config=config, total_steps=total_steps, seed=seed, run_dir=run_dir, console=Console())
    if run.interrupted:
        raise SystemExit(f"interrupted at step {run.step}: nothing is collected with half an agent")
    return run.policy


def play(policy: lh.Policy, episodes: int, exploration: float, seed: int) -> dict[str, np.ndarray]:
    """Whole episodes of the agent, of whose actions a share `exploration` is replaced by random ones.

    Without those, hardly anything could be learned of the actions that the agent doesn't choose. Returns are the
    discounted rewards of what was really played. Where the time limit cut an episode, the critic's value of the final
    observation stands for all that would have followed.

    Returns:
        `observations` [M, 8] float32, `actions` [M] int64, `returns` [M] float32; `episodes` [M] int64 numbers the
        episode that each row is from.
    """
    rng = np.random.default_rng(seed)
    env = gym.make(ENV_ID)
    rows: list[tuple[np.ndarray, int, float, int]] = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        seen, rewards, terminated, truncated = [], [], False, False
        while not (terminated or truncated):
            action = int(rng.integers(ACTIONS) if rng.random() < exploration else policy.act(observation))
            seen.append((observation, action))
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward))
        following = 0.0 if terminated else policy.value(torch.from_numpy(observation)).item()
        returns = []
        for reward in reversed(rewards):
            following = reward + GAMMA * following
            returns.append(following)
        rows += [(*pair, value, episode) for pair, value in zip(seen, reversed(returns), strict=True)]
    env.close()
    observations, actions, targets, numbers = zip(*rows, strict=True)
    return {
        "observations": np.array(observations, np.float32),
        "actions": np.array(actions, np.int64),
        "returns": np.array(targets, np.float32),
        "episodes": np.array(numbers, np.int64),
    }


# -- fit ---------------------------------------------------------------------------------------------------------


class QNetwork(nn.Module):
    """Observations `[B, 8]` and actions `[B]` to values: the action goes in, so there is one output."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(OBSERVATION_DIM + ACTIONS, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU())
        self.head = lh.PopArtValueHead(32, beta=0.999)  # it is shown 64 returns at a time: a long memory evens them out

    def features(self, observation: Tensor, action: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(action, ACTIONS).to(observation.dtype)
        return self.trunk(torch.cat((observation, one_hot), dim=-1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """`[B]`, in the units of the rewards."""
        return self.head(self.features(observation, action)).squeeze(-1)


@dataclass(frozen=True)
class Fit:
    network: QNetwork
    losses: list[float]
    """Mean loss per batch of every epoch, on the normalised axis."""
    r2: float
    """Of predictions in the units of the rewards, on the returns of held-out episodes."""
    rmse: float
    std: float
    """Of those returns."""


def fit(data: dict[str, np.ndarray], epochs: int, seed: int, report_every: int = 100) -> Fit:
    torch.manual_seed(seed)
    observations, actions, returns, episodes = (
        torch.from_numpy(data[name]) for name in ("observations", "actions", "returns", "episodes")
    )
    # Neighbouring rows of an episode are nearly alike, so whole episodes are held out, not rows.
    numbers = episodes.unique()
    held_out = torch.isin(episodes, numbers[torch.randperm(len(numbers))[: max(1, len(numbers) // 5)]])
    training = (~held_out).nonzero().squeeze(1)

    network = QNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-4)
    network.head.track(optimizer)
    losses = []
    for epoch in range(1, epochs + 1):
        total, batches = 0.0, training[torch.randperm(len(training))].split(64)
        for rows in batches:
            features, targets = network.features(observations[rows], actions[rows]), returns[rows]
            loss = network.head.loss(features, targets).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # After the step or before the loss: either will do, as predictions stay the same. Before, a batch is
            # normalised by statistics that have seen it, the first one included. After, as here, each loss is
            # that of a forecast, but the first step is taken with mean 0 and std 1, on raw returns.
            network.head.update(targets)
            total += loss.item()
        losses.append(total / len(batches))
        if epoch % report_every == 0:
            print(f"epoch {epoch}: loss {losses[-1]:.4f}, returns {network.head.mean.item():.1f}", end=" ")
            print(f"+- {network.head.std.item():.1f}", flush=True)
    with torch.no_grad():
        error = (network(observations[held_out], actions[held_out]) - returns[held_out]).square().mean()
    variance = returns[held_out].var(correction=0)
    return Fit(network, losses, (1 - error / variance).item(), error.sqrt().item(), variance.sqrt().item())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("collect", "fit"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, default=Path("lunarlander.npz"), help="default: lunarlander.npz")
        command.add_argument("--seed", type=int, default=1)
        if name == "fit":
            command.add_argument("--epochs", type=int, default=300, help="default: 300")
            continue
        command.add_argument("--total-steps", type=int, default=1_000_000, help="of training (default: 1,000,000)")
        command.add_argument("--episodes", type=int, default=200, help="to play then (default: 200)")
        command.add_argument("--exploration", type=float, default=0.1, help="share of random actions (default: 0.1)")
        command.add_argument("--run-dir", type=Path, default=None, help="of the agent's training (default: in runs/)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    if args.command == "collect":
        policy = train_agent(args.total_steps, args.seed, args.run_dir)
        data = play(policy, args.episodes, args.exploration, args.seed)
        np.savez(args.data, **data)
        returns = data["returns"]
        print(f"{args.data}: {len(returns)} steps of {args.episodes} episodes, returns", end=" ")
        print(f"{returns.mean():.1f} +- {returns.std():.1f}, from {returns.min():.1f} to {returns.max():.1f}")
    else:
        with np.load(args.data) as data:
            result = fit(dict(data), args.epochs, args.seed)
        print(f"held-out episodes: R^2 {result.r2:.3f}, RMSE {result.rmse:.1f} (std of the returns {result.std:.1f})")


if __name__ == "__main__":
    main()
