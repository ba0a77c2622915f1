"""Does a process that trains for hours, with everything around it ending now and then, stay as it is?

    python benchmarks/soak.py [--minutes 20] [--seed 1]      (make soak: two hours)

One process begins runs, is interrupted, goes on with them, and has other processes go on with them; meanwhile the
worker processes with its environments are killed. Twice in five seconds its resident memory, what of it is shared, file
descriptors, threads, mappings, and what lies in /dev/shm are written down, and those of the other processes too. A
figure is flat where its slope over the second half, by least squares on the means of ten blocks of time with a 95%
interval (blocks, as neighbouring samples are alike), may be 0, or is less than 1% of the figure in an hour. Appends a
line to results/soak.jsonl, writes the samples to results/soak.csv and draws docs/soak.png.
"""

import argparse
import csv
import math
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import records
from launch import children, kill, lines, start

import levelhead as lh

PLOT = Path(__file__).parents[1] / "docs" / "soak.png"
SAMPLES = records.RESULTS / "soak.csv"
FIGURES = ("resident_mb", "shared_mb", "descriptors", "threads", "mappings", "dev_shm_mb")
BETWEEN = 2.5
"""Seconds between samples."""
PHASE = 10.0
"""Seconds of training between two interruptions."""
KILLED_EVERY = 4.0
"""Seconds between losses of a worker."""
PHASES = ("train", "resume", "resume", "other process", "resume")
"""Of a run, until the next one begins."""
BLOCKS, T_95 = 10, 2.306
"""Of the second half; Student's t for a slope through so many means."""


def figures(process: int) -> dict[str, float]:
    """Of a process, by /proc."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    shared_files = (path for path in Path("/dev/shm").rglob("*") if path.is_file())
    return {
        "resident_mb": int(status["VmRSS"].split()[0]) / 1024,
        "shared_mb": int(status["RssShmem"].split()[0]) / 1024,
        "descriptors": len(os.listdir(f"/proc/{process}/fd")),
        "threads": int(status["Threads"]),
        "mappings": len(Path(f"/proc/{process}/maps").read_text().splitlines()),
        "dev_shm_mb": sum(path.stat().st_size for path in shared_files) / 2**20,
    }


class Trouble(threading.Thread):
    """Takes samples, kills workers, and interrupts training when a phase has lasted long enough."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self.rng = np.random.default_rng(seed)
        self.began = time.monotonic()
        self.samples = list[dict[str, float]]()
        self.other: int | None = None
        """A process that trains in place of this one."""
        self.until = math.inf
        """When the phase under way is to end."""
        self.killed = 0
        self.done = threading.Event()

    def run(self) -> None:
        next_kill = next_sample = self.began
        while not self.done.wait(0.1):
            now = time.monotonic()
            if now >= next_sample:
                next_sample = now + BETWEEN
                self.sample(os.getpid())
                if self.other is not None:
                    self.sample(self.other)
            if now >= next_kill and self.until - now < PHASE - 2:  # before that they may be in the making
                next_kill = now + KILLED_EVERY
                os.kill(int(self.rng.choice(children(os.getpid()))), signal.SIGKILL)
                self.killed += 1
            if now >= self.until:
                self.until = now + PHASE
                signal.raise_signal(signal.SIGINT)

    def sample(self, process: int) -> None:
        try:
            found = figures(process)
        except (FileNotFoundError, ProcessLookupError, KeyError):  # it has just ended
            return
        self.samples.append({"seconds": time.monotonic() - self.began, "process": process, **found})


def train(trouble: Trouble, run: Path, seed: int) -> int:
    """All phases of a run; the iterations that it took."""
    workers = lh.EnvConfig(workers=2, max_restarts=10**6)
    config = lh.Config(
        "CartPole-v1", 10**9, seed, num_envs=4, device="cpu", backend="processes", env=workers, checkpoint_every=5120
    )
    for phase in PHASES:
        trouble.until = math.inf if phase == "other process" else time.monotonic() + PHASE
        if phase == "train":
            lh.train("CartPole-v1", config=config, run_dir=run)
        elif phase == "resume":
            lh.resume(run)
        else:
            process = start(1, "-m", "levelhead", "resume", run, log=run.with_suffix(".log"))
            trouble.other = process.pid
            time.sleep(PHASE)
            process.send_signal(signal.SIGINT)
            process.wait(60.0)
            trouble.other = None
            kill(process)
    taken = [line["iteration"] for line in lines(run)]
    assert taken == list(range(1, len(taken) + 1)), "iterations are missing, or there twice"
    return len(taken)


def slope(seconds: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over the second half, and its slope in an hour with half the width of its interval."""
    t, y = np.asarray(seconds) / 3600, np.asarray(values)
    late = t >= t[-1] / 2
    blocks = [(a.mean(), b.mean()) for a, b in zip(*(np.array_split(x[late], BLOCKS) for x in (t, y)), strict=True)]
    x, means = np.array(blocks).T
    x = x - x.mean()
    gradient = float(x @ means / (x @ x))
    rest = means - means.mean() - gradient * x
    return float(means.mean()), gradient, T_95 * float(np.sqrt(rest @ rest / (BLOCKS - 2) / (x @ x)))


def judge(own: list[dict[str, float]]) -> dict[str, dict[str, float | bool]]:
    judged = dict[str, dict[str, float | bool]]()
    for name in FIGURES:
        mean, gradient, width = slope([s["seconds"] for s in own], [s[name] for s in own])
        flat = abs(gradient) <= width or abs(gradient) + width <= 0.01 * mean
        judged[name] = {"mean": mean, "slope_per_hour": gradient, "interval": width, "flat": flat}
    return judged


def draw(samples: list[dict[str, float]], own: int) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), layout="constrained", sharex=True)
    for axis, name in zip(axes.flat, FIGURES, strict=True):
        for mine, color, label in ((True, "#0b3d91", "the process"), (False, "#c23b22", "processes of one phase")):
            chosen = [s for s in samples if (s["process"] == own) == mine]
            x, y = [s["seconds"] / 60 for s in chosen], [s[name] for s in chosen]
            axis.plot(x, y, "-" if mine else ".", ms=3, lw=1, color=color, label=label)
        axis.set_title(name.replace("_mb", ", MB").replace("_", " "), fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    for axis in axes[1]:
        axis.set_xlabel("minutes")
    axes[0, 0].legend(fontsize="small", loc="lower right")
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    warnings.simplefilter("ignore")  # of every worker that is lost
    signal.signal(signal.SIGINT, lambda *_: None)  # one that comes when nothing trains any more
    trouble, runs, iterations = Trouble(a.seed), 0, 0
    trouble.start()
    with tempfile.TemporaryDirectory() as directory:
        while time.monotonic() < trouble.began + 60 * a.minutes:
            runs += 1
            iterations += train(trouble, Path(directory) / str(runs), runs)
    trouble.done.set()
    trouble.join()
    own = [s for s in trouble.samples if s["process"] == os.getpid()]
    with SAMPLES.open("w") as file:
        writer = csv.DictWriter(file, list(own[0]))
        writer.writeheader()
        writer.writerows({name: round(x, 3) for name, x in s.items()} for s in trouble.samples)
    draw(trouble.samples, os.getpid())
    judged = judge(own)
    counts = {"runs": runs, "phases": runs * len(PHASES), "iterations": iterations, "workers_killed": trouble.killed}
    records.append("soak", {"minutes": round(own[-1]["seconds"] / 60, 1), **counts, "second_half": judged})
    print("\n| | mean of the second half | slope in an hour | flat |\n|---|---|---|---|")
    for name, r in judged.items():
        print(f"| {name} | {r['mean']:.1f} | {r['slope_per_hour']:+.2f} ± {r['interval']:.2f} | {r['flat']} |")
    print(f"\n{PLOT}")


if __name__ == "__main__":
    main()
