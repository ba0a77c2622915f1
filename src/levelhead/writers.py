"""Where metrics go: a file of JSON lines, TensorBoard, and the console."""

import json
import time
from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  # generated
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from levelhead.errors import CheckpointError
from levelhead.trainer import Iteration


class Writer(ABC):
    """Takes every iteration, as soon as it is done."""

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
        kept = metrics_until(path, iteration)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept))
        partial.replace(path)
        self._file = path.open("a")

    def write(self, iteration: Iteration) -> None:
        line = {"step": iteration.step, "iteration": iteration.iteration, **iteration.metrics}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def metrics_until(path: Path, iteration: int) -> list[str]:
    """The lines of `metrics.jsonl` up to an iteration; none where there is no file yet. A torn last line is dropped.

    Raises:
        CheckpointError: a complete line is damaged.
    """
    lines: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True) if path.exists() else (), start=1):
        if not line.endswith("\n"):
            break
        try:
            if json.loads(line)["iteration"] > iteration:
                break
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged in line {number}: {error!r}") from error
        lines.append(line)
    return lines


class TensorBoardWriter(Writer):
    """The same metrics for TensorBoard, over environment steps.

    Args:
        directory: of the event files.
        step: the last one that counts; what earlier files hold after it is hidden, as a resumed run writes it anew.
    """

    def __init__(self, directory: Path, step: int = 0) -> None:
        self._writer = EventFileWriter(str(directory), flush_secs=10)
        if step:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, iteration: Iteration) -> None:
        values = [Summary.Value(tag=name, simple_value=x) for name, x in iteration.metrics.items()]
        event = Event(wall_time=time.time(), step=iteration.step, summary=Summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        self._writer.close()


COLUMNS = (
    ("return", "rollout/ep_rew_mean", "{:.1f}"),
    ("length", "rollout/ep_len_mean", "{:.0f}"),
    ("kl", "train/approx_kl", "{:.4f}"),
    ("clipped", "train/clip_fraction", "{:.1%}"),
    ("entropy", "entropy/action", "{:.3f}"),
    ("value loss", "train/value_loss", "{:.3g}"),
    ("explained", "train/explained_variance", "{:.2f}"),
    ("value mean", "value/mean", "{:.4g}"),
    ("value std", "value/std", "{:.4g}"),
    ("eval", "eval/mean_return", "{:.1f}"),
)


class ConsoleWriter(Writer):
    """A live table with progress and time left on a terminal; elsewhere a plain line per tenth of the run.

    Args:
        total_steps: of the run.
        console: where to.
    """

    def __init__(self, total_steps: int, console: Console) -> None:
        self.total_steps = total_steps
        self.console = console
        self._started = time.perf_counter()
        self._first_step: int | None = None
        self._tenth = 0
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._shown: dict[str, str] = {}
        if self._live is not None:
            self._live.start()

    def write(self, iteration: Iteration) -> None:
        if self._first_step is None:
            self._first_step = iteration.step
        for name, metric, form in COLUMNS:
            if metric in iteration.metrics:
                self._shown[name] = form.format(iteration.metrics[metric])
        tenth = iteration.step * 10 // self.total_steps
        if self._live is not None:
            self._live.update(self._table(iteration))
        elif tenth > self._tenth:
            self._tenth = tenth
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
