"""How many CPU threads a run has."""

import math
import os
from collections.abc import Callable
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Control groups' limit of a container: microseconds of processor time, or "max", and the period that they are for."""


def processors() -> int:
    """How many this process may use: where `torchrun` has started several on this machine, its share of them."""
    together = min(len(os.sched_getaffinity(0)), _quota())
    return max(1, int(together / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _quota() -> float:
    try:
        time, period = QUOTA.read_text().split()
        return math.inf if time == "max" else int(time) / int(period)
    except (OSError, ValueError):
        return math.inf


def wanted(asked: int | None, *, native: bool) -> int:
    """How many a run is to have, where `asked` leaves that open: native code has use for two, of which one does all the
    work where the other finds no processor; a second one of torch's makes small networks slower."""
    if asked is not None:
        return asked
    return 2 if native else 1


class Threads:
    """A number of threads: the one that was asked for, or the fastest, found by an iteration with each power of two.

    There are never more of them than processors.

    Args:
        asked: for how many; 0 to find out.
        use: takes a number of threads into use.
    """

    def __init__(self, asked: int, use: Callable[[int], None]) -> None:
        self._use = use
        self._speeds: dict[int, float] = {}
        # The first iteration tells nothing: it is the one that makes room and loads code.
        self._tried = [] if asked else [1, *(2**k for k in range(processors().bit_length()))]
        self.count = min(asked, processors()) if asked else self._tried[0]
        use(self.count)

    def note(self, speed: float) -> str | None:
        """Goes on to the next number while there is one to try.

        Args:
            speed: steps per second of the iteration that is over.

        Returns:
            What was found, for people to read, when it is.
        """
        if not self._tried:
            return None
        self._speeds[self._tried.pop(0)] = speed
        self.count = self._tried[0] if self._tried else max(self._speeds, key=self._speeds.__getitem__)
        self._use(self.count)
        if self._tried:
            return None
        return f"threads: {self.count} (" + ", ".join(f"{n}: {s:,.0f} steps/s" for n, s in self._speeds.items()) + ")"
