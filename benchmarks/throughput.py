"""Steps per second, whole-process time and peak memory: levelhead and Stable-Baselines3 on identical work, in turn.

    python benchmarks/throughput.py [--rounds 5]

Both step the same Gymnasium environments in one process on one torch thread. Every round runs each library once, in
alternating order; ratios are taken within a round, so that a machine that drifts does so for both.
"""

import argparse
import statistics

from peers import drive
from tasks import TASKS

FIGURES = ("steps_per_second", "process_seconds", "peak_mb")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args()
    libraries = ("levelhead", "sb3")
    print("| task | figure | levelhead | Stable-Baselines3 | ratio |\n|---|---|---|---|---|")
    for task in arguments.tasks:
        results: dict[str, list[dict[str, float]]] = {name: [] for name in libraries}
        for seed in range(arguments.rounds):
            for name in libraries if seed % 2 == 0 else reversed(libraries):
                results[name].append(drive(name, "ppo", task, seed))
        for figure in FIGURES:
            ours, theirs = ([r[figure] for r in results[name]] for name in libraries)
            ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
            print(f"| {task} | {figure} | {spread(ours)} | {spread(theirs)} | {spread(ratio)} |", flush=True)


if __name__ == "__main__":
    main()
