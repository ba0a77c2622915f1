"""Does a run that was killed again and again, and resumed, end as one that never was?

    python benchmarks/kills.py [mlp cnn lstm ranks] [--kills 20] [--seed 1]

A run of a few seconds, with a checkpoint every few iterations, gets kill -9 at moments drawn from the whole of its
duration: while Python starts, before the first checkpoint, in the middle of one, between two. `levelhead resume` then
goes on; where nothing had been written yet, `levelhead train` begins anew in the same directory. Of two ranks one is
killed, or all and torchrun. In the end SHA-256 of all files of the last checkpoint, and metrics.jsonl, are those of a
run that was left alone. Appends a line per run to results/kills.jsonl; the seed decides moments, relative to the
duration of a run left alone, and targets.
"""

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import records
from gymnasium.spaces import Box, Discrete
from launch import children, kill, last, lines, start

MOST = 4
"""Kills of one run."""
PATIENCE = 120.0
"""Seconds that a run may take to its end."""
WHEN = ("starting", "before the first checkpoint", "during a checkpoint", "between checkpoints", "after the last one")


class Bright(gym.Env[np.ndarray, int]):
    """Five steps; the picture is bright on the side of the choice that pays."""

    observation_space = Box(0, 255, (36, 36, 1), np.uint8)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        self.side = int(self.np_random.integers(2))
        picture = np.zeros((36, 36, 1), np.uint8)
        picture[:, 18 * self.side : 18 * (self.side + 1)] = 255
        return picture

    def step(self, action: int):
        reward = float(action == self.side)
        self.steps += 1
        return self.observe(), reward, self.steps == 5, False, {}


gym.register("levelhead/Bright-v0", Bright)


def _options(rows: int, iterations: int, every: int, *others: object) -> tuple[object, ...]:
    """Of a run of so many iterations of `4 x rows` steps, with a checkpoint after every so many."""
    steps = 4 * rows
    return (
        *("--num-envs", 4, "--num-steps", rows, "--total-steps", steps * iterations),
        *("--checkpoint-every", steps * every, "--device", "cpu", "--ppo.epochs", 2, "--ppo.minibatches", 2, *others),
    )


@dataclass(frozen=True)
class Kind:
    """What is trained."""

    env_id: str
    options: tuple[object, ...]
    ranks: int = 1


SMALL = ("--network.actor", 16, "--network.critic", 16)
KINDS = {
    "mlp": Kind("CartPole-v1", _options(64, 200, 2, "--engine", "native", *SMALL)),
    "cnn": Kind("levelhead/Bright-v0", _options(8, 60, 2, "--import", "kills")),
    "lstm": Kind("CartPole-v1", _options(32, 80, 2, "--memory.kind", "lstm", "--memory.size", 8, *SMALL)),
    "ranks": Kind("CartPole-v1", _options(32, 120, 3, *SMALL), ranks=2),
}


def begin(kind: Kind, seed: int, run: Path) -> subprocess.Popen[bytes]:
    """Starts a run, or goes on with it."""
    command = ("resume", run) if (run / "config.json").exists() else ("train", kind.env_id, *kind.options)
    fresh = () if command[0] == "resume" else ("--seed", seed, "--run-dir", run)
    return start(kind.ranks, "-m", "levelhead", *command, *fresh, log=run.with_suffix(".log"))


def finish(kind: Kind, seed: int, run: Path) -> float:
    """Sees a run to its end; the seconds that took."""
    started = time.monotonic()
    process = begin(kind, seed, run)
    try:
        status = process.wait(PATIENCE)
    finally:
        kill(process)
    if status:
        raise SystemExit(f"{run} ended with status {status}:\n{run.with_suffix('.log').read_text()[-3000:]}")
    return time.monotonic() - started


def strike(process: subprocess.Popen[bytes], target: int, ranks: int) -> str:
    """Kills rank `target`, whose loss the others must notice; or everything, if there is no such rank."""
    found = children(process.pid) if ranks > 1 else []
    if target >= len(found):
        kill(process)
        return "all"
    with suppress(ProcessLookupError):
        os.kill(found[target], signal.SIGKILL)
    try:
        process.wait(PATIENCE)
    finally:
        kill(process)
    return "one rank"


def moment(run: Path, config: int, started: float, complete: bool) -> str:
    """At which point of a run it was killed: `config` is when config.json was written before it was started."""
    if complete:
        return WHEN[4]
    if written(run) == config:
        return WHEN[0]
    if any(path.stat().st_mtime > started for path in run.glob("checkpoints/.step-*")):
        return WHEN[2]
    return WHEN[3] if last(run) else WHEN[1]


def written(run: Path) -> int:
    path = run / "config.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def once(name: str, seed: int, most: int, rng: np.random.Generator, directory: Path) -> dict[str, object]:
    """One run that is killed up to so many times, beside one that isn't."""
    kind = KINDS[name]
    whole, cut = (directory / f"{name}-{seed}-{which}" for which in ("whole", "cut"))
    span = finish(kind, seed, whole)
    total = lines(whole)[-1]["step"]
    kills: list[dict[str, object]] = []
    end = cut / "checkpoints" / f"step-{total:012d}"
    for _ in range(most):
        after, target = float(rng.uniform(0, span)), int(rng.integers(kind.ranks + 1))
        config, started = written(cut), time.time()
        process = begin(kind, seed, cut)
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
            break
        what = strike(process, target, kind.ranks)
        when = moment(cut, config, started, end.exists())
        kills.append({"after": round(after, 2), "killed": what, "when": when})
        if end.exists():
            break
    if not end.exists():
        finish(kind, seed, cut)
    return {
        "kind": name,
        "seed": seed,
        "iterations": len(lines(whole)),
        "seconds": round(span, 1),
        "kills": kills,
        "same_checkpoint": last(cut) == last(whole),
        "same_metrics": lines(cut) == lines(whole),
        "no_gap": [line["iteration"] for line in lines(cut)] == list(range(1, len(lines(whole)) + 1)),
    }


def report(results: list[dict[str, object]]) -> None:
    print(f"\n| | runs | kills | {' | '.join(WHEN)} | same checkpoint | same metrics |\n|{'---|' * (len(WHEN) + 5)}")
    for name in KINDS:
        rows = [r for r in results if r["kind"] == name]
        if not rows:
            continue
        counts = Counter(kill["when"] for r in rows for kill in r["kills"])
        same = [sum(bool(r[key]) for r in rows) for key in ("same_checkpoint", "same_metrics")]
        shown = (len(rows), counts.total(), *(counts[when] for when in WHEN), *(f"{n} of {len(rows)}" for n in same))
        print(f"| {name} | {' | '.join(map(str, shown))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all where not given")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if unknown := set(a.kinds) - set(KINDS):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(KINDS)}")
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as directory:
        for name in a.kinds or KINDS:
            rng, left, seed = np.random.default_rng((a.seed, *name.encode())), a.kills, 0
            while left > 0:
                seed += 1
                results.append(once(name, seed, min(left, MOST), rng, Path(directory)))
                records.append("kills", {"draw": a.seed, **results[-1]})
                left -= len(results[-1]["kills"])
    report(results)
    if not all(r["same_checkpoint"] and r["same_metrics"] and r["no_gap"] for r in results):
        raise SystemExit("a run that was killed ended differently")


if __name__ == "__main__":
    main()
