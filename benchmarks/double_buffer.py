"""What it gains to choose actions for one half of the environments while the other half steps.

    python benchmarks/double_buffer.py [--rounds 3] [CASE ...]

Two shards both times, stepped at once and in turn, alternating; both learn the same. Prints steps per second and the
time of stepping alone, with the ratios' spread, and appends to results/double_buffer.jsonl.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import records
from gymnasium.envs.classic_control import CartPoleEnv

import levelhead as lh
from levelhead.config import ParallelConfig

ITERATIONS, WARM = 12, 2


class WaitingCartPole(CartPoleEnv):
    """A step of it waits for a millisecond, as for another machine or a GPU."""

    def step(self, action):
        time.sleep(1e-3)
        return super().step(action)


class SlowCartPole(CartPoleEnv):
    """A step of it takes a processor a millisecond."""

    def step(self, action):
        over = time.perf_counter() + 1e-3
        while time.perf_counter() < over:
            pass
        return super().step(action)


gym.register("Waiting/CartPole-v1", WaitingCartPole, max_episode_steps=500)
gym.register("Slow/CartPole-v1", SlowCartPole, max_episode_steps=500)


@dataclass(frozen=True)
class Case:
    """What is trained."""

    env_id: str
    backend: lh.envs.Backend
    memory: int = 0
    """Of an LSTM, which torch acts with."""
    workers: int = 0

    def config(self, double_buffer: bool) -> lh.Config:
        start = lh.preset(self.env_id) if self.env_id.startswith("ALE/") else lh.Config(self.env_id, num_steps=128)
        return replace(
            start,
            total_steps=ITERATIONS * start.num_envs * start.num_steps,
            device="cpu",
            backend=self.backend,
            double_buffer=double_buffer,
            checkpoint_every=0,
            memory=lh.MemoryConfig("lstm", self.memory) if self.memory else lh.MemoryConfig(),
            env=replace(start.env, workers=self.workers),
            parallel=ParallelConfig(shards=2),
        )


CASES = {
    "waiting": Case("Waiting/CartPole-v1", "processes", workers=4),
    "waiting, LSTM": Case("Waiting/CartPole-v1", "processes", memory=256, workers=4),
    "slow": Case("Slow/CartPole-v1", "processes"),
    "slow, LSTM": Case("Slow/CartPole-v1", "processes", memory=256),
    "Pong": Case("ALE/Pong-v5", "processes"),
    "HalfCheetah, EnvPool": Case("HalfCheetah-v5", "envpool"),
    "CartPole, EnvPool": Case("CartPole-v1", "envpool"),
}


def measure(case: Case, double_buffer: bool) -> dict[str, float]:
    """Medians over the iterations of a run."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = lh.train(case.env_id, config=replace(case.config(double_buffer), run_dir=Path(directory) / "run"))
        lines = (run.directory / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines[WARM:]]
    return {name: statistics.median(x[f"time/{name}"] for x in found) for name in ("fps", "collect")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where not given")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    if unknown := set(a.cases) - set(CASES):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(CASES)}")
    table = ["| | steps/s, at once | in turn | ratio | ratio of stepping alone |", "|---|---|---|---|---|"]
    for name in a.cases or CASES:
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for i in range(a.rounds):
            for double_buffer in (False, True) if i % 2 == 0 else (True, False):
                found[double_buffer].append(measure(CASES[name], double_buffer))
        plain, halved = found[False], found[True]
        speeds = [statistics.median(x["fps"] for x in xs) for xs in (plain, halved)]
        total = spread([y["fps"] / x["fps"] for x, y in zip(plain, halved, strict=True)])
        alone = spread([x["collect"] / y["collect"] for x, y in zip(plain, halved, strict=True)])
        table.append(f"| {name} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {total} | {alone} |")
        records.append("double_buffer", {"case": name, "at_once": plain, "in_turn": halved})
    print("\n" + "\n".join(table))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
