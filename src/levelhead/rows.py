"""What a stepping loop writes, row by row."""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from levelhead.errors import ConfigError


class Rows:
    """A tensor `[T, N, ...]` that is written row by row, from tensors or arrays.

    Args:
        tensor: is written to.
        name: of what it holds, for errors.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self.tensor = tensor
        self.name = name
        self._tensors = tensor.unbind()
        self._shape = tuple(tensor.shape[1:])  # quicker to compare with than torch's
        # From pinned memory a GPU fetches a row by itself, while the environments go on.
        pinned = tensor.device.type == "cuda"
        staging = torch.empty_like(tensor, device="cpu", pin_memory=True) if pinned else tensor
        self._staged = staging.unbind() if pinned else None
        self._arrays = None if staging.device.type != "cpu" else [row.numpy() for row in staging.unbind()]

    def write(self, t: int, value: Tensor | npt.NDArray[Any]) -> None:
        """Raises ConfigError where the shape is not that of a row."""
        if value.shape != self._shape:
            given = tuple(value.shape)
            raise ConfigError(f"the environments' {self.name} has shape {given}; expected {self._shape}")
        if self._arrays is None or isinstance(value, Tensor):
            self._tensors[t].copy_(torch.as_tensor(value))
            return
        self._arrays[t][...] = value
        if self._staged is not None:  # which the next rollout writes over, long after this copy
            self._tensors[t].copy_(self._staged[t], non_blocking=True)
