"""Heads whose axis is a fixed function of the raw value: they keep no statistics."""

import torch
from torch import Tensor

from levelhead.numerics import Moments
from levelhead.values.head import ValueHead
from levelhead.values.transforms import IDENTITY, SYMLOG, Transform


class FixedAxisHead(ValueHead):
    """What heads without statistics share. Mean stays 0 and std 1; `count` alone moves.

    `beta` and `epsilon` have nothing to act on: they are accepted so that every head is made alike.
    """

    has_statistics = False
    transform: Transform = IDENTITY
    """From raw values to the axis of the loss."""

    def _absorb(self, batch: Moments, reached: Tensor) -> None:  # noqa: ARG002  # nothing of the batch is kept
        self.count.add_(reached)

    def normalize(self, x: Tensor, *, task: Tensor | None = None) -> Tensor:
        """`transform` of `x`, computed in float64, answered in `x`'s shape and dtype; shapes are checked as ever."""
        self._pick(x, task)
        return self.transform.forward(x.to(self.mean.device, torch.float64)).to(x.device, x.dtype)

    def denormalize(self, z: Tensor, *, task: Tensor | None = None) -> Tensor:
        """The inverse of `normalize`; computed in float64, answered in at least float32."""
        self._pick(z, task)
        raw = self.transform.inverse(z.to(self.mean.device, torch.float64))
        return raw.to(z.device, torch.promote_types(z.dtype, torch.float32))


class LinearValueHead(FixedAxisHead):
    """The baseline: a linear layer in reward units, no normalisation at all.

    Both axes are the raw one, so `clip` is in reward units here.
    """

    def forward_normalized(self, features: Tensor) -> Tensor:
        return self.linear(features)


class TransformValueHead(FixedAxisHead):
    """A linear layer on a squeezed axis: squared error after `symlog`, or after R2D2's signed square root.

    Large values stay in reach without statistics, at a price: small rewards are not lifted, the mean of a transformed
    return is not the transform of the mean, and so values of a random return come out too low in magnitude.

    Args:
        input_dim, output_dim, beta, epsilon, device, dtype: as in `ValueHead`.
        transform: `levelhead.SYMLOG`, `levelhead.SIGNED_SQRT`, or a `levelhead.Transform` of your own.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int = 1,
        beta: float = 0.98,
        epsilon: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        transform: Transform = SYMLOG,
    ) -> None:
        if not isinstance(transform, Transform):  # pyright: ignore[reportUnnecessaryIsInstance]  # names are passed
            raise ValueError(f"transform must be a levelhead.Transform such as levelhead.SYMLOG, not {transform!r}")
        super().__init__(input_dim, output_dim, beta, epsilon, device, dtype)
        self.transform = transform

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, transform={self.transform.name}"

    def _fits(self, other: ValueHead) -> bool:
        return super()._fits(other) and isinstance(other, TransformValueHead) and other.transform == self.transform

    def forward_normalized(self, features: Tensor) -> Tensor:
        return self.linear(features)
