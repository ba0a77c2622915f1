"""Mean and standard deviation of advantages over a minibatch, over a rank's environments and over the whole rollout.

    python benchmarks/advantage_scope.py run [--seeds 1 2]
    python benchmarks/advantage_scope.py report

Presets train, standardising over the rollout. Every iteration's raw advantages are split into the minibatches of the
first epoch, and by environment, as if four ranks collected from two each.

`run` appends to results/advantage_scope.jsonl whatever is not in there yet; `report` prints how far off the parts are,
and how many rows they turn from better than average to worse or back, and draws docs/policy-gradient-scope.png, of the
first seed.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import records
import torch
from stats import summary
from torch import Tensor

import levelhead as lh
from levelhead.estimators import GAE
from levelhead.phases import minibatches
from levelhead.rollout import Rollout
from levelhead.seeding import Stream, generator

PLOT = Path(__file__).parents[1] / "docs" / "policy-gradient-scope.png"
TASKS = {"CartPole-v1": 50_000, "Pendulum-v1": 100_000}
RANKS = 4
SCOPES = {"rank": ("#c23b22", 0.3), "minibatch": ("#0b3d91", 0.45)}
"""By name, the colour and opacity of each."""


@dataclass(frozen=True)
class Recorded(GAE):
    """Keeps what it estimates."""

    advantages: list[Tensor] = field(default_factory=list)
    """Raw, `[T, N]`, by iteration."""

    def __call__(self, rollout: Rollout, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        advantage, target = super().__call__(rollout, masks)
        self.advantages.append(advantage.double())
        return advantage, target


def parts(advantage: Tensor, minibatch: int, order: torch.Generator) -> dict[str, list[Tensor]]:
    """By scope, its share of the rows for each part."""
    rows = advantage.flatten()
    split = zip(*minibatches(torch.ones(1, len(rows), dtype=torch.bool), minibatch, order), strict=True)
    return {
        "minibatch": [rows[index[weight > 0]] for index, weight in split],
        "rank": [part.flatten() for part in advantage.chunk(RANKS, 1)],
    }


def compared(part: list[Tensor], mean: Tensor, std: Tensor) -> dict[str, Any]:
    """Each part's mean and std on the axis on which the rollout's are 0 and 1, and the share of rows between means."""
    means, stds = torch.stack([x.mean() for x in part]), torch.stack([x.std(correction=0) for x in part])
    turned = sum(int(((x > m) != (x > mean)).sum()) for x, m in zip(part, means, strict=True))
    return {
        "rows": len(part[0]),
        "mean": [round(x, 3) for x in ((means - mean) / std).tolist()],
        "std": [round(x, 3) for x in (stds / std).tolist()],
        "turned": round(turned / sum(map(len, part)), 4),
    }


def once(env_id: str, steps: int, seed: int) -> list[dict[str, Any]]:
    """By iteration, mean and std over the rollout, and what its parts have instead."""
    config = replace(lh.preset(env_id), total_steps=steps, seed=seed, checkpoint_every=0, device="cpu")
    env = lh.make_gymnasium(env_id, config.num_envs)
    trainer = lh.build_trainer(config, env, lh.build_policy(config, env.observation_space, env.action_space))
    trainer.estimator = recorded = Recorded(**asdict(trainer.estimator))
    rows = []
    for i, iteration in enumerate(trainer):
        advantage = recorded.advantages[i]
        mean, std = advantage.mean(), advantage.std(correction=0)
        split = parts(advantage, config.ppo.minibatches, generator(seed, Stream.PERMUTATION, i, 0))
        scopes = {scope: compared(part, mean, std) for scope, part in split.items()}
        rows.append({"step": iteration.step, "mean": round(float(mean), 4), "std": round(float(std), 4), **scopes})
    env.close()
    return rows


def run(seeds: list[int], given: int | None) -> None:
    torch.set_num_threads(1)
    done = {(r["env"], r["steps"], r["seed"]) for r in records.read("advantage_scope")}
    for seed, env_id in itertools.product(seeds, TASKS):
        steps = given or TASKS[env_id]
        if (env_id, steps, seed) not in done:
            key = {"env": env_id, "steps": steps, "seed": seed}
            records.append("advantage_scope", {**key, "iterations": once(env_id, steps, seed)})


def report(given: int | None) -> None:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in records.read("advantage_scope"):
        if r["steps"] == (given or TASKS[r["env"]]):
            runs[r["env"]].append(r)
    print(
        "How far off the std and the mean of a part are, in percent of the rollout's std: median and 95th percentile"
        " over a run's parts; and the percentage of rows turned, that lie between the two means. IQM over seeds [95%"
        " bootstrap interval]."
    )
    print("\n| environment | seeds | scope | rows | std, median | 95 % | mean, median | 95 % | rows turned |")
    print("|---" * 9 + "|")
    for env_id, scope in itertools.product(runs, SCOPES):
        cells = [[x[scope] for x in r["iterations"]] for r in runs[env_id]]
        columns = [
            [np.percentile([abs(y - centre) for x in xs for y in x[name]], mark) for xs in cells]
            for name, centre in (("std", 1), ("mean", 0))
            for mark in (50, 95)
        ]
        columns.append([np.mean([x["turned"] for x in xs]) for xs in cells])
        head = (env_id, str(len(cells)), scope, str(cells[0][0]["rows"]))
        print("| " + " | ".join((*head, *(summary(100 * np.array(xs)) for xs in columns))) + " |")
    if runs:
        draw({env_id: rs[0]["iterations"] for env_id, rs in runs.items()})


def draw(runs: dict[str, list[dict[str, Any]]]) -> None:
    """One run per environment: lines for the rollout's mean, in stds, and std; bands for its parts', least to most."""
    figure, axes = plt.subplots(len(runs), 2, figsize=(7.6, 2.5 * len(runs)), layout="constrained", squeeze=False)
    for row, (env_id, iterations) in zip(axes, runs.items(), strict=True):
        step = [x["step"] / 1000 for x in iterations]
        mean, std = (np.array([x[name] for x in iterations]) for name in ("mean", "std"))
        for axis, name in zip(row, ("mean", "std"), strict=True):
            for scope, (color, alpha) in SCOPES.items():
                ends = [np.array([end(x[scope][name]) for x in iterations]) for end in (min, max)]
                band = [mean / std + x if name == "mean" else std * x for x in ends]
                axis.fill_between(step, *band, color=color, alpha=alpha, lw=0, label=scope)
            axis.plot(step, mean / std if name == "mean" else std, color="black", lw=1, label="rollout")
            axis.set_title(env_id, fontsize=10)
            axis.margins(x=0)
            axis.grid(alpha=0.25)
        row[0].set_ylabel("mean / std of the rollout")
        row[1].set(yscale="log", ylabel="std")
    for axis in axes[-1]:
        axis.set_xlabel("thousand steps")
    axes[0][0].legend(fontsize="small")
    figure.savefig(PLOT, dpi=110)
    print(f"\n{PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, reports = commands.add_parser("run"), commands.add_parser("report")
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    for command in (runs, reports):
        command.add_argument("--steps", type=int, help="instead of each environment's own")
    a = parser.parse_args()
    if a.command == "run":
        run(a.seeds, a.steps)
    else:
        report(a.steps)


if __name__ == "__main__":
    main()
