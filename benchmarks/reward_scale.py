"""PPO at reward scales from 1e-6 to 1e6: levelhead with its presets, and Stable-Baselines3 with its defaults.

Hyperparameters differ between the two, so compare along a line, not between lines: what a change of scale does to each.

    python benchmarks/reward_scale.py run CartPole-v1 100000 --libraries levelhead sb3 --seeds 1 2 3 4 5
    python benchmarks/reward_scale.py report

`run` appends to results/reward_scale.jsonl whatever is not in there yet; `report` prints the table and draws
docs/reward_scale.png from it.
"""

import argparse
import itertools
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import records
from peers import drive
from stats import interval, iqm, summary

PLOT = Path(__file__).parents[1] / "docs" / "reward_scale.png"
SCALES = (1e-6, 1e-3, 1.0, 1e3, 1e6)
LABELS = {"levelhead": "levelhead, presets", "sb3": "Stable-Baselines3 PPO, defaults"}


def run(env_id: str, steps: int, libraries: list[str], scales: list[float], seeds: list[int]) -> None:
    done = {(r["library"], r["env"], r["steps"], r["scale"], r["seed"]) for r in records.read("reward_scale")}
    for seed, scale, library in itertools.product(seeds, scales, libraries):
        if (library, env_id, steps, scale, seed) not in done:
            made = {"library": library, "env": env_id, "steps": steps, "scale": scale, "seed": seed}
            records.append("reward_scale", {**made, **drive(library, "scale", env_id, steps, scale, seed)})


def report() -> None:
    scores: dict[tuple[str, int], dict[str, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for r in records.read("reward_scale"):
        scores[r["env"], r["steps"]][r["library"]].setdefault(r["scale"], []).append(r["return"])
    figure, axes = plt.subplots(1, len(scores), figsize=(4.2 * len(scores), 3.2), layout="constrained", squeeze=False)
    for axis, ((env_id, steps), libraries) in zip(axes[0], scores.items(), strict=True):
        print(f"\n{env_id}, {steps:,} steps: greedy return, IQM over seeds [95% bootstrap interval]\n")
        scales = sorted({scale for by_scale in libraries.values() for scale in by_scale})
        print("| | " + " | ".join(f"{s:g}" for s in scales) + " |\n|---|" + "---|" * len(scales))
        for library, by_scale in libraries.items():
            cells = [f"{summary(by_scale[s])} n={len(by_scale[s])}" if s in by_scale else "" for s in scales]
            print(f"| {LABELS[library]} | " + " | ".join(cells) + " |")
            x = sorted(by_scale)
            bounds = [interval(by_scale[s]) for s in x]
            (line,) = axis.plot(x, [iqm(by_scale[s]) for s in x], marker="o", label=LABELS[library])
            axis.fill_between(x, *zip(*bounds, strict=True), alpha=0.2, color=line.get_color())
        axis.set(xscale="log", title=f"{env_id}, {steps // 1000}k steps", xlabel="reward scale")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("greedy return")
    axes[0][0].legend()
    figure.savefig(PLOT, dpi=150)
    print(f"\n{PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("env_id")
    runs.add_argument("steps", type=int)
    runs.add_argument("--libraries", nargs="+", default=list(LABELS), choices=list(LABELS))
    runs.add_argument("--scales", nargs="+", type=float, default=list(SCALES))
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        run(a.env_id, a.steps, a.libraries, a.scales, a.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
