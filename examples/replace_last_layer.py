"""An existing value network gets a PopArt head in place of its last layer, in five steps.

The network has been trained on returns of the order of 1. Then the returns become a thousand times as large, and the
learning rate that was right no longer is; with the head, it still is.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import levelhead as lh

STATE_DIM = 128
Draw = Callable[[], tuple[Tensor, Tensor]]
"""Answers a batch of states `[B, 128]` and their returns `[B]`."""


@dataclass(frozen=True)
class Outcome:
    """What the replacement did. Changes and errors are in units of the standard deviation of the new returns."""

    changed_by_replacement: float
    """Largest change of a prediction."""
    changed_by_update: float
    plain_error: float
    """RMSE on states never seen, at the end."""
    popart_error: float


def make_returns(seed: int, scale: float) -> Draw:
    """Returns that follow the states by a rule, which `seed` alone decides."""
    torch.manual_seed(seed)
    rule = nn.Sequential(nn.Linear(STATE_DIM, 16), nn.Tanh(), nn.Linear(16, 1)).requires_grad_(False)

    def draw() -> tuple[Tensor, Tensor]:
        states = torch.randn(256, STATE_DIM)
        return states, scale * (5 * rule(states).squeeze(-1) + 2)

    return draw


def train_as_ever(net: nn.Module, draw: Draw, steps: int, learning_rate: float) -> None:
    """The training loop as you have it: squared error in the units of the returns."""
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    for _ in range(steps):
        states, returns = draw()
        optimizer.zero_grad()
        mse_loss(net(states).squeeze(-1), returns).backward()
        optimizer.step()


def run(steps: int = 2000, scale: float = 1000.0, learning_rate: float = 1e-3, seed: int = 0) -> Outcome:
    draw_small, draw = make_returns(seed, scale=1.0), make_returns(seed, scale)
    net = nn.Sequential(nn.Linear(STATE_DIM, 64), nn.ReLU(), nn.Linear(64, 1))
    train_as_ever(net, draw_small, steps, learning_rate)
    plain = copy.deepcopy(net)

    states, returns = draw()
    before = net(states)

    # 1. Make a head for as many features as the last layer reads.
    head = lh.PopArtValueHead(64)

    # 2. Put it in place. If the old layer has learned something, take that over first: a new head has mean 0 and
    #    std 1, so the weights mean the same there.
    head.linear.load_state_dict(net[-1].state_dict())
    net[-1] = head
    replaced = net(states)  # called as ever, and still in the units of the returns

    # 3. Make the optimiser anew, as the old one holds the old layer, and tell the head of it.
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    head.track(optimizer)

    # 4. Show the head the raw targets, once per batch or rollout, before learning from them. `update` preserves every
    #    output. A head that took nothing over had better call `observe`: that moves a new head to where its first
    #    targets are, instead of preserving a prediction of 0 that nobody has learned.
    head.update(returns)
    updated = net(states)

    for _ in range(steps):
        # 5. The loss comes from the head, which normalises targets and predictions alike.
        optimizer.zero_grad()
        head.loss(net[:-1](states), returns).mean().backward()
        optimizer.step()
        states, returns = draw()
        head.update(returns)

    train_as_ever(plain, draw, steps, learning_rate)
    unseen, truth = draw()
    with torch.no_grad():
        std = truth.std()
        return Outcome(
            ((replaced - before).abs().max() / std).item(),
            ((updated - replaced).abs().max() / std).item(),
            (mse_loss(plain(unseen).squeeze(-1), truth).sqrt() / std).item(),
            (mse_loss(net(unseen).squeeze(-1), truth).sqrt() / std).item(),
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps before and after (default: 2000)")
    parser.add_argument("--scale", type=float, default=1000.0, help="multiplies the returns (default: 1000)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    outcome = run(args.steps, args.scale, args.learning_rate, args.seed)
    print("in standard deviations of the returns:")
    print(f"  largest change of a prediction by the replacement {outcome.changed_by_replacement:.1e}")
    print(f"  largest change of a prediction by update          {outcome.changed_by_update:.1e}")
    print(f"  error {args.steps} steps after the returns became {args.scale:g} times as large:")
    print(f"    linear layer {outcome.plain_error:.3f}   PopArt head {outcome.popart_error:.3f}")


if __name__ == "__main__":
    main()
