"""What processes of one training leave for each other to read, beside what they compute together.

torch's store would wait for a host that is gone as long as TCP does, a quarter of an hour. So whatever waits for an
answer is asked by `answered`.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import TypeVar

from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented there

T = TypeVar("T")


def open_store(number: int, count: int, patience: float) -> tuple[TCPStore, int]:
    """Where ranks find each other, and leave word; and which attempt of `torchrun` this is, counted from 1. A process
    asks once.

    `torchrun`'s own store lives on from one attempt to the next, with addresses of processes that are no more: each
    attempt needs names of its own there.

    Args:
        number: of this rank.
        count: of ranks.
        patience: seconds to wait for the others.

    Raises:
        KeyError, ValueError, RuntimeError: it cannot be opened, or others don't come.
    """
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port, wait = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=patience)
    store = TCPStore(host, port, count, not agents and number == 0, wait, multi_tenant=True)
    return store, _agree(store, number, count, patience) if agents else 1


def _agree(store: TCPStore, number: int, count: int, patience: float) -> int:
    """The attempt that all ranks are in: how often rank 0 was started. The restarts that `torchrun` tells a process of
    are those that its own host has called for, so that hosts may have other numbers."""
    start = store.add(f"levelhead/starts/{number}", 1)
    if number > 0:
        attempt = int(store.get(f"levelhead/attempt/{number}/{start}"))
        store.set(f"levelhead/known/{attempt}/{number}", "")
        return attempt
    deadline = time.monotonic() + patience
    for other in range(1, count):
        # What is there may be a start of an earlier attempt, to whose process the answer is of no use.
        while not store.check([f"levelhead/known/{start}/{other}"]):
            latest = store.add(f"levelhead/starts/{other}", 0)
            store.set(f"levelhead/attempt/{other}/{latest}", str(start))
            if time.monotonic() > deadline:
                raise RuntimeError(f"rank {other} was not there after {patience:g} seconds")
            time.sleep(0.01)
    return start


def answered(ask: Callable[[], T], patience: float) -> T:
    """What `ask` answers.

    Raises:
        RuntimeError: nothing, in so many seconds.
    """
    found: SimpleQueue[tuple[T] | RuntimeError] = SimpleQueue()

    def run() -> None:
        try:
            found.put((ask(),))
        except RuntimeError as error:
            found.put(error)

    # A thread that waits for ever must not keep the process from ending.
    threading.Thread(target=run, daemon=True).start()
    try:
        answer = found.get(timeout=patience)
    except Empty as error:
        raise RuntimeError(f"no answer in {patience:g} seconds") from error
    if isinstance(answer, RuntimeError):
        raise answer
    return answer[0]


class Words:
    """What ranks leave for each other to read, should one of them stay away.

    Args:
        store: reaches all of them.
        number: of this rank.
        count: of ranks.
    """

    BEAT = 1.0
    """Seconds between two signs of life."""
    PATIENCE = 2.5 * BEAT
    """Seconds that show whether there is one."""

    def __init__(self, store: PrefixStore, number: int, count: int) -> None:
        self.store, self.number, self.count = store, number, count
        self.places = 0
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(self.BEAT):
            beats += 1
            with suppress(RuntimeError):
                self.store.set(f"beat/{self.number}", str(beats))

    def close(self) -> None:
        """Ends the signs of life."""
        self._ended.set()
        self._heart.join(self.BEAT)

    def leave(self, place: str) -> None:
        """Says where this rank has come to."""
        self.places += 1
        with suppress(RuntimeError):  # whoever needs the store will say so
            self.store.set(f"word/{self.number}", f"{self.places} {place}")

    def missing(self) -> str:
        """Which ranks show no sign of life or, where all do, have not come as far as this one, and where they were seen
        last; takes `PATIENCE`."""
        others = [other for other in range(self.count) if other != self.number]
        before = [self._read(f"beat/{other}", "") for other in others]
        time.sleep(self.PATIENCE)
        silent: list[str] = []
        behind: list[str] = []
        for other, beat in zip(others, before, strict=True):
            places, place = self._read(f"word/{other}", "0 starting").split(" ", 1)
            seen = f"rank {other} was last seen {place}"
            if self._read(f"beat/{other}", "") == beat:
                silent.append(seen)
            elif int(places) < self.places:
                behind.append(seen)
        return "; ".join(silent or behind)  # those behind may themselves be waiting for those that are silent

    def _read(self, key: str, otherwise: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else otherwise
