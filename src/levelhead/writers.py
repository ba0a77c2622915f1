"""Where metrics go: a file of JSON lines, TensorBoard, and the console."""

import json
import math
import os
import platform
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import google_crc32c
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  # generated

from levelhead.errors import CheckpointError
from levelhead.files import LIMIT, Appended, open_regular, parse, replace, storing
from levelhead.trainer import Iteration


class Writer(ABC):
    """Takes every iteration, as soon as it is done.

    Raises:
        StorageError: (in a file's methods) it cannot be written; what it held before is whole.
    """

    @abstractmethod
    def write(self, iteration: Iteration) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class JsonlWriter(Writer):
    """One JSON object per iteration, flushed at once.

    Args:
        path: appended to; lines after `iteration` (and a torn last line) are dropped first, as a resumed run writes
            them anew.
        iteration: the last one that counts.
    """

    def __init__(self, path: Path, iteration: int = 0) -> None:
        replace(path, metrics_until(path, iteration))
        self._file = Appended(path)

    def write(self, iteration: Iteration) -> None:
        line = {"step": iteration.step, "iteration": iteration.iteration, **iteration.metrics}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def metrics_until(path: Path, iteration: float = math.inf) -> Iterator[bytes]:
    """The lines of `metrics.jsonl` up to an iteration, or all; none where there is no file yet, and no torn last line.

    Raises:
        CheckpointError: (while iterating) the file cannot be read, or a complete line is damaged.
    """
    if not path.exists():
        return
    try:
        with open_regular(path) as file:
            for number in count(1):
                line = file.readline(LIMIT)
                if len(line) < LIMIT and not line.endswith(b"\n"):
                    return
                try:
                    if parse(line)["iteration"] > iteration:
                        return
                except (KeyError, TypeError, ValueError) as error:
                    raise CheckpointError(f"{path} is damaged in line {number}: {error!r}") from error
                yield line
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


class TensorBoardWriter(Writer):
    """The same metrics for TensorBoard, over environment steps.

    Args:
        directory: of the event files.
        step: the last one that counts; what earlier files hold after it is hidden, as a resumed run writes it anew.
    """

    def __init__(self, directory: Path, step: int = 0) -> None:
        with storing(directory):
            directory.mkdir(exist_ok=True)
        # As TensorBoard's own writer names it, whose thread would keep errors to itself; more precisely, as it sorts.
        name = f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}"
        self._file = Appended(directory / name)
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, iteration: Iteration) -> None:
        values = [Summary.Value(tag=name, simple_value=x) for name, x in iteration.metrics.items()]
        self._write(step=iteration.step, summary=Summary(value=values))

    def _write(self, **entry: object) -> None:
        self._file.write(_record(Event(wall_time=time.time(), **entry).SerializeToString()))

    def close(self) -> None:
        self._file.close()


def _record(data: bytes) -> bytes:
    """A record of a TFRecord file: its length and itself, each with a checksum.

    TensorBoard's own writer reckons these in Python, which would take a hundredth of the time of a small iteration.
    """
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, turned and shifted as the format has it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


COLUMNS = (
    ("return", ("rollout/ep_rew_mean",), "{:.1f}"),
    ("length", ("rollout/ep_len_mean",), "{:.0f}"),
    ("kl", ("train/kl", "train/approx_kl"), "{:.4f}"),
    ("clipped", ("train/clip_fraction",), "{:.1%}"),
    ("entropy", ("entropy/action",), "{:.3f}"),
    ("value loss", ("train/value_loss",), "{:.3g}"),
    ("explained", ("train/explained_variance",), "{:.2f}"),
    ("value mean", ("value/mean",), "{:.4g}"),
    ("value std", ("value/std",), "{:.4g}"),
    ("eval", ("eval/mean_return",), "{:.1f}"),
)
"""Names, the metrics of which the first one that there is is shown, and how."""


class ConsoleWriter(Writer):
    """A live table with progress and time left on a terminal; elsewhere a plain line per tenth of the run, or minute.

    Args:
        total_steps: of the run.
        console: where to.
    """

    SILENCE = 60.0
    """Seconds without a line, at most, but for the iteration under way."""

    def __init__(self, total_steps: int, console: Console) -> None:
        self.total_steps = total_steps
        self.console = console
        self._started = time.perf_counter()
        self._first_step: int | None = None
        self._tenth, self._told = 0, self._started
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._shown: dict[str, str] = {}
        if self._live is not None:
            self._live.start()

    def write(self, iteration: Iteration) -> None:
        if self._first_step is None:
            self._first_step = iteration.step
        for name, metrics, form in COLUMNS:
            found = [iteration.metrics[metric] for metric in metrics if metric in iteration.metrics]
            if found:
                self._shown[name] = form.format(found[0])
        tenth = iteration.step * 10 // self.total_steps
        if self._live is not None:
            self._live.update(self._table(iteration))
        elif tenth > self._tenth or time.perf_counter() - self._told > self.SILENCE:
            self._tenth, self._told = tenth, time.perf_counter()
            self.console.print(self._line(iteration), soft_wrap=True, highlight=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _left(self, iteration: Iteration) -> str:
        assert self._first_step is not None
        elapsed = time.perf_counter() - self._started
        rate = (iteration.step - self._first_step) / elapsed or iteration.metrics["time/fps"]
        seconds = max(self.total_steps - iteration.step, 0) / rate
        return str(timedelta(seconds=round(seconds)))

    def _line(self, iteration: Iteration) -> str:
        shown = "  ".join(f"{name} {self._shown[name]}" for name, _, _ in COLUMNS if name in self._shown)
        fps = iteration.metrics["time/fps"]
        return f"step {iteration.step}/{self.total_steps}  {shown}  {fps:.0f} steps/s  left {self._left(iteration)}"

    def _table(self, iteration: Iteration) -> Table:
        table = Table.grid(padding=(0, 2))
        bar = Progress(TextColumn("{task.fields[steps]}"), BarColumn(40), TextColumn("{task.fields[left]}"))
        bar.add_task(
            "",
            total=self.total_steps,
            completed=iteration.step,
            steps=f"{iteration.step:,} of {self.total_steps:,} steps",
            left=f"{iteration.metrics['time/fps']:,.0f} steps/s, {self._left(iteration)} left",
        )
        table.add_row(bar)
        names = [name for name, _, _ in COLUMNS if name in self._shown]
        for part in (names[:5], names[5:]):  # two rows, so that it fits 80 columns
            inner = Table(box=None, header_style="dim", padding=(0, 1))
            for name in part:
                inner.add_column(name, justify="right", min_width=11)
            inner.add_row(*(self._shown[name] for name in part))
            table.add_row(inner)
        return table
