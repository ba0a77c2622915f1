"""Numbers gathered on the device and read by the host once per iteration."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RunningMean:
    """The mean of vectors added one by one, under fixed names; nothing is read until the end."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self._total = torch.zeros(len(self.names), device=device)
        self._count = torch.zeros((), device=device)

    def add(self, values: Tensor, weight: Tensor | float = 1.0) -> None:
        """Adds one `[len(names)]` vector, weighted by `weight`."""
        self._total += values * weight
        self._count += weight

    def take(self) -> dict[str, Tensor]:
        """The means so far, each 0-d, NaN where nothing counted; and a fresh start."""
        means = self._total / self._count
        self._total.zero_()
        self._count.zero_()
        return dict(zip(self.names, means.unbind(), strict=True))


def to_host(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """All 0-d tensors in one transfer: the host's only wait for the device."""
    vector = torch.stack(tuple(metrics.values()))  # of different kinds: in the widest of them
    return dict(zip(metrics, vector.double().tolist(), strict=True))
