"""Watches whether the critic goes to and fro instead of settling."""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence

WATCHED = ("train/value_loss", "value/std")
WINDOW = 20
"""Iterations that are looked at together."""
FACTOR = 2.0
"""By which a number must change from one iteration to the next, on average."""
REVERSALS = 0.6
"""Share of changes that must go against the one before. Of independent numbers two in three do."""
UNEXPLAINED = 0.1
"""Share of the targets' variance that the critic must miss on average: one that has all but learned its targets is
free to tremble."""


class OscillationWatch:
    """Warns, once, where value loss or value scale oscillates by more than a factor."""

    def __init__(self) -> None:
        self._series = {name: deque[float](maxlen=WINDOW) for name in (*WATCHED, "train/explained_variance")}
        self._told = False

    def __call__(self, metrics: Mapping[str, float]) -> str | None:
        """Takes the metrics of an iteration; a warning, if there is reason for one by now."""
        for name, series in self._series.items():
            if name in metrics:
                series.append(metrics[name])
        explained = self._series["train/explained_variance"]
        missed = 1 - sum(explained) / max(len(explained), 1)
        restless = [name for name in WATCHED if oscillates(self._series[name])]
        if self._told or not restless or missed < UNEXPLAINED:
            return None
        self._told = True
        return (
            f"{' and '.join(restless)} went up and down by a factor of {FACTOR:g} or more for {WINDOW} iterations:"
            " a lower --optimizer.critic.learning-rate may settle the critic"
        )


def oscillates(series: Sequence[float]) -> bool:
    """Whether the last `WINDOW` numbers, if there are as many, go up and down by `FACTOR` or more."""
    if len(series) < WINDOW or min(series) <= 0:
        return False
    logs = [math.log(x) for x in series]
    changes = [b - a for a, b in itertools.pairwise(logs)]
    reversals = sum(a * b < 0 for a, b in itertools.pairwise(changes)) / (len(changes) - 1)
    size = sum(map(abs, changes)) / len(changes)
    return reversals >= REVERSALS and size >= math.log(FACTOR)
