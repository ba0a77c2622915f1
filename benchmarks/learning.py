"""Does it learn? Every preset environment over seeds, greedy return at the end, beside what it is to reach.

    python benchmarks/learning.py run CartPole-v1 --seeds 1 2 3 4 5
    python benchmarks/learning.py report

`run` appends to results/learning.jsonl whatever is not in there yet; `report` prints the table.
"""

import argparse
import json
import tempfile
from collections import defaultdict

import records
from stats import iqm, summary

import levelhead as lh

STEPS_AND_GOALS: dict[str, tuple[int, float | None]] = {
    "CartPole-v1": (100_000, 475.0),
    "Acrobot-v1": (300_000, -90.0),
    "Pendulum-v1": (200_000, -220.0),
    "LunarLander-v3": (1_000_000, 220.0),
    "HalfCheetah-v5": (300_000, None),
}
EPISODES = 100


def run(env_id: str, seeds: list[int]) -> None:
    steps, _ = STEPS_AND_GOALS[env_id]
    done = {(r["env"], r["seed"]) for r in records.read("learning")}
    for seed in seeds:
        if (env_id, seed) in done:
            continue
        with tempfile.TemporaryDirectory() as directory:
            trained = lh.train(env_id, total_steps=steps, seed=seed, run_dir=directory)
            lines = [json.loads(line) for line in (trained.directory / "metrics.jsonl").read_text().splitlines()]
        report = lh.evaluate(trained.policy, env_id, EPISODES, seed=1000 + seed)
        result = {
            "env": env_id,
            "steps": trained.step,
            "seed": seed,
            "greedy_return": report.mean_return,
            "training_return": lines[-1]["rollout/ep_rew_mean"],
            "seconds": sum(line["time/collect"] + line["time/learn"] for line in lines),
        }
        records.append("learning", result)


def report() -> None:
    by_env: dict[str, list[dict[str, float]]] = defaultdict(list)
    for result in records.read("learning"):
        by_env[result["env"]].append(result)
    print(
        f"Greedy return over {EPISODES} episodes and return of the last 100 training episodes, IQM over seeds"
        " [95% bootstrap interval].\n\n| environment | steps | seeds | greedy | training | goal | reached |\n"
        "|---|---|---|---|---|---|---|"
    )
    for env_id, (steps, goal) in STEPS_AND_GOALS.items():
        results = by_env.get(env_id)
        if not results:
            continue
        greedy, training = ([r[key] for r in results] for key in ("greedy_return", "training_return"))
        reached = "" if goal is None else ("yes" if iqm(greedy) >= goal else "no")
        shown = "" if goal is None else f"{goal:g}"
        cells = (env_id, f"{steps:,}", str(len(results)), summary(greedy), summary(training), shown, reached)
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("env_id", choices=list(STEPS_AND_GOALS))
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        run(a.env_id, a.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
