"""Online regression from bits to numbers, where every thousandth number is two orders of magnitude larger.

    python benchmarks/online_regression.py run                  # some 17 minutes on one core
    python benchmarks/online_regression.py report

The first experiment of van Hasselt et al. 2016, "Learning values across many orders of magnitude": the input is the 16
bits of an integer, the target the integer itself, uniform in 0..1023 and 65535 at every 1000th sample; three layers of
10 tanh units and a last layer; one sample per SGD step on half the head's loss. Statistics move with each target (by
`update`), then comes the step. Errors are taken before both, so they are test errors. SGD, ART and Pop-Art of the paper
are LinearValueHead, RunningNormHead and PopArtValueHead. Unlike the paper, the last layer starts at zero.

Step sizes and, for heads with statistics, rates (1 - beta) are swept, each over seeds; every member of the sweep is a
network of its own. All members of one rate run side by side: each is one output of one real head, whose layer alone is
exchanged for a block-diagonal one, so that statistics, rewrites and losses are the library's own code. A test in
tests/anchors holds a member to the same run done alone, with a plain layer and an optimiser of its own.

`run` appends to results/online_regression.jsonl whatever is not in there yet; `report` prints tables and draws
docs/online_regression.png from it: medians over seeds, with the 10th to 90th percentile.
"""

import argparse
import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import records
import torch
from torch import Tensor, nn

from levelhead import values
from levelhead.values import ValueHead

PLOT = Path(__file__).parents[1] / "docs" / "online_regression.png"
BITS, RARE, EVERY = 16, 65535, 1000
STEPS, SEEDS, WIDTHS = 5000, 50, (16, 10, 10, 10)
STEP_SIZES = [10 ** (k / 2) for k in range(-12, 3)]
RAW_STEP_SIZES = [10 ** (k / 2) for k in range(-4, 11)]
"""For a head whose layer predicts raw values under a loss divided by their variance."""
RATES = [10 ** (k / 2) for k in range(-8, 0)]
DTYPE = torch.float64
HEADS: dict[str, Callable[..., ValueHead]] = {
    "linear (SGD)": values.LinearValueHead,
    "valuenorm": values.ValueNormHead,
    "runningnorm (ART)": values.RunningNormHead,
    "popart": values.PopArtValueHead,
    "hlgauss": values.HLGaussValueHead,
    "twohot": values.TwoHotValueHead,
    "symlog": values.TransformValueHead,
    "signed sqrt": lambda *a, **k: values.TransformValueHead(*a, **k, transform=values.SIGNED_SQRT),
}


class Blocks(nn.Linear):
    """A block-diagonal layer: features `[1, K * D]` of K members, each seen by its own rows of the weight alone."""

    def forward(self, features: Tensor) -> Tensor:
        members = features.view(-1, 1, self.in_features)
        rows = self.weight.view(len(members), -1, self.in_features)
        return (rows * members).sum(-1).view(1, -1) + self.bias


def numbers(seed: int, steps: int = STEPS, every: int = EVERY) -> tuple[Tensor, Tensor]:
    """Bits `[steps, 16]` and the integers `[steps]` that they spell, the rare one at every `every`th step."""
    y = torch.randint(2**10, (steps,), generator=torch.Generator().manual_seed(seed))
    y[every - 1 :: every] = RARE
    return (y.unsqueeze(1) >> torch.arange(BITS) & 1).to(DTYPE), y.to(DTYPE)


def trunk(seed: int) -> nn.Sequential:
    """Three tanh layers, as torch initialises them."""
    torch.manual_seed(seed)
    shapes = itertools.pairwise(WIDTHS)
    return nn.Sequential(*(part for d, k in shapes for part in (nn.Linear(d, k, dtype=DTYPE), nn.Tanh())))


def errors(
    make: Callable[..., ValueHead],
    beta: float,
    seeds: list[int],
    step_sizes: list[float],
    steps: int = STEPS,
    every: int = EVERY,
) -> Tensor:
    """Prediction minus target at every step, before anything is learned from it: `[steps, seeds, step sizes]`."""
    repeats, k = len(step_sizes), len(seeds) * len(step_sizes)
    data = zip(*(numbers(seed, steps, every) for seed in seeds), strict=True)
    x, y = (torch.stack(columns, 1).repeat_interleave(repeats, 1) for columns in data)
    trunks = [trunk(seed) for seed in seeds]
    layers = []
    for i in range(0, len(trunks[0]), 2):
        weight = torch.stack([t[i].weight.T for t in trunks]).repeat_interleave(repeats, 0)
        bias = torch.stack([t[i].bias for t in trunks]).repeat_interleave(repeats, 0).unsqueeze(1)
        layers.append((weight.detach().requires_grad_(), bias.detach().requires_grad_()))
    head = make(WIDTHS[-1], k, beta=beta, dtype=DTYPE)
    plain = head.linear
    head.linear = Blocks(WIDTHS[-1], plain.out_features, dtype=DTYPE)
    head.linear.load_state_dict(plain.state_dict())
    # A member's own step size weighs its loss, which for SGD is the same.
    optimizer = torch.optim.SGD([p for pair in layers for p in pair] + list(head.parameters()), lr=1.0)
    step_size = torch.tensor(step_sizes, dtype=DTYPE).repeat(len(seeds)).unsqueeze(0)
    error = torch.empty(steps, k, dtype=DTYPE)
    for t in range(steps):
        features = x[t].unsqueeze(1)
        for weight, bias in layers:
            features = torch.baddbmm(bias, features, weight).tanh()
        features, targets = features.view(1, -1), y[t : t + 1]
        with torch.no_grad():
            error[t] = head(features)[0] - y[t]
        head.update(targets)
        optimizer.zero_grad()
        (0.5 * head.loss(features, targets, weights=step_size)).sum().backward()
        optimizer.step()
    return error.view(steps, len(seeds), repeats)


def rmse(error: Tensor, every: int = EVERY) -> Tensor:
    """Root mean squared error on ordinary samples: `[steps, ...]` to `[blocks of every steps, ...]`; inf for NaN."""
    ordinary = error.unflatten(0, (-1, every))[:, : every - 1]
    return ordinary.square().mean(1).sqrt().nan_to_num(nan=math.inf)


def run(names: list[str]) -> None:
    done = {(r["head"], r["beta"]) for r in records.read("online_regression")}
    for name in names:
        moving = HEADS[name](1).has_statistics
        for beta in [1 - rate for rate in RATES] if moving else [None]:
            kept = None if beta is None else round(beta, 6)
            if (name, kept) in done:
                continue
            step_sizes = RAW_STEP_SIZES if name == "valuenorm" else STEP_SIZES
            error = errors(HEADS[name], 0.0 if beta is None else beta, list(range(SEEDS)), step_sizes)
            blocks, rare = rmse(error), error[-1].abs().nan_to_num(nan=math.inf)
            overall = blocks.square().mean(0).sqrt()
            for i, step_size in enumerate(step_sizes):
                result = {"head": name, "beta": kept, "step_size": float(f"{step_size:.4g}"), "seeds": SEEDS}
                for key, q in (("median", 0.5), ("low", 0.1), ("high", 0.9)):
                    result[key] = [quantile(block[:, i], q) for block in blocks]
                result["overall"] = quantile(overall[:, i], 0.5)
                result["last_rare"] = quantile(rare[:, i], 0.5)
                records.append("online_regression", result)


def quantile(x: Tensor, q: float) -> float | None:
    """Of numbers that may be infinite, to four digits: the nearest, or halfway for a median; None if infinite."""
    x, at = x.sort().values, q * (len(x) - 1)
    low, high = x[math.floor(at)], x[math.ceil(at)]
    value = (low + high) / 2 if q == 0.5 else x[round(at)]
    return float(f"{float(value):.4g}") if value.isfinite() else None


def report() -> None:
    by_head: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in records.read("online_regression"):
        by_head[r["head"]].append({**r, "overall": math.inf if r["overall"] is None else r["overall"]})
    print(
        f"RMSE on ordinary samples per thousand steps, before each update: median over {SEEDS} seeds, at each head's"
        f" best step size and beta by the whole run's. The best constant has {mean():.0f}.\n`rare`: absolute error on"
        " the last 65535. `within 1.5x`: the step sizes whose best beta comes that close.\n"
    )
    blocks = STEPS // EVERY
    print("| head | step size | 1 - beta | " + " | ".join(f"{i + 1}k" for i in range(blocks)), end=" | ")
    print("whole run | rare | within 1.5x |\n" + "|---" * (blocks + 6) + "|")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", sharey=True)
    for name in HEADS:
        results = by_head.get(name)
        if not results:
            continue
        best = min(results, key=lambda r: r["overall"])
        near = [r["step_size"] for r in results if r["overall"] <= 1.5 * best["overall"]]
        rate = "" if best["beta"] is None else f"{1 - best['beta']:.2g}"
        cells = (name, f"{best['step_size']:.2g}", rate, *(f"{x:.3g}" for x in best["median"]))
        print(f"| {' | '.join(cells)} | {best['overall']:.3g} | {best['last_rare']:,.0f}", end=" | ")
        print(f"{min(near):.2g} to {max(near):.2g} |")
        at = range(1, blocks + 1)
        (line,) = left.plot(at, best["median"], marker="o", ms=3, label=name)
        left.fill_between(at, best["low"], best["high"], alpha=0.12, color=line.get_color())
        sweep = sorted((r["step_size"], r["median"][-1] or math.nan) for r in results if r["beta"] == best["beta"])
        right.plot(*zip(*sweep, strict=True), marker="o", ms=3, color=line.get_color())
    for axis in (left, right):
        axis.axhline(mean(), color="gray", lw=0.8, ls=":")
        axis.grid(alpha=0.3)
    left.set(yscale="log", ylim=(10, 3000), xlabel="thousand steps", ylabel="RMSE on ordinary samples")
    left.set_xticks(range(1, blocks + 1))
    right.set(xscale="log", xlabel="step size", title="last thousand steps")
    left.set_title("at the best step size and beta")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(PLOT, dpi=150)
    report_betas(by_head)
    print(f"\n{PLOT}")


def report_betas(by_head: dict[str, list[dict[str, Any]]]) -> None:
    print("\nThe same over the whole run by 1 - beta, each at its best step size\n")
    print("| head | " + " | ".join(f"{rate:.2g}" for rate in RATES) + " |\n" + "|---" * (len(RATES) + 1) + "|")
    for name, results in by_head.items():
        if results[0]["beta"] is not None:
            best: dict[float, float] = {}
            for r in results:
                best[r["beta"]] = min(r["overall"], best.get(r["beta"], math.inf))
            print(f"| {name} | " + " | ".join(f"{best[beta]:.3g}" for beta in sorted(best, reverse=True)) + " |")


def mean() -> float:
    """RMSE of the best constant on ordinary samples."""
    return math.sqrt((2**20 - 1) / 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    commands.add_parser("report")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.command == "run":
        run(a.heads)
    else:
        report()


if __name__ == "__main__":
    main()
