"""The ladder of objectives: does each learn, and as well as its counterpart in Stable-Baselines3 and sb3-contrib?

    python benchmarks/objectives.py run [CartPole-v1 ...] [--libraries levelhead/trpo sb3/trpo ...] [--seeds 1 2 3]
    python benchmarks/objectives.py report

`run` appends to results/objectives.jsonl whatever is not in there yet; `report` prints a table per environment, and how
near to its target the adaptive penalty of kl keeps the divergence.

levelhead runs the preset of the environment for the objective. A counterpart runs the same: environments, steps,
rollouts, epochs, minibatches, step sizes and their course, discounts, networks, coefficients and Adam. What differs is
listed in reward_scale.py, and for TRPO in drivers/sb3contrib_objective.py.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, get_args

import records
from peers import drive
from reward_scale import task_of
from scale_task import EPISODES, greedy_return
from stats import summary

import levelhead as lh
from levelhead.config import ObjectiveKind

PEERS: dict[str, ObjectiveKind] = {"sb3/ppo": "clip", "sb3/a2c": "a2c", "sb3-contrib/trpo": "trpo"}
"""By name, the objective of levelhead that it is the counterpart of."""
LIBRARIES = (*(f"levelhead/{kind}" for kind in get_args(ObjectiveKind)), *PEERS)


@dataclass(frozen=True)
class Part:
    """What is run on one environment."""

    steps: int
    libraries: tuple[str, ...] = LIBRARIES
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


GRID = {
    "CartPole-v1": Part(100_000),
    "Pendulum-v1": Part(200_000, ("levelhead/clip", "levelhead/kl", "levelhead/trpo", "sb3/ppo", "sb3-contrib/trpo")),
    "HalfCheetah-v5": Part(300_000, seeds=(1, 2, 3)),
}


def once(env_id: str, steps: int, library: str, seed: int) -> dict[str, Any]:
    """One run's result."""
    kind: ObjectiveKind = PEERS[library] if library in PEERS else library.partition("/")[2]  # pyright: ignore[reportAssignmentType]
    config = lh.preset(env_id, kind)
    task = task_of(config, steps)
    if library in PEERS:
        return {
            "task": task.digest,
            **drive("sb3contrib", "objective", task.to_json(), 1, seed, library.partition("/")[2]),
        }
    config = replace(config, total_steps=task.steps, seed=seed, checkpoint_every=0, device="cpu")
    with tempfile.TemporaryDirectory() as directory:
        run = lh.train(env_id, config=config, run_dir=directory)
        lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    result: dict[str, Any] = {"task": task.digest, "return": greedy_return(env_id, run.policy.act)}
    if kind == "kl":
        late = [line["train/kl"] for line in lines[len(lines) // 2 :]]
        result |= {"kl": median(late), "kl_target": config.ppo.kl_target(1.0)}
    return result


def run(env_ids: list[str], libraries: list[str], seeds: list[int]) -> None:
    done = {(r["env"], r["library"], r["seed"]) for r in records.read("objectives")}
    jobs = [
        (seed, env_id, library)
        for env_id in env_ids or GRID
        for seed, library in itertools.product(seeds or GRID[env_id].seeds, GRID[env_id].libraries)
        if library in (libraries or LIBRARIES)
    ]
    for seed, env_id, library in sorted(jobs, key=lambda job: job[0]):
        if (env_id, library, seed) in done:
            continue
        started, steps = time.perf_counter(), GRID[env_id].steps
        result = once(env_id, steps, library, seed)
        seconds = round(time.perf_counter() - started, 1)
        records.append(
            "objectives",
            {"env": env_id, "library": library, "seed": seed, "steps": steps, **result, "seconds": seconds},
        )


def report() -> None:
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in records.read("objectives"):
        scores[r["env"]][r["library"]].append(r["return"])
    print(f"Greedy return over {EPISODES} episodes, IQM over seeds [95% bootstrap interval].")
    for env_id, part in GRID.items():
        print(f"\n{env_id}, {part.steps:,} steps\n\n| | seeds | return |\n|---|---|---|")
        for library in LIBRARIES:
            if returns := scores[env_id].get(library):
                print(f"| {library} | {len(returns)} | {summary(returns)} |")
    print("\nlevelhead/kl: median divergence over the second half of training, as a multiple of its target, by seed\n")
    for env_id in GRID:
        kept = [r for r in records.read("objectives") if r["env"] == env_id and "kl" in r]
        shown = ", ".join(f"{r['kl'] / r['kl_target']:.2f}" for r in sorted(kept, key=lambda r: r["seed"]))
        print(f"- {env_id}: {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("env_ids", nargs="*", metavar="ENV_ID", help=f"of {', '.join(GRID)}; all where not given")
    runs.add_argument("--libraries", nargs="+", default=[], choices=LIBRARIES)
    runs.add_argument("--seeds", nargs="+", type=int, default=[])
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "report":
        report()
    elif unknown := set(a.env_ids) - set(GRID):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(GRID)}")
    else:
        run(a.env_ids, a.libraries, a.seeds)


if __name__ == "__main__":
    main()
