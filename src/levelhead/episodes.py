"""Episodes that have ended, and what is said of the latest."""

from collections import deque
from collections.abc import Iterable, Sequence
from math import fsum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WINDOW = 100
"""Statistics are means over this many latest episodes of a task, as in Stable-Baselines3."""


class Episode(NamedTuple):
    """One that has ended."""

    step: int
    """Of the rollout, in which it did."""
    task: int
    reward: float
    """The sum of its rewards, in the environment's units."""
    length: int


class Episodes:
    """Follows the episodes of N environments from rollout to rollout, and keeps statistics of the latest that ended.

    Args:
        num_envs: N.
        tasks: names of those that are played; empty where there is one alone.
    """

    def __init__(self, num_envs: int, tasks: Sequence[str] = ()) -> None:
        self.tasks = tasks
        self.returns = [deque[float](maxlen=WINDOW) for _ in range(max(len(tasks), 1))]
        self.lengths = [deque[int](maxlen=WINDOW) for _ in range(max(len(tasks), 1))]
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)

    def begin(self) -> None:
        """New ones begin everywhere."""
        self._return[:] = 0.0
        self._length[:] = 0

    def under_way(self) -> dict[str, Tensor]:
        """Return and length so far, `[N]`; whoever writes to them changes them here."""
        return {"return": torch.from_numpy(self._return), "length": torch.from_numpy(self._length)}

    def follow(self, reward: Tensor, valid: Tensor, ended: Tensor, task: Tensor | None) -> list[Episode]:
        """Takes a rollout; those that ended in it, in order.

        Args:
            reward, valid, ended: `[T, N]`; what is not valid counts for nothing.
            task: `[T, N]` int64; None where there is one alone.
        """
        rewards, counts, ends = (x.cpu().numpy() for x in (reward, valid, ended))
        rewards = np.where(counts, rewards.astype(np.float64), 0.0)
        tasks = np.zeros(ends.shape, dtype=np.int64) if task is None else task.cpu().numpy()
        since, found = 0, list[Episode]()
        for t in sorted({*np.flatnonzero(ends.any(1)).tolist(), len(ends) - 1}):
            self._return += rewards[since : t + 1].sum(0)
            self._length += counts[since : t + 1].sum(0)
            since = t + 1
            for i in np.flatnonzero(ends[t] & counts[t]):  # one that is lost is none that has ended
                found.append(Episode(t, int(tasks[t, i]), float(self._return[i]), int(self._length[i])))
            self._return[ends[t]] = 0.0
            self._length[ends[t]] = 0
        return found

    def record(self, episodes: Iterable[Episode]) -> None:
        """Takes episodes into the statistics; not done where their rollout turns out to be broken."""
        for _, task, reward, length in episodes:
            self.returns[task].append(reward)
            self.lengths[task].append(length)

    def metrics(self) -> dict[str, float]:
        """Means over the latest episodes: per task, and over tasks; none before one has ended."""
        metrics: dict[str, float] = {}
        for name, windows in (("rollout/ep_rew_mean", self.returns), ("rollout/ep_len_mean", self.lengths)):
            means = {k: fsum(window) / len(window) for k, window in enumerate(windows) if window}
            if means:
                metrics[name] = fsum(means.values()) / len(means)
            if self.tasks:
                metrics |= {f"{name}/{self.tasks[k]}": mean for k, mean in means.items()}
        return metrics

    def state_dict(self) -> dict[str, object]:
        return {"returns": [list(x) for x in self.returns], "lengths": [list(x) for x in self.lengths]}

    def load_state_dict(self, state: dict[str, list[list[float]]]) -> None:
        """Goes on from there, whatever was before."""
        for returns, lengths, r, n in zip(self.returns, self.lengths, state["returns"], state["lengths"], strict=True):
            returns.clear()
            returns.extend(r)
            lengths.clear()
            lengths.extend(int(x) for x in n)
