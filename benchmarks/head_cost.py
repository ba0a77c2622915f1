"""What a value head costs, compiled: `update` plus `loss` of a head against the plain loss of a linear layer.

    python benchmarks/head_cost.py [--rounds 15]

2048 targets, one per row, 64 features, float32, one thread. The plain loss is `mse_loss(linear(x), y)`; both sides are
one compiled function of the same inputs, timed in alternating rounds, with and without the backward pass.
"""

import argparse
import timeit
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import levelhead as lh

ROWS, FEATURES = 2048, 64
HEADS: dict[str, Callable[[], lh.ValueHead]] = {
    "popart": lambda: lh.PopArtValueHead(FEATURES),
    "runningnorm": lambda: lh.RunningNormHead(FEATURES),
    "valuenorm": lambda: lh.ValueNormHead(FEATURES),
    "linear": lambda: lh.LinearValueHead(FEATURES),
    "symlog": lambda: lh.TransformValueHead(FEATURES),
    "hlgauss": lambda: lh.HLGaussValueHead(FEATURES),
    "twohot": lambda: lh.TwoHotValueHead(FEATURES),
}


def plain(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The loss of a linear layer, as anyone would write it."""
    linear = nn.Linear(FEATURES, 1)

    @torch.compile(fullgraph=True)
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return mse_loss(linear(x).squeeze(-1), y)

    return lambda: loss(x, y)


def whole(head: lh.ValueHead, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Statistics, layer and loss of a head."""

    @torch.compile(fullgraph=True)
    def update_and_loss(x: Tensor, y: Tensor) -> Tensor:
        head.update(y)
        return head.loss(x, y).mean()

    return lambda: update_and_loss(x, y)


def microseconds(function: Callable[[], object], seconds: float = 0.1) -> float:
    """Time of one call, the best of three stretches."""
    count = max(int(seconds / min(timeit.repeat(function, number=10, repeat=3)) * 10), 1)
    return min(timeit.repeat(function, number=count, repeat=3)) / count * 1e6


def backward(function: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: function().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, FEATURES, requires_grad=True), 1e3 * torch.randn(ROWS) + 1e4
    baseline = plain(x, y)
    print(f"update + loss of {ROWS} targets against a linear layer's loss; median (range) of {rounds} rounds\n")
    print("| head | pass | head, us | linear layer, us | ratio |\n|---|---|---|---|---|")
    for name, make in HEADS.items():
        step = whole(make(), x, y)
        for label, ours, theirs in (
            ("forward", step, baseline),
            ("forward and backward", backward(step), backward(baseline)),
        ):
            for function in (ours, theirs):
                function()  # compiles
            times = np.array([(microseconds(ours), microseconds(theirs)) for _ in range(rounds)])
            ratio = times[:, 0] / times[:, 1]
            print(
                f"| {name} | {label} | {np.median(times[:, 0]):.1f} | {np.median(times[:, 1]):.1f} |"
                f" {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
