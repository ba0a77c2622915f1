"""How far the norms of the critic's gradient spread over tasks, per value head.

    python benchmarks/gradient_norms.py run [--heads popart linear] [--seeds 1 2]
    python benchmarks/gradient_norms.py report

After figure 1 of van Hasselt et al. 2016 ("Learning values across many orders of magnitude"), which shows it over Atari
games without normalisation, with rewards clipped to [-1, 1], and with Pop-Art. Here every task is trained with the same
generic config for 30,000 steps, with standardised observations, so that tasks differ to the critic by their rewards
alone. A task that one step size and one clip serve is one whose norms lie where the others' do.

The norm is that of `grad/critic_norm`: of 0.5 times the loss, mean over an iteration's minibatches, before clipping.
Gradients are then clipped to 0.5, as they are by default: the dotted line in the figure.

`run` appends to results/gradient_norms.jsonl whatever is not in there yet; `report` prints the table and draws
docs/gradient_norms.png from it.
"""

import argparse
import itertools
import json
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import get_args

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import records
from gymnasium.wrappers import TransformReward

import levelhead as lh
from levelhead.config import ValueKind

PLOT = Path(__file__).parents[1] / "docs" / "gradient_norms.png"
TASKS = (
    "CartPole-v1",
    "InvertedPendulum-v5",
    "Acrobot-v1",
    "MountainCarContinuous-v0",
    "HalfCheetah-v5",
    "Pendulum-v1",
    "LunarLander-v3",
)
CLIPPED = "linear, rewards in [-1, 1]"
HEADS = ["linear", CLIPPED, *(head for head in reversed(get_args(ValueKind)) if head != "linear")]
STEPS = 30_000
MAX_GRAD_NORM = lh.OptimizerConfig().max_grad_norm


def clipped(env_id: str) -> gym.Env:
    """The environment with rewards clipped to [-1, 1]."""
    return TransformReward(gym.make(env_id), lambda reward: min(max(float(reward), -1.0), 1.0))


def norms(env_id: str, head: str, seed: int) -> list[float]:
    """The critic's gradient norm in each iteration."""
    env = partial(clipped, env_id) if head == CLIPPED else env_id
    config = lh.Config(
        env_id,
        total_steps=STEPS,
        seed=seed,
        value="linear" if head == CLIPPED else head,
        network=lh.NetworkConfig(normalize_observation=True),
        device="cpu",
        checkpoint_every=0,
    )
    with tempfile.TemporaryDirectory() as directory:
        trained = lh.train(env, config=config, run_dir=directory)
        if trained.interrupted:
            raise SystemExit("interrupted")
        lines = (trained.directory / "metrics.jsonl").read_text().splitlines()
    return [float(f"{json.loads(line)['grad/critic_norm']:.4g}") for line in lines]


def run(heads: list[str], seeds: list[int]) -> None:
    done = {(r["seed"], r["head"], r["env"]) for r in records.read("gradient_norms")}
    for seed, head, env_id in itertools.product(seeds, heads, TASKS):
        if (seed, head, env_id) not in done:
            kept = {"seed": seed, "head": head, "env": env_id, "steps": STEPS, "norms": norms(env_id, head, seed)}
            records.append("gradient_norms", kept)


def report() -> None:
    pooled: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in records.read("gradient_norms"):
        pooled[r["head"]][r["env"]] += r["norms"]
    spread = {
        head: {env_id: np.percentile(pooled[head][env_id], (5, 50, 95)) for env_id in TASKS if env_id in pooled[head]}
        for head in HEADS
        if head in pooled
    }
    print(
        f"Norm of the critic's gradient in {STEPS:,} steps, median (5th to 95th percentile) over iterations and seeds;"
        " orders of magnitude between the tasks with the largest and the smallest median, and between the 95th and the"
        " 5th percentile of all."
    )
    print("\n| head | " + " | ".join(TASKS) + " | medians | all |\n|---|" + "---|" * (len(TASKS) + 2))
    for head, by_task in spread.items():
        shown = {env_id: f"{mid:.2g} ({low:.2g} to {high:.2g})" for env_id, (low, mid, high) in by_task.items()}
        cells = [shown.get(env_id, "") for env_id in TASKS]
        print("| " + " | ".join([head, *cells, *(f"{x:.1f}" for x in orders(by_task, pooled[head]))]) + " |")
    if spread:
        draw(spread, pooled)


def orders(by_task: dict[str, np.ndarray], norms: dict[str, list[float]]) -> tuple[float, float]:
    """Orders of magnitude between tasks, by their medians, and between the percentiles of everything."""
    medians = np.log10([mid for _, mid, _ in by_task.values()])
    low, high = np.percentile(np.log10(np.concatenate(list(norms.values()))), (5, 95))
    return float(np.ptp(medians)), float(high - low)


def draw(spread: dict[str, dict[str, np.ndarray]], pooled: dict[str, dict[str, list[float]]]) -> None:
    """One panel per head, one line per task from the 5th to the 95th percentile, with a dot at the median."""
    columns = min(len(spread), 5)
    rows = -(-len(spread) // columns)
    size = (2.2 * columns + 1.6, 2.3 * rows + 0.4)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    axes = grid.flatten()
    for axis in axes[len(spread) :]:
        axis.set_visible(False)
    for axis, (head, by_task) in zip(axes, spread.items(), strict=False):
        colour = "#0b3d91" if head == "popart" else "#7f7f7f"
        low, middle, high = np.array(list(by_task.values())).T
        places = [TASKS.index(env_id) for env_id in by_task]
        axis.hlines(places, low, high, color=colour, lw=3, alpha=0.6)
        axis.plot(middle, places, "o", color=colour)
        axis.axvline(MAX_GRAD_NORM, color="black", ls=":", lw=0.8)
        between, _ = orders(by_task, pooled[head])
        axis.set(xscale="log", title=f"{head}\n{between:.1f} orders of magnitude")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.25, axis="x")
    axes[0].set_yticks(range(len(TASKS)), TASKS)
    axes[0].invert_yaxis()
    figure.supxlabel("norm of the critic's gradient before clipping", fontsize=9)
    figure.savefig(PLOT, dpi=150)
    print(f"\n{PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        run(a.heads, a.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
