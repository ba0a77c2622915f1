"""How speed and memory grow with the number of environments: CartPole, rollouts of 128 steps, each run a fresh process.

    python benchmarks/scaling.py run [--rounds 3]
    python benchmarks/scaling.py report

`run` appends to results/scaling.jsonl whatever is not in there yet; move that file away to measure anew. `report`
prints a table and draws docs/scaling.png. Environments are stepped one after another (sync), or by CartPole's own
vector version (vector); there are 4 minibatches whatever their size. Peak memory is that of the whole process, beside
the bytes of a rollout's tensors plus a constant, which is what the fewest environments take beyond their rollout.
"""

import argparse
import itertools
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import records
from peers import drive
from tasks import TASKS, Task
from torch import Tensor

import levelhead as lh
from levelhead.tree import tree_leaves

PLOT = Path(__file__).parents[1] / "docs" / "scaling.png"
COLORS = {"sync": "#0b3d91", "vector": "#c23b22"}
"""By backend."""
NUM_ENVS = (8, 32, 128, 512)
FEWEST_ITERATIONS = 20

Points = dict[int, list[dict[str, Any]]]
"""Rows by number of environments."""


def task(num_envs: int) -> Task:
    """CartPole on so many; its number of steps, or more where these would be few iterations."""
    plain = replace(TASKS["cartpole"], num_envs=num_envs)
    return replace(plain, steps=max(plain.iterations, FEWEST_ITERATIONS) * plain.rollout)


def run(rounds: int) -> None:
    kept = {(r["backend"], r["num_envs"], r["round"], r["settings"]) for r in records.read("scaling")}
    for i in range(1, rounds + 1):
        cells = list(itertools.product(COLORS, NUM_ENVS))
        for backend, num_envs in cells if i % 2 else reversed(cells):
            work = task(num_envs)
            key = {"backend": backend, "num_envs": num_envs, "round": i, "settings": work.digest}
            if tuple(key.values()) not in kept:
                records.append("scaling", {**key, **drive("levelhead", "ppo", work.to_json(), i, backend)})


def rollout_mb(num_envs: int) -> float:
    """What the tensors of a rollout take."""
    work = task(num_envs)
    config = lh.Config(work.env_id, num_envs=num_envs, num_steps=work.num_steps, device="cpu", backend="vector")
    env = lh.make_gymnasium(work.env_id, num_envs, backend="vector")
    policy = lh.build_policy(config, env.observation_space, env.action_space)
    rollout = lh.build_trainer(config, env, policy).collector.collect(0)
    leaves = (leaf for field in fields(rollout) for leaf in tree_leaves(getattr(rollout, field.name)))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)) / 2**20


def report() -> None:
    rows = [r for r in records.read("scaling") if r["settings"] == task(r["num_envs"]).digest]
    lines: dict[str, Points] = {backend: {} for backend in COLORS}
    for r in sorted(rows, key=lambda r: r["num_envs"]):
        lines[r["backend"]].setdefault(r["num_envs"], []).append(r)
    lines = {backend: points for backend, points in lines.items() if points}
    if not lines:
        raise SystemExit("nothing was measured yet")
    rollouts = {n: rollout_mb(n) for n in sorted({n for points in lines.values() for n in points})}
    print("Median and range over rounds.\n")
    head = ("backend", "environments", "rounds", "steps/s", "peak memory, MB", "of which the rollout")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for backend, points in lines.items():
        for n, measured in points.items():
            speed, memory = (
                "{1:,.0f} ({0:,.0f} to {2:,.0f})".format(*spread(measured, x)) for x in ("steps_per_second", "peak_mb")
            )
            print(f"| {backend} | {n} | {len(measured)} | {speed} | {memory} | {rollouts[n]:.1f} |")
    draw(lines, rollouts)


def spread(measured: list[dict[str, Any]], figure: str) -> tuple[float, float, float]:
    """Lowest, median and highest."""
    values = [r[figure] for r in measured]
    return min(values), statistics.median(values), max(values)


def draw(lines: dict[str, Points], rollouts: dict[int, float]) -> None:
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(7.6, 3.2), layout="constrained")
    for backend, points in lines.items():
        for axis, name in ((speed, "steps_per_second"), (memory, "peak_mb")):
            low, median, high = zip(*(spread(measured, name) for measured in points.values()), strict=True)
            axis.fill_between(list(points), low, high, color=COLORS[backend], alpha=0.2, lw=0)
            axis.plot(list(points), median, "o-", ms=4, color=COLORS[backend], label=backend)
    fewest = min(rollouts)
    constant = min(spread(points[fewest], "peak_mb")[1] for points in lines.values() if fewest in points)
    constant -= rollouts[fewest]
    needed = [constant + x for x in rollouts.values()]
    memory.plot(list(rollouts), needed, "--", lw=1, color="black", label=f"{constant:.0f} MB + the rollout")
    for axis, title in ((speed, "steps per second"), (memory, "peak memory of the process, MB")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(rollouts), [str(n) for n in rollouts])
        axis.set(xlabel="environments", title=title)
        axis.set_ylim(bottom=0)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
    speed.yaxis.set_major_formatter("{x:,.0f}")
    speed.legend(fontsize="small")
    memory.legend(fontsize="small", loc="lower right")
    figure.savefig(PLOT, dpi=110)
    print(f"\n{PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--rounds", type=int, default=3)
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "report":
        report()
    else:
        run(a.rounds)


if __name__ == "__main__":
    main()
