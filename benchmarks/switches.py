"""Do learning curves stay the same, whatever takes the steps and runs the environments?

    python benchmarks/switches.py run [CartPole-v1 ...] [--switches torch native ...] [--seeds 1 2 3 4 5]
    python benchmarks/switches.py report

`run` appends to results/switches.jsonl whatever is not in there yet; `report` prints a table per environment. Engines
agree to rounding and backends start episodes elsewhere, so that runs of one seed drift apart as two seeds do; what must
agree is what comes of many. A switch that an environment has no use for is left out there.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import environments  # noqa: F401  registers one with pictures
import numpy as np
import records
from scale_task import EPISODES, greedy_return
from stats import interval, summary

import levelhead as lh

REFERENCE = "torch"
SWITCHES: dict[str, dict[str, Any]] = {
    REFERENCE: {"engine": "torch"},
    "native": {"engine": "native"},
    "compile": {"engine": "compile"},
    "vector": {"backend": "vector"},
    "envpool": {"backend": "envpool"},
    "overlap": {"overlap": True},
    "bfloat16": {"engine": "torch", "network": lh.NetworkConfig((), (), (), precision="bfloat16")},
}
"""What each changes in an environment's config. Processes, threads and double buffering are not among them: they change
nothing, bit for bit, but that halves are two shards."""


@dataclass(frozen=True)
class Task:
    """A config, and the switches that make a difference to it."""

    config: lh.Config
    switches: tuple[str, ...]


VECTORS = (REFERENCE, "native", "compile", "envpool", "overlap")
PICTURES = lh.Config(
    "levelhead/Catch-v0",
    num_envs=8,
    num_steps=128,
    network=lh.NetworkConfig((), (), ()),
    ppo=lh.PPOConfig(epochs=4, minibatches=4),
    optimizer=lh.OptimizerConfig(learning_rate=lh.Schedule(1e-3, 0.0)),
)
TASKS = {
    task.config.env_id: task
    for task in (
        Task(replace(lh.preset("CartPole-v1"), total_steps=100_000), (*VECTORS, "vector")),
        Task(replace(lh.preset("Pendulum-v1"), total_steps=200_000), VECTORS),
        Task(replace(lh.preset("HalfCheetah-v5"), total_steps=300_000), VECTORS),
        Task(replace(PICTURES, total_steps=30_000), (REFERENCE, "compile", "overlap", "bfloat16")),
    )
}


def once(env_id: str, switch: str, seed: int) -> dict[str, float]:
    """One run: its mean return over training, and that of its greedy policy afterwards."""
    config = replace(TASKS[env_id].config, seed=seed, checkpoint_every=0, device="cpu", **SWITCHES[switch])
    with tempfile.TemporaryDirectory() as directory:
        run = lh.train(env_id, config=config, run_dir=directory)
        if run.interrupted:
            raise SystemExit("interrupted")
        lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    # By steps, not lines: where resets are rows of their own, iterations have fewer steps while episodes are short.
    steps = np.diff([0, *(line["step"] for line in lines)])
    curve = [
        (n, line["rollout/ep_rew_mean"]) for n, line in zip(steps, lines, strict=True) if "rollout/ep_rew_mean" in line
    ]
    weights, returns = zip(*curve, strict=True)
    return {"curve": float(np.average(returns, weights=weights)), "return": greedy_return(env_id, run.policy.act)}


def run(env_ids: list[str], switches: list[str], seeds: list[int]) -> None:
    done = {(r["env"], r["switch"], r["seed"]) for r in records.read("switches")}
    for seed in seeds:
        for env_id in env_ids:
            for switch in switches:
                if switch in TASKS[env_id].switches and (env_id, switch, seed) not in done:
                    result = once(env_id, switch, seed)
                    records.append("switches", {"env": env_id, "switch": switch, "seed": seed, **result})


def report() -> None:
    results: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for r in records.read("switches"):
        results[r["env"]][r["switch"]].append(r)
    print(
        f"Mean return over training, and greedy return over {EPISODES} episodes afterwards; IQM over seeds [95%"
        f" bootstrap interval], in bold where the interval lies apart from {REFERENCE}'s."
    )
    for env_id, task in TASKS.items():
        print(f"\n{env_id}, {task.config.total_steps:,} steps")
        print("\n| | seeds | over training | greedy |\n|---|---|---|---|")
        for switch in SWITCHES:
            if rows := results[env_id][switch]:
                shown = [_beside(rows, results[env_id][REFERENCE], figure) for figure in ("curve", "return")]
                print(f"| {switch} | {len(rows)} | {' | '.join(shown)} |")


def _beside(rows: list[dict[str, float]], reference: list[dict[str, float]], figure: str) -> str:
    given, expected = ([r[figure] for r in group] for group in (rows, reference))
    (low, high), (least, most) = interval(given), interval(expected)
    return f"**{summary(given)}**" if high < least or low > most else summary(given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("env_ids", nargs="*", metavar="ENV_ID", help=f"of {', '.join(TASKS)}; all where not given")
    runs.add_argument("--switches", nargs="+", default=list(SWITCHES), choices=list(SWITCHES))
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "report":
        report()
    elif unknown := set(a.env_ids) - set(TASKS):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(TASKS)}")
    else:
        run(a.env_ids or list(TASKS), a.switches, a.seeds)


if __name__ == "__main__":
    main()
