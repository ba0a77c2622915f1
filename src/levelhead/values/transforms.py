"""Fixed, invertible maps that squeeze values of any magnitude onto a short axis.

Written so that gradients are right at 0 too, where a new head's output lies, and finite wherever the map is.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Transform(NamedTuple):
    """A strictly increasing function and its inverse, both elementwise."""

    name: str
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """`x` itself."""
    return x


def symlog(x: Tensor) -> Tensor:
    """`sign(x) log(1 + |x|)`. Source: Hafner et al. 2023, "Mastering diverse domains through world models"."""
    return torch.where(x >= 0, x.clamp(min=0).log1p(), -(-x.clamp(max=0)).log1p())


def symexp(x: Tensor) -> Tensor:
    """`sign(x) (exp|x| - 1)`, the inverse of `symlog`."""
    return torch.where(x >= 0, x.clamp(min=0).expm1(), -(-x.clamp(max=0)).expm1())


SLOPE = 1e-3
"""What keeps the inverse of the signed square root Lipschitz."""


def signed_sqrt(x: Tensor) -> Tensor:
    """`sign(x) (sqrt(|x| + 1) - 1) + 0.001 x`.

    Source: Pohlen et al. 2018, "Observe and look further", proposition A.2; used by R2D2 and MuZero.
    """
    return x / ((x.abs() + 1).sqrt() + 1) + SLOPE * x


def signed_square(x: Tensor) -> Tensor:
    """The inverse of `signed_sqrt`."""
    root = (1 + 4 * SLOPE * (x.abs() + 1 + SLOPE)).sqrt()
    # The closed form is u^2 - 1; with u = 1 + |d| the cancellation near 0 is gone.
    d = 2 * x / (root + 1 + 2 * SLOPE)
    return d * (d.abs() + 2)


IDENTITY = Transform("identity", identity, identity)
SYMLOG = Transform("symlog", symlog, symexp)
SIGNED_SQRT = Transform("signed_sqrt", signed_sqrt, signed_square)
