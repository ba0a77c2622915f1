"""The baseline: no normalisation at all."""

import torch
from torch import Tensor

from levelhead.numerics import Moments
from levelhead.values.head import ValueHead


class LinearValueHead(ValueHead):
    """A linear layer in reward units. Mean stays 0 and std 1; `count` alone moves.

    Both axes are the raw one, so `clip` is in reward units here. `beta` and `epsilon` have nothing to act on: they are
    accepted so that every head is made alike.
    """

    has_statistics = False

    def forward_normalized(self, features: Tensor) -> Tensor:
        return self.linear(features)

    def _absorb(self, batch: Moments, reached: Tensor) -> None:  # noqa: ARG002  # nothing of the batch is kept
        self.count.add_(reached)

    def normalize(self, x: Tensor, *, task: Tensor | None = None) -> Tensor:
        """`x` itself; shapes are checked as in every head."""
        self._pick(x, task)
        return x

    def denormalize(self, z: Tensor, *, task: Tensor | None = None) -> Tensor:
        """`z` itself, in at least float32."""
        self._pick(z, task)
        return z.to(torch.promote_types(z.dtype, torch.float32))
