"""SIGTERM and SIGINT at random moments: is everything saved within half a minute, on every rank, and does it go on?

    python benchmarks/signals.py [--times 20] [--early 5] [--seed 1]

Runs without an end, of one process and of two ranks, get either signal up to two seconds after their first iteration,
and some of them earlier, while they start. What was learned must be in a checkpoint of the iteration that metrics.jsonl
ends with, and `resume` must take the one after it. Before there is anything to save it is enough that all end, and that
a run that had begun begins anew. Appends a line per signal to results/signals.jsonl.
"""

import argparse
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import records
from launch import Process, kill, last_step, lines, start

import levelhead as lh
from levelhead.cli import main as levelhead

WITHIN = 30.0
"""Seconds."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
OPTIONS = (
    *("train", "CartPole-v1", "--total-steps", 10**9, "--num-envs", 4, "--num-steps", 64, "--checkpoint-every", 6400),
    *("--device", "cpu", "--network.actor", 16, "--network.critic", 16),
)


def rank(directory: str, *arguments: str) -> None:
    """levelhead, whose exit status is left in a file, as torchrun tells nobody."""
    try:
        levelhead(arguments)
    except SystemExit as end:
        (Path(directory) / f"status-{time.monotonic_ns()}").write_text(str(end.code))
        raise


def begin(ranks: int, seed: int, run: Path) -> Process:
    """Starts a run, with a directory beside its own for the statuses of its ranks."""
    statuses = run.with_suffix(".statuses")
    statuses.mkdir()
    command = (__file__, "rank", statuses, *OPTIONS, "--run-dir", run, "--seed", seed)
    return start(ranks, *command, log=run.with_suffix(".log"))


def ready(process: Process, run: Path) -> None:
    """Waits for the first iteration."""
    while not lines(run):
        if process.poll() is not None:
            raise SystemExit(f"{run} ended by itself:\n{run.with_suffix('.log').read_text()[-3000:]}")
        time.sleep(0.02)


def once(ranks: int, number: signal.Signals, after: float, early: bool, seed: int, run: Path) -> dict[str, Any]:
    """One signal, `after` seconds after the first iteration, or, if it is to be early, after the start."""
    process = begin(ranks, seed, run)
    try:
        if not early:
            ready(process, run)
        time.sleep(after)
        trained = bool(lines(run))
        process.send_signal(number)
        sent = time.monotonic()
        status = process.wait(2 * WITHIN)
        seconds = time.monotonic() - sent
    finally:
        kill(process)
    saved, done = last_step(run), lines(run)
    statuses = sorted(path.read_text() for path in run.with_suffix(".statuses").iterdir())
    return {
        "ranks": ranks,
        "signal": number.name,
        "early": not trained,
        "after": round(after, 2),
        "seconds": round(seconds, 2),
        "status": status,
        "statuses_of_ranks": statuses,
        "saved": bool(done) and saved == done[-1]["step"],
        "goes_on": goes_on(run, len(done) if saved >= 0 else 0),
    }


def goes_on(run: Path, iterations: int) -> bool | None:
    """Whether `resume` takes the iteration after so many; None where nothing had begun."""
    if not (run / "config.json").exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it begins anew
        lh.resume(run, total_steps=max(last_step(run), 0) + 1)
    return [line["iteration"] for line in lines(run)] == list(range(1, iterations + 2))


def report(results: list[dict[str, Any]]) -> None:
    columns = ("processes", "signal", "when", "times", "saved", "seconds", "status", "of ranks", "went on", "not begun")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for r in results:
        groups[r["ranks"], r["signal"], "starting" if r["early"] else "training"].append(r)
    for key, rows in sorted(groups.items()):
        seconds = f"at most {max(r['seconds'] for r in rows):.1f}"
        statuses = [" or ".join(sorted({str(r[name]) for r in rows})) for name in ("status", "statuses_of_ranks")]
        saved, went, none = (
            sum(r[name] is x for r in rows) for name, x in (("saved", True), ("goes_on", True), ("goes_on", None))
        )
        print(f"| {' | '.join(map(str, (*key, len(rows), saved, seconds, *statuses, went, none)))} |")


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        rank(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="each signal is sent to a run that trains")
    parser.add_argument("--early", type=int, default=5, help="times more, to one that is only starting")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in a script's background ignores it
    rng, results = np.random.default_rng(a.seed), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as directory:
        for ranks in (1, 2):
            started, run = time.monotonic(), Path(directory) / f"{ranks}-0"
            process = begin(ranks, 0, run)
            ready(process, run)
            span = time.monotonic() - started
            kill(process)
            for number in SIGNALS:
                for i in range(a.times + a.early):
                    early = i >= a.times
                    after = float(rng.uniform(0, span if early else 2.0))
                    place = Path(directory) / f"{ranks}-{number.name}-{i}"
                    results.append(once(ranks, number, after, early, i + 1, place))
                    records.append("signals", {"draw": a.seed, **results[-1]})
    report(results)
    broken = [
        r
        for r in results
        if r["seconds"] > WITHIN
        or r["goes_on"] is False
        or (not r["early"] and not r["saved"])
        or (not r["early"] and r["statuses_of_ranks"] != ["130"] * r["ranks"])
    ]
    if broken:
        raise SystemExit(f"{len(broken)} went wrong: {broken}")


if __name__ == "__main__":
    main()
