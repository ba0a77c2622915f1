"""PopArt under SGD is normalised SGD: plain SGD on the raw last layer, and a trunk whose gradient is divided by std^2.

    python benchmarks/normalized_sgd.py run                     # two minutes on one core
    python benchmarks/normalized_sgd.py report

Proposition 3 of van Hasselt et al. 2016, "Learning values across many orders of magnitude". Two learners see the same
batches in the same order: statistics first, then one step of all parameters by gradients taken at the same point.

- PopArt: `PopArtValueHead` on a tanh trunk, one `torch.optim.SGD` for both, loss (z - y)^2 / 2 on the normalised axis.
- Normalised SGD: no head at all. Predictions W h + b and errors e = W h + b - y are raw; with step size alpha, in means
  over the batch:  W -= alpha e h^T,  b -= alpha e,  theta -= alpha sum_k (d (W h)_k / d theta) e_k / std_k^2,
  where std comes from plain moving averages of y and y^2, debiased.

Then theta is the same in both at every step, W = std W_head and b = std b_head + mean. Momentum keeps this, if the head
was told of the optimiser (`track`), so that the buffers of W_head and b_head are rescaled along with them. Deviations
are the largest over all steps: of outputs in units of std, of parameters relative to the largest entry.

Where the scale of the targets falls faster than the layer learns, W_head grows and both learners become chaotic, so
that rounding errors grow until the runs have nothing in common. There, and everywhere else, `step by step` sets the
second learner to the state of the first before every step, and compares after it.
"""

import argparse
import copy
import math
from collections.abc import Callable
from typing import Any

import records
import torch
from torch import Tensor, nn

from levelhead.values import PopArtValueHead

STEPS, BATCH, INPUTS, FEATURES, OUTPUTS = 3000, 4, 6, 12, 2
STEP_SIZE, BETA = 0.02, 0.98
DRIFTS: dict[str, Callable[[float], tuple[float, float]]] = {
    "none": lambda t: (1.0, 0.0),
    "scale grows 1e-3 to 1e3": lambda t: (10 ** (6 * t - 3), 0.0),
    "scale falls 30 to 1": lambda t: (30 ** (1 - t), 0.0),
    "scale swings by 3": lambda t: (3 ** math.sin(20 * t), 0.0),
    "scale jumps by 1e4": lambda t: (1e4 if t > 1 / 3 else 1.0, 0.0),
    "mean moves by 3 and back": lambda t: (1.0, 3 * math.sin(math.pi * t)),
    "scale falls 1e3 to 1e-3": lambda t: (10 ** (3 - 6 * t), 0.0),
    "scale jumps by 1e4 and back": lambda t: (1e4 if 1 / 3 < t < 2 / 3 else 1.0, 0.0),
}
"""Scale and mean of the targets, by the share of the run that has passed."""
MILD, HARSH, ALL = list(DRIFTS)[:6], list(DRIFTS)[6:], list(DRIFTS)
VARIANTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "PopArt": ({}, MILD),
    "PopArt, momentum 0.9": ({"momentum": 0.9, "track": True}, MILD),
    "PopArt, step by step": ({"resume": True}, ALL),
    "without the rewrite": ({"rewrite": False}, MILD[:2]),
    "statistics after the step": ({"late": True}, MILD[:2]),
    "momentum 0.9, not tracked": ({"momentum": 0.9}, MILD[:2]),
}


def batches(drift: Callable[[float], tuple[float, float]], steps: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs `[BATCH, INPUTS]` and targets `[BATCH, OUTPUTS]`; the second output is a hundredth of the first."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(INPUTS, OUTPUTS, generator=generator, dtype=torch.float64)
    answer = []
    for step in range(steps):
        x, noise = (torch.randn(BATCH, k, generator=generator, dtype=torch.float64) for k in (INPUTS, OUTPUTS))
        scale, mean = drift(step / steps)
        unit = (x @ direction).sin() + 0.3 * noise + mean
        answer.append((x, scale * unit * torch.tensor([1.0, 0.01], dtype=torch.float64)))
    return answer


class NormalizedSGD:
    """Algorithm 2 of the paper for a diagonal scale, with momentum; and the paper's moving averages, debiased."""

    def __init__(self, trunk: nn.Module, momentum: float) -> None:
        self.trunk = trunk
        self.weight = torch.zeros(OUTPUTS, FEATURES, dtype=torch.float64)
        self.bias = torch.zeros(OUTPUTS, dtype=torch.float64)
        self.momentum = momentum
        self.buffers = [torch.zeros_like(p) for p in (*trunk.parameters(), self.weight, self.bias)]
        self.first, self.second, self.steps = torch.zeros(OUTPUTS).double(), torch.zeros(OUTPUTS).double(), 0

    def observe(self, y: Tensor) -> None:
        self.first = BETA * self.first + (1 - BETA) * y.mean(0)
        self.second = BETA * self.second + (1 - BETA) * y.square().mean(0)
        self.steps += 1

    @property
    def mean(self) -> Tensor:
        return self.first / (1 - BETA**self.steps)

    @property
    def std(self) -> Tensor:
        return (self.second / (1 - BETA**self.steps) - self.mean.square()).sqrt()

    def __call__(self, x: Tensor) -> Tensor:
        return self.trunk(x) @ self.weight.T + self.bias

    def step(self, x: Tensor, y: Tensor) -> None:
        h = self.trunk(x)
        error = (h.detach() @ self.weight.T + self.bias - y) / len(y)
        theta = tuple(self.trunk.parameters())
        pulled = torch.autograd.grad(h, theta, (error / self.std.square()) @ self.weight)
        gradients = (*pulled, error.T @ h.detach(), error.sum(0))
        with torch.no_grad():
            for p, g, buffer in zip((*theta, self.weight, self.bias), gradients, self.buffers, strict=True):
                buffer.mul_(self.momentum).add_(g)
                p.sub_(STEP_SIZE * buffer)


@torch.no_grad()
def raw_layer(head: PopArtValueHead) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that predicts the same in raw units."""
    return head.std.unsqueeze(1) * head.linear.weight, head.std * head.linear.bias + head.mean


def deviations(
    drift: str,
    momentum: float = 0.0,
    track: bool = False,
    rewrite: bool = True,
    late: bool = False,
    resume: bool = False,
    steps: int = STEPS,
) -> dict[str, float]:
    """Largest differences of the two learners over a run, of outputs, trunk, W and b; NaN once one has diverged.

    Args:
        drift: a key of `DRIFTS`.
        momentum: of both.
        track: the head rescales its optimiser's buffers.
        rewrite: False moves the head's statistics and leaves its layer.
        late: the head's statistics, and its layer, move after its step; the other learner's before.
        resume: every step of the other learner starts from where this one stands.
    """
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, FEATURES), nn.Tanh()).double()
    other = NormalizedSGD(copy.deepcopy(trunk), momentum)
    head = PopArtValueHead(FEATURES, OUTPUTS, BETA, dtype=torch.float64)
    optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], STEP_SIZE, momentum)
    if track:
        head.track(optimizer)
    move = head.update if rewrite else head.adopt
    probe = torch.randn(32, INPUTS, dtype=torch.float64)
    worst = torch.zeros(4, dtype=torch.float64)
    for x, y in batches(DRIFTS[drift], steps):
        if resume:
            other.trunk.load_state_dict(trunk.state_dict())
            other.weight, other.bias = raw_layer(head)
        other.observe(y)
        other.step(x, y)

        if not late:
            move(y)
        optimizer.zero_grad()
        (0.5 * head.loss(trunk(x), y)).mean(0).sum().backward()
        optimizer.step()
        if late:
            move(y)

        with torch.no_grad():
            outputs, (weight, bias) = head(trunk(probe)), raw_layer(head)
            pairs = zip(trunk.parameters(), other.trunk.parameters(), strict=True)
            now = (
                ((outputs - other(probe)) / head.std).abs().max(),
                torch.stack([(p - q).abs().max() / q.abs().max() for p, q in pairs]).max(),
                ((weight - other.weight).abs().amax(1) / other.weight.abs().amax(1)).max(),
                ((bias - other.bias).abs() / (outputs.abs().amax(0) + head.std + head.mean.abs())).max(),
            )
            worst = torch.maximum(worst, torch.stack(now))  # keeps NaN
    return dict(zip(("outputs", "trunk", "weight", "bias"), (float(f"{x:.4g}") for x in worst), strict=True))


def run() -> None:
    done = {(r["variant"], r["drift"]) for r in records.read("normalized_sgd")}
    for variant, (options, drifts) in VARIANTS.items():
        for drift in drifts:
            if (variant, drift) not in done:
                records.append("normalized_sgd", {"variant": variant, "drift": drift, **deviations(drift, **options)})


def report() -> None:
    results = {(r["variant"], r["drift"]): r for r in records.read("normalized_sgd")}
    print(
        f"Largest deviations from normalised SGD over {STEPS:,} steps: of outputs in units of std, of trunk, W and b"
        " relative to their size.\n"
    )
    print("| learner | drift of the targets | outputs | trunk | W | b |\n|" + "---|" * 6)
    for (variant, drift), r in results.items():
        cells = (f"{r[part]:.1e}" for part in ("outputs", "trunk", "weight", "bias"))
        print(f"| {variant} | {drift} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    torch.set_num_threads(1)
    run() if parser.parse_args().command == "run" else report()


if __name__ == "__main__":
    main()
