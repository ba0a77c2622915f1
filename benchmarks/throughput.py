"""Steps per second, whole-process time and peak memory: levelhead and Stable-Baselines3 on identical work, in turn.

    python benchmarks/throughput.py [--rounds 5]

Both step the same Gymnasium environments in one process on one torch thread. Every round runs each library once, in
alternating order; ratios are taken within a round, so that a machine that drifts does so for both.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from peers import python
from tasks import TASKS

HERE = Path(__file__).parent
FIGURES = ("steps_per_second", "process_seconds", "peak_mb")


def run(interpreter: str, driver: str, task: str, seed: int) -> dict[str, float]:
    command = [interpreter, str(HERE / "drivers" / driver), task, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{driver} {task} failed:\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args()
    drivers = [("levelhead", sys.executable, "levelhead_ppo.py"), ("sb3", python("sb3"), "sb3_ppo.py")]
    print("| task | figure | levelhead | Stable-Baselines3 | ratio |\n|---|---|---|---|---|")
    for task in arguments.tasks:
        results: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in drivers}
        for seed in range(arguments.rounds):
            for name, interpreter, driver in drivers if seed % 2 == 0 else reversed(drivers):
                results[name].append(run(interpreter, driver, task, seed))
        for figure in FIGURES:
            ours, theirs = ([r[figure] for r in results[name]] for name in ("levelhead", "sb3"))
            ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
            print(f"| {task} | {figure} | {spread(ours)} | {spread(theirs)} | {spread(ratio)} |", flush=True)


if __name__ == "__main__":
    main()
