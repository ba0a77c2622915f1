"""The regression loss of the scalar value heads."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def value_loss(z: Tensor, y: Tensor, old: Tensor | None = None, clip: float | Tensor | None = None) -> Tensor:
    """Squared error `(z - y)^2`, optionally with PPO's pessimistic clip; unreduced, all shapes equal.

    With `clip`: `max((z - y)^2, (old + clamp(z - old, -clip, clip) - y)^2)`. All of `z`, `y`, `old` and
    `clip` live on the same axis; on a normalised one, the clip means the same at any reward scale.

    Source: the PPO2 code of OpenAI baselines; detail 9 of "The 37 implementation details of PPO".

    Raises:
        ValueError: shapes differ, or only one of `old` and `clip` is given.
    """
    if z.shape != y.shape or (old is not None and old.shape != y.shape):
        shapes = ", ".join(str(tuple(x.shape)) for x in (z, y, old) if x is not None)
        raise ValueError(f"value, target and old value must have one shape, not {shapes}")
    if (old is None) != (clip is None):
        raise ValueError("value clipping needs both the old values and the clip width")
    if old is None or clip is None:
        return mse_loss(z, y, reduction="none")
    with torch.no_grad():
        clipped = z.clamp(old - clip, old + clip)
        worse = (clipped - y).abs() > (z - y).abs()
    # Where the clipped value is the worse one, it stands at its bound, a constant.
    return mse_loss(torch.where(worse, clipped, z), y, reduction="none")
