"""From the flat actions that a head draws to what an environment takes."""

import math

import torch
from torch import Tensor, nn


class Bounds(nn.Module):
    """Actions `[L, D]` in the environment's units to `[L, *shape]`, clipped to its bounds.

    Args:
        low, high: of the shape of one action; infinite where there is no bound.

    Raises:
        ValueError: `low` and `high` differ in shape.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        if low.shape != high.shape:
            raise ValueError(f"bounds {tuple(low.shape)} and {tuple(high.shape)} differ in shape")
        self.shape = tuple(low.shape)
        self.dim = low.numel()
        self.register_buffer("low", _rounded(low.flatten(), torch.inf), persistent=False)
        self.register_buffer("high", _rounded(high.flatten(), -torch.inf), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        return action.clamp(self.low, self.high).reshape((*action.shape[:-1], *self.shape))


class UnitBounds(Bounds):
    """As `Bounds`, for actions whose range from -1 to 1 stands for that from `low` to `high`.

    Args:
        low, high: of the shape of one action.

    Attributes:
        log_scale: logarithm of the volume, in the environment's units, that a unit of volume becomes. A density per
            volume of the environment has this subtracted from its logarithm.

    Raises:
        ValueError: a dimension has no finite range; it is named.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__(low, high)
        # In halves: the range itself may be more than a number can hold.
        half_low, half_high = 0.5 * low.double().flatten(), 0.5 * high.double().flatten()
        half_range = half_high - half_low
        for i, (a, b) in enumerate(zip(low.flatten().tolist(), high.flatten().tolist(), strict=True)):
            if not (math.isfinite(a) and math.isfinite(b) and a < b):
                raise ValueError(f"dimension {i} of the action goes from {a} to {b}; expected a finite range")
        self.log_scale = math.fsum(half_range.log().tolist())
        self.register_buffer("center", (half_low + half_high).float(), persistent=False)
        self.register_buffer("half_range", half_range.float(), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        return super().forward(torch.addcmul(self.center, self.half_range, action))


def _rounded(bound: Tensor, inwards: float) -> Tensor:
    """A bound in float32, rounded inwards, so that a clipped action lies within the bounds as they were given."""
    near = bound.float()
    outside = (near.double() - bound.double()) * inwards < 0
    return torch.where(outside, near.nextafter(torch.full_like(near, inwards)), near)
