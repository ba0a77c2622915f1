"""Checkpoints that were damaged, and saving that was killed: is what is left refused by name, or whole?

    python benchmarks/damage.py [--flips 500] [--truncations 50] [--kills 200]

Bits are flipped, and ends cut off, in every file of a run's second checkpoint, one at a time. Each must be refused by
an error that names the file and offers the first checkpoint. Then a process saves checkpoints in a loop, of which the
last three and the best are kept, and is killed at random moments. All that are there afterwards must load as they were
saved, the last three and the best of all among them, and the next save must leave nothing of what was begun; whatever
doesn't is counted as broken. Appends to results/damage.jsonl.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path

import records
import torch
from torch import Tensor

import levelhead as lh
from levelhead import checkpoint

KEPT = 3
LONGEST = 0.2
"""Seconds until a saving process is killed, at most."""


def judged(path: Path, name: str) -> str:
    """How a damaged checkpoint is taken."""
    try:
        checkpoint.load(path)
    except lh.CheckpointError as error:
        first = checkpoint.checkpoints(path.parents[1])[0]
        named, offered = name in str(error), str(error).endswith(f"The one before it: {first}")
        return "refused" if named and offered else f"refused without {'an offer' if named else 'its name'}"
    except BaseException as error:
        return type(error).__name__
    return "taken"


def damage(flips: int, truncations: int, directory: Path) -> None:
    config = lh.Config("CartPole-v1", total_steps=2048, checkpoint_every=1024, device="cpu", run_dir=directory)
    path = checkpoint.checkpoints(lh.train("CartPole-v1", config=config).directory)[-1]
    for file in sorted(path.iterdir()):
        data, draw = file.read_bytes(), random.Random(0)
        outcomes = {"flips": Counter[str](), "truncations": Counter[str]()}
        for _ in range(flips):
            bit, damaged = draw.randrange(8 * len(data)), bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            outcomes["flips"][judged(path, file.name)] += 1
        for _ in range(truncations):
            file.write_bytes(data[: draw.randrange(len(data))])
            outcomes["truncations"][judged(path, file.name)] += 1
        file.write_bytes(data)
        checkpoint.load(path)
        for kind, found in outcomes.items():
            records.append("damage", {"file": file.name, "bytes": len(data), "damage": kind, **found})


def content(step: int) -> dict[str, dict[str, Tensor]]:
    """Four megabytes that tell the step."""
    return {name: {"x": torch.full((500_000,), float(step))} for name in ("policy", "optimizer")}


def score(step: int) -> float:
    return random.Random(step).random()


def save_for_ever(run: Path, step: int) -> None:
    for now in count(step):
        checkpoint.save(run, now, content(now), {"score": score(now)})
        checkpoint.prune(run, KEPT)


def whole(path: Path) -> bool:
    """Whether a checkpoint loads as it was saved."""
    try:
        tensors, state = checkpoint.load(path)
    except lh.CheckpointError:
        return False
    return state["step"] == number(path) and all((x["x"] == number(path)).all() for x in tensors.values())


def number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def complete(run: Path) -> bool:
    """Whether all that should be kept is there: the last ones, and the best of all so far."""
    there = checkpoint.checkpoints(run)
    if not there:
        return True
    steps = range(1, number(there[-1]) + 1)
    best = max(steps, key=score)
    return number(checkpoint.best(run)) == best and {*map(number, there)} >= {best, *steps[-KEPT:]}


def kill(kills: int, run: Path) -> None:
    draw, found, last = random.Random(0), Counter[str](saved=0, begun=0, loaded=0, broken=0), 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            save_for_ever(run, last + 1)
        time.sleep(draw.uniform(0.0, LONGEST))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = checkpoint.checkpoints(run)
        last = max(map(number, there), default=0)
        found["begun"] += len(list((run / "checkpoints").glob(".*")))
        found["loaded"] += sum(map(whole, there))
        found["broken"] += sum(not whole(path) for path in there) + (not complete(run))
    found["saved"] = last
    checkpoint.save(run, last + 1, content(last + 1), {})
    found["broken"] += len(list((run / "checkpoints").glob(".*")))
    records.append("damage", {"kills": kills, **found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--truncations", type=int, default=50)
    parser.add_argument("--kills", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process that forks should have no others
    with tempfile.TemporaryDirectory() as name:
        kill(options.kills, Path(name))
        damage(options.flips, options.truncations, Path(name) / "run")
