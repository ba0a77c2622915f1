"""Every collective of a training on several processes; without a process group each of them answers for one alone.

All ranks must come to the same functions in the same order. What one of them decides on must therefore be the same
everywhere: what these functions answer is, to the bit.
"""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented there

from levelhead.errors import ConfigError, LevelheadError, RankError
from levelhead.store import Words, answered, open_store

T = TypeVar("T")

JOINING = 600.0
"""Seconds that processes wait for each other at first."""
ANSWERING = 30.0
"""Seconds that the store has for an answer, or fewer where ranks have fewer for each other."""


@dataclass(frozen=True)
class Shards:
    """The parts that the environments of a run come in, and those of them that this process steps.

    What is random is drawn for each part by itself, so that it doesn't matter which process steps it.
    """

    count: int = 1
    """Of the run."""
    first: int = 0
    """Of this process."""
    here: int = 1
    """So many from the first on."""

    @property
    def mine(self) -> range:
        """Those of this process."""
        return range(self.first, self.first + self.here)


WHOLE = Shards()
"""One part, all of it here."""


@dataclass
class _Ours:
    """What collectives go through, beside torch's own group, which is global too."""

    trainings: int = 0
    """So many this process has begun: a script may call for several, one after another."""
    root: TCPStore | None = None
    """What all of them find each other by, once there is one."""
    attempt: int = 1
    """Of `torchrun` to get to the end."""
    group: Any = None
    """The group with a run's time-out; None for torch's."""
    store: PrefixStore | None = None
    """Of this training."""
    words: Words | None = None
    answering: float = ANSWERING


_ours = _Ours()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group() -> Generator[None]:
    """Around a training: joins the other processes that `torchrun` has started, and leaves them at the end.

    Where there are none, or a group exists already, nothing happens, but that it is counted.
    """
    _ours.trainings += 1
    if _grouped() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if _ours.root is None:
            _ours.root, _ours.attempt = open_store(number, count, JOINING)
        _ours.store = PrefixStore(f"levelhead/{_ours.attempt}/{_ours.trainings}", _ours.root)
        backend, patience = "cpu:gloo,cuda:nccl" if gpus else "gloo", timedelta(seconds=JOINING)
        dist.init_process_group(backend, store=_ours.store, rank=number, world_size=count, timeout=patience)
    except (KeyError, ValueError, RuntimeError) as error:
        raise RankError(f"the other ranks cannot be reached: {error!r}") from error
    try:
        yield
    finally:
        if _ours.words is not None:
            _ours.words.close()
        _ours.group = _ours.store = _ours.words = None
        dist.destroy_process_group()


def be_patient(timeout: float) -> None:
    """From now on, a rank that others have waited for so many seconds counts as lost."""
    if ranks() == 1:
        return
    with _together():
        _ours.group = dist.new_group(timeout=timedelta(seconds=timeout))
    _ours.answering = min(timeout, ANSWERING)
    if _ours.store is not None and _ours.words is None:
        _ours.words = Words(_ours.store, rank(), ranks())


def leave_word(place: str) -> None:
    """Says where this rank is, for the others to read should it stay away: "collecting iteration 3"."""
    if _ours.words is not None:
        _ours.words.leave(place)


@contextmanager
def _together() -> Generator[None]:
    """Around a collective: names the rank that it failed for."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"rank {rank()} has lost others{_suspects()} ({error})") from error


def _suspects() -> str:
    words = _ours.words
    if words is None:
        return ""
    try:
        missing = answered(words.missing, _ours.answering + words.PATIENCE)
    except RuntimeError:
        return f"; {_nobody_home()}"
    words.leave("giving up, as others were lost")
    return f"; {missing}" if missing else ""


def _nobody_home() -> str:
    return f"the host of rank 0, {os.environ['MASTER_ADDR']}, doesn't answer"


def _asked(ask: Callable[[], T]) -> T:
    """What the store says to `ask`."""
    try:
        return answered(ask, _ours.answering)
    except RuntimeError as error:
        raise RankError(f"rank {rank()} has lost others; {_nobody_home()} ({error})") from error


class Cutoff:
    """Ends the rollouts of slow ranks once enough others are done with theirs.

    Args:
        share: of the ranks that must have finished.

    Source: Wijmans et al. 2020, "DD-PPO: learning near-perfect PointGoal navigators from 2.5 billion frames",
    section 3, where the share is 0.6.
    """

    POLL = 0.01
    """Seconds between two questions."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._key = ""
        self._polled = 0.0

    def begin(self, iteration: int) -> None:
        """Starts a rollout."""
        if (store := _ours.store) is not None and is_first():
            _asked(lambda: store.delete_key(self._key))
        self._key = f"done/{_ours.trainings}/{iteration}"
        self._polled = time.monotonic()

    def finish(self) -> None:
        """Says that this rank has seen its rollout to the end."""
        if (store := _ours.store) is not None:
            _asked(lambda: store.add(self._key, 1))

    def reached(self) -> bool:
        """Whether enough ranks have."""
        store = _ours.store
        if store is None or time.monotonic() - self._polled < self.POLL:
            return False
        self._polled = time.monotonic()
        return _asked(lambda: store.add(self._key, 0)) >= self.share * ranks()


def launch() -> str | None:
    """Which training of which `torchrun` call this is, the same when it starts the processes again after one was lost;
    None without `torchrun`."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    if name == "none":
        name = f"{platform.node()} {os.getppid()} {_started(os.getppid())}"
    return f"{name} #{_ours.trainings}"


def _started(process: int) -> str:
    """When a process was started, in clock ticks since the machine was; empty where that isn't known."""
    try:
        # What follows the command's name, which may hold anything, in parentheses.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def restarted() -> bool:
    """Whether `torchrun` has started the processes anew after one was lost."""
    # The second is for those without a store: one process, or a group that was there before.
    return _ours.attempt > 1 or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Which of them this is, counted from 0; the first one writes and evaluates."""
    return dist.get_rank() if _grouped() else 0


def is_first() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


# -- tensors -----------------------------------------------------------------------------------------------------


def total(x: Tensor) -> Tensor:
    """The sum over ranks, in `x`'s dtype, which is not bool."""
    if ranks() == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    with _together():
        dist.all_reduce(x, group=_ours.group)
    return x


def total_(tensors: Sequence[Tensor]) -> None:
    """Sums of several tensors of one dtype over ranks, in place and in one collective."""
    if ranks() == 1:
        return
    together = torch.cat([x.reshape(-1) for x in tensors])
    with _together():
        dist.all_reduce(together, group=_ours.group)
    for x, part in zip(tensors, together.split([x.numel() for x in tensors]), strict=True):
        x.copy_(part.view_as(x))


def largest(x: Tensor) -> Tensor:
    """The largest over ranks, element by element; of bools, whether any is True."""
    if ranks() == 1:
        return x
    y = x.detach().to(torch.uint8 if x.dtype == torch.bool else x.dtype, copy=True)
    with _together():
        dist.all_reduce(y, dist.ReduceOp.MAX, group=_ours.group)
    return y.to(x.dtype)


def gathered(x: Tensor) -> Tensor:
    """The tensors of all ranks, of one shape, along a new first axis."""
    if ranks() == 1:
        return x.unsqueeze(0)
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks())]
    with _together():
        dist.all_gather(parts, x.contiguous(), group=_ours.group)
    return torch.stack(parts)


def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Gives all ranks what the tensors hold on rank 0, in place."""
    if ranks() == 1:
        return
    for x in tensors:
        data = x.detach().contiguous()
        with _together():
            dist.broadcast(data, 0, group=_ours.group)
        x.data.copy_(data)


def digest(tensors: Sequence[Tensor]) -> str:
    """SHA-256 of what the tensors hold; waits for the device."""
    sha = hashlib.sha256()
    for x in tensors:
        sha.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


# -- other values ------------------------------------------------------------------------------------------------


def gathered_values(value: T) -> list[T]:
    """What every rank has to say, by rank."""
    if ranks() == 1:
        return [value]
    values: list[Any] = [None] * ranks()
    with _together():
        dist.all_gather_object(values, value, group=_ours.group)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What `make` answers on rank 0, where alone it is called. If it raises an error of levelhead's, all ranks do."""
    if ranks() == 1:
        return make()
    outcome: list[Any] = [None]
    if is_first():
        try:
            outcome = [make()]
        except LevelheadError as error:
            outcome = [error]
    with _together():
        dist.broadcast_object_list(outcome, 0, group=_ours.group)
    if isinstance(outcome[0], LevelheadError):
        raise outcome[0]
    return outcome[0]


def require_same(what: Mapping[str, str]) -> None:
    """Refuses ranks that differ in something that they must have in common.

    Args:
        what: by name, what this rank has.

    Raises:
        ConfigError: it names the ranks and what they differ in, on all of them.
    """
    every = gathered_values(dict(what))
    for name in what:
        others = [i for i, theirs in enumerate(every) if theirs.get(name) != every[0][name]]
        if others:
            listed = ", ".join(f"{every[i].get(name)} on rank {i}" for i in others)
            raise ConfigError(f"{name} is {every[0][name]} on rank 0, and {listed}: all ranks must have the same")
