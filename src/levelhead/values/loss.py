"""The regression loss of the scalar value heads."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def value_loss(
    z: Tensor,
    y: Tensor,
    old: Tensor | None = None,
    clip: float | Tensor | None = None,
    huber: float | Tensor | None = None,
) -> Tensor:
    """Squared error `(z - y)^2`, optionally with PPO's pessimistic clip or Huber's bound; unreduced, all shapes equal.

    With `clip`: `max((z - y)^2, (old + clamp(z - old, -clip, clip) - y)^2)`. All of `z`, `y`, `old` and
    `clip` live on the same axis; on a normalised one, the clip means the same at any reward scale.

    With `huber`: an error e beyond it costs `huber (2 |e| - huber)` instead of `e^2`, so that its gradient grows no
    further.

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
        return _error(z, y, huber)
    with torch.no_grad():
        clipped = z.clamp(old - clip, old + clip)
        worse = (clipped - y).abs() > (z - y).abs()
    # Where the clipped value is the worse one, it stands at its bound, a constant.
    return _error(torch.where(worse, clipped, z), y, huber)


def _error(z: Tensor, y: Tensor, huber: float | Tensor | None) -> Tensor:
    square = mse_loss(z, y, reduction="none")
    if huber is None:
        return square
    size = (z - y).abs()
    return torch.where(size > huber, huber * (2 * size - huber), square)
