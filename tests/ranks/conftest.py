"""Starts processes as torchrun does."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")


def _start(ranks, *command, restarts=0, **options):
    launcher = (*TORCHRUN, f"--nproc-per-node={ranks}", f"--max-restarts={restarts}")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        [*launcher, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def _children(process):
    with suppress(FileNotFoundError):
        return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


@pytest.fixture
def start():
    """A process that runs a command on so many ranks; ended with the test."""
    started = []

    def begin(ranks, *command, **options):
        started.append(_start(ranks, *command, **options))
        return started[-1]

    yield begin
    for process in started:
        # torchrun gives every rank a session of its own.
        for number in (*_children(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def together(start):
    """Runs a command on so many ranks to its end: its status, and what it said."""

    def run(ranks, *command, timeout=100, **options):
        process = start(ranks, *command, **options)
        said, _ = process.communicate(timeout=timeout)
        return process.returncode, said

    return run
