"""Watches whether the critic goes to and fro instead of settling."""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

LOSS, STD, TARGET_STD = "train/value_loss", "value/std", "value/target_std"
SPAN = 1000
"""Environment steps that are taken together at least: the loss on fewer is noise from the episodes in them."""
WINDOW = 20
"""Spans that are looked at together."""
FACTOR = 1.5
"""By which a number must change from one span to the next, on average."""
REVERSALS = 0.6
"""Share of changes that must go against the one before. Of independent numbers two in three do."""
LARGE = 0.2
"""Share of the largest variance of the targets so far at which a loss counts: a critic that has all but learned its
targets may tremble, and so may one whose policy has brought them all to one value."""


class OscillationWatch:
    """Warns, once, where value loss or value scale goes up and down; docs/log.md has figures behind the constants."""

    def __init__(self) -> None:
        self._spans: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._open: list[Mapping[str, float]] = []
        self._steps = 0
        self._largest = 0.0
        self._told = False

    def __call__(self, metrics: Mapping[str, float], steps: int) -> str | None:
        """Takes the metrics of an iteration of so many steps; a warning, if there is reason for one by now."""
        if any(name not in metrics for name in (LOSS, STD, TARGET_STD)):
            return None
        self._open.append(metrics)
        self._steps += steps
        if self._steps < SPAN:
            return None
        count = len(self._open)
        self._spans.append({name: sum(m[name] for m in self._open) / count for name in (LOSS, STD, TARGET_STD)})
        self._open, self._steps = [], 0
        self._largest = max(self._largest, self._spans[-1][TARGET_STD])
        restless = [name for name, moves in ((LOSS, self._loss_oscillates()), (STD, self._oscillates(STD))) if moves]
        if self._told or not restless:
            return None
        self._told = True
        return (
            f"{' and '.join(restless)} went up and down by a factor of {FACTOR:g} or more {WINDOW} times over:"
            " a lower --optimizer.critic.learning-rate may settle the critic"
        )

    def _oscillates(self, name: str) -> bool:
        return oscillates([span[name] for span in self._spans])

    def _loss_oscillates(self) -> bool:
        """Of losses on the normalised axis, whose unit is the std."""
        if not self._oscillates(LOSS):
            return False
        return median(span[LOSS] * span[STD] ** 2 for span in self._spans) >= LARGE * self._largest**2


def oscillates(series: Sequence[float]) -> bool:
    """Whether `WINDOW` numbers, if there are as many, go up and down by `FACTOR` or more."""
    if len(series) < WINDOW or min(series) <= 0:
        return False
    logs = [math.log(x) for x in series]
    changes = [b - a for a, b in itertools.pairwise(logs)]
    reversals = sum(a * b < 0 for a, b in itertools.pairwise(changes)) / (len(changes) - 1)
    size = sum(map(abs, changes)) / len(changes)
    return reversals >= REVERSALS and size >= math.log(FACTOR)
