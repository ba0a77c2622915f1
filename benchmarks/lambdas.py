"""Which lambda? From one-step TD over GAE to Monte-Carlo, everything else the same.

    python benchmarks/lambdas.py run [CartPole-v1 ...] [--lambdas 0 0.95 1] [--seeds 1 2 3]
    python benchmarks/lambdas.py report

`run` appends to results/lambdas.jsonl whatever is not in there yet; `report` prints a table per environment and draws
docs/policy-gradient-lambda.png. Lambda goes into advantages and value targets alike; 1 is `--targets mc`. The greedy
return is that of the last policy; the training return, which tells how soon it got there, the mean over all iterations
of `rollout/ep_rew_mean`: the area under the curve of training, per step.
"""

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import records
from stats import interval, iqm, summary

import levelhead as lh

PLOT = Path(__file__).parents[1] / "docs" / "policy-gradient-lambda.png"
TASKS = {"CartPole-v1": 50_000, "Pendulum-v1": 100_000}
LAMBDAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
NAMES = {0.0: "0, TD", 1.0: "1, Monte-Carlo"}
EPISODES = 50
EVALUATION_SEED = 10_000
SCORES = {"training_return": ("training", "#0b3d91", "s"), "return": ("greedy, at the end", "#c23b22", "o")}
"""What each is called, its colour and its marker."""

Scores = dict[float, dict[str, list[float]]]
"""By lambda and score, over seeds."""


def once(env_id: str, steps: int, lam: float, seed: int) -> dict[str, float]:
    """One run's scores."""
    config = lh.preset(env_id)
    config = replace(config, total_steps=steps, seed=seed, checkpoint_every=0, device="cpu")
    config = replace(config, ppo=replace(config.ppo, lam=lam))
    with tempfile.TemporaryDirectory() as directory:
        run = lh.train(env_id, config=config, run_dir=directory)
        lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    if run.interrupted:
        raise SystemExit("interrupted")
    returns = [line["rollout/ep_rew_mean"] for line in lines if "rollout/ep_rew_mean" in line]
    return {
        "return": lh.evaluate(run.policy, env_id, EPISODES, EVALUATION_SEED).mean_return,
        "training_return": float(np.mean(returns)),
    }


def run(a: argparse.Namespace) -> None:
    done = {(r["env"], r["steps"], r["lam"], r["seed"]) for r in records.read("lambdas")}
    # Seeds outermost: what is not finished has every cell, if with fewer seeds.
    for seed, env_id, lam in itertools.product(a.seeds, a.env_ids or TASKS, a.lambdas):
        steps = a.steps or TASKS[env_id]
        if (env_id, steps, lam, seed) in done:
            continue
        started = time.perf_counter()
        scores = once(env_id, steps, lam, seed)
        seconds = round(time.perf_counter() - started, 1)
        key = {"env": env_id, "steps": steps, "lam": lam, "seed": seed}
        records.append("lambdas", {**key, **scores, "seconds": seconds})


def report(given: int | None) -> None:
    tables: dict[str, Scores] = {env_id: {} for env_id in TASKS}
    for r in sorted(records.read("lambdas"), key=lambda r: r["lam"]):
        if r["steps"] == (given or TASKS[r["env"]]):
            cell = tables[r["env"]].setdefault(r["lam"], {name: [] for name in SCORES})
            for name in SCORES:
                cell[name].append(r[name])
    tables = {env_id: scores for env_id, scores in tables.items() if scores}
    print(
        f"Mean return of the episodes of training, and greedy return over {EPISODES} episodes at the end, IQM over"
        " seeds [95% bootstrap interval]."
    )
    for env_id, scores in tables.items():
        print(f"\n{env_id}, {given or TASKS[env_id]:,} steps\n")
        print("| lambda | seeds | training | greedy |\n|---|---|---|---|")
        for lam, cell in scores.items():
            cells = (NAMES.get(lam, f"{lam:g}"), str(len(cell["return"])), *(summary(cell[name]) for name in SCORES))
            print("| " + " | ".join(cells) + " |")
    if tables:
        draw(tables, given)


def draw(tables: dict[str, Scores], given: int | None) -> None:
    """A panel per environment; lambdas evenly spaced, as what matters lies near 1."""
    figure, axes = plt.subplots(1, len(tables), figsize=(3.8 * len(tables), 3.2), layout="constrained", squeeze=False)
    for axis, (env_id, scores) in zip(axes[0], tables.items(), strict=True):
        x = range(len(scores))
        for name, (label, color, marker) in SCORES.items():
            kept = [cell[name] for cell in scores.values()]
            axis.fill_between(x, *zip(*map(interval, kept), strict=True), color=color, alpha=0.2, lw=0)
            axis.plot(x, [iqm(xs) for xs in kept], marker=marker, ms=4, color=color, label=label)
        axis.set_xticks(x, [NAMES.get(lam, f"{lam:g}").replace(", ", "\n") for lam in scores])
        axis.set(xlabel="$\\lambda$", title=f"{env_id}, {(given or TASKS[env_id]) // 1000}k steps")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("return")
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=2)
    figure.savefig(PLOT, dpi=110)
    print(f"\n{PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, reports = commands.add_parser("run"), commands.add_parser("report")
    runs.add_argument("env_ids", nargs="*", metavar="ENV_ID", help=f"of {', '.join(TASKS)}; all where not given")
    runs.add_argument("--lambdas", nargs="+", type=float, default=LAMBDAS)
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    for command in (runs, reports):
        command.add_argument("--steps", type=int, help="instead of each environment's own")
    a = parser.parse_args()
    if a.command == "report":
        report(a.steps)
    elif unknown := set(a.env_ids) - set(TASKS):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(TASKS)}")
    else:
        run(a)


if __name__ == "__main__":
    main()
