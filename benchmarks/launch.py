"""Starts levelhead as a person does, alone or under torchrun, and reads what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from levelhead import checkpoint

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")

Process = subprocess.Popen[bytes]


def start(ranks: int, *command: object, log: Path) -> Process:
    """`python COMMAND` in this directory, or the same on so many ranks; what it says is appended to the log."""
    launcher = [*TORCHRUN, f"--nproc-per-node={ranks}"] if ranks > 1 else []
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, *map(str, command)],
            cwd=HERE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def children(process: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def kill(process: Process) -> None:
    """Kills a process and its children at one stroke, and waits for it."""
    process.send_signal(signal.SIGSTOP)  # it starts no more of them now
    for number in (*children(process.pid), process.pid):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def lines(run: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, but for the clock's; a torn last one is left out."""
    path = run / "metrics.jsonl"
    whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"] if path.exists() else []
    return [{name: x for name, x in json.loads(line).items() if not name.startswith("time/")} for line in whole]


def last(run: Path) -> dict[str, str]:
    """SHA-256 of the files of the last checkpoint; empty where there is none."""
    saved = checkpoint.checkpoints(run)
    return json.loads((saved[-1] / checkpoint.MANIFEST).read_text())["sha256"] if saved else {}


def last_step(run: Path) -> int:
    """Of the last checkpoint; -1 where there is none."""
    saved = checkpoint.checkpoints(run)
    return int(saved[-1].name.removeprefix("step-")) if saved else -1
