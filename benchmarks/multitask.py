"""One policy on three tasks whose rewards differ by orders of magnitude: every value head under one protocol.

    python benchmarks/multitask.py run [--heads popart linear ...] [--scales natural spread] [--seeds 1 2 3 4 5]
    python benchmarks/multitask.py report

Pendulum, LunarLanderContinuous and InvertedPendulum on common spaces (MuJoCo's extra needed). `natural` leaves rewards
as they are; `spread` multiplies those of Pendulum by 100 and those of InvertedPendulum by 0.01, which leaves every
task as it was and puts their returns four to six orders of magnitude apart. All heads see advantages standardised by
task, so that the critic alone is compared. `run` appends what is missing to results/multitask.jsonl; `report` prints
the table and draws docs/multitask.png.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import records
from gymnasium.wrappers import TransformReward
from stats import interval, iqm, summary

import levelhead as lh
from levelhead.config import ValueKind

PLOT = Path(__file__).parents[1] / "docs" / "multitask.png"
TASKS = ("Pendulum-v1", "LunarLanderContinuous-v3", "InvertedPendulum-v5")
FACTORS = {"natural": (1.0, 1.0, 1.0), "spread": (100.0, 1.0, 0.01)}
STEPS = 300_000
EPISODES = 60
RANGES = {"Pendulum-v1": (-1250, -150), "LunarLanderContinuous-v3": (-200, 250), "InvertedPendulum-v5": (5, 1000)}
"""Returns of a random and of a good policy, between which scores are counted from 0 to 1."""


def scaled(env_id: str, factor: float) -> gym.Env[Any, Any]:
    return TransformReward(gym.make(env_id), lambda reward: factor * float(reward))


def environment_ids(scale: str) -> str:
    """Ids of the tasks with their rewards multiplied, registered on the way, joined."""
    ids = []
    for env_id, factor in zip(TASKS, FACTORS[scale], strict=True):
        name = f"{scale}-{env_id}"
        if name not in gym.registry:
            gym.register(name, lambda env_id=env_id, factor=factor: scaled(env_id, factor))
        ids.append(name)
    return "+".join(ids)


def config(env_id: str, head: ValueKind, seed: int) -> lh.Config:
    return lh.Config(
        env_id,
        total_steps=STEPS,
        seed=seed,
        value=head,
        num_envs=12,
        num_steps=256,
        checkpoint_every=0,
        ppo=lh.PPOConfig(gamma=0.97, epochs=10, minibatches=24),
        optimizer=lh.OptimizerConfig(learning_rate=lh.Schedule(1e-3, 0.0)),
    )


def run(heads: list[ValueKind], scales: list[str], seeds: list[int]) -> None:
    done = {(r["head"], r["scale"], r["seed"]) for r in records.read("multitask")}
    for seed, scale, head in itertools.product(seeds, scales, heads):
        if (head, scale, seed) in done:
            continue
        env_id = environment_ids(scale)
        with tempfile.TemporaryDirectory() as directory:
            trained = lh.train(env_id, config=config(env_id, head, seed), run_dir=directory)
        report = lh.evaluate(trained.policy, env_id, EPISODES, seed)
        parts = zip(TASKS, FACTORS[scale], report.by_task.values(), strict=True)
        returns = {name: part.mean_return / factor for name, factor, part in parts}
        records.append("multitask", {"head": head, "scale": scale, "seed": seed, "steps": STEPS, "returns": returns})


def normalized(returns: dict[str, float]) -> float:
    """Mean over tasks of the share of the way from a random to a good policy."""
    shares = [(returns[name] - low) / (high - low) for name, (low, high) in RANGES.items()]
    return float(np.mean(np.clip(shares, 0.0, None)))


def report() -> None:
    results = records.read("multitask")
    scales = [scale for scale in FACTORS if any(r["scale"] == scale for r in results)]
    size = (4.5 * len(scales), 3.2)
    figure, axes = plt.subplots(1, len(scales), figsize=size, layout="constrained", sharey=True, squeeze=False)
    heads = [head for head in get_args(ValueKind) if any(r["head"] == head for r in results)]
    for axis, scale in zip(axes[0], scales, strict=True):
        mine = [r for r in results if r["scale"] == scale]
        print(f"\nrewards {scale}, {STEPS:,} steps in all: greedy return, IQM over seeds [95% bootstrap interval]\n")
        print("| head | seeds | " + " | ".join(TASKS) + " | normalised |\n|---|---|" + "---|" * (len(TASKS) + 1))
        for row, head in enumerate(heads):
            runs = [r["returns"] for r in mine if r["head"] == head]
            if not runs:
                continue
            scores = [100 * normalized(returns) for returns in runs]
            cells = [summary([returns[name] for returns in runs]) for name in TASKS]
            print(f"| {head} | {len(runs)} | " + " | ".join(cells) + f" | {summary(scores)} |")
            low, high = interval(scores)
            axis.plot((low, high), (row, row), color="tab:blue", linewidth=5, alpha=0.4)
            axis.plot(iqm(scores), row, "o", color="tab:blue")
        axis.set(title=f"rewards {scale}", yticks=range(len(heads)), xlabel="normalised score, percent")
        axis.set_yticklabels(heads)
        axis.grid(alpha=0.3)
    axes[0][0].invert_yaxis()
    figure.savefig(PLOT, dpi=150)
    print(f"\n{PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--heads", nargs="+", default=list(get_args(ValueKind)), choices=get_args(ValueKind))
    runs.add_argument("--scales", nargs="+", default=list(FACTORS), choices=list(FACTORS))
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        run(a.heads, a.scales, a.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
