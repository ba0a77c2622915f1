"""Weighted moments and what follows from them, standardisation and explained variance; and the choice of a column.

Everything here is homogeneous in its input: no absolute epsilon, floor or clamp stands in the way of scale.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks: the only thing that merging statistics needs from a cluster."""

ROUNDING = 1e-6
"""Spread up to this share of the magnitude is float32 rounding noise, not scale."""


class Moments(NamedTuple):
    """Total weight, mean and population variance of each column, float64 `[K]`."""

    weight: Tensor
    mean: Tensor
    var: Tensor

    def merged(self, other: "Moments") -> "Moments":
        """Exactly as if all samples had come at once.

        Source: Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
        """
        total = self.weight + other.weight
        share = torch.where(total > 0, other.weight / total, 0.0)
        delta = other.mean - self.mean
        var = (1 - share) * self.var + share * other.var + share * (1 - share) * delta.square()
        return Moments(total, self.mean + share * delta, var)

    def take(self, k: int) -> "Moments":
        """Of one column, 0-d; of one row, where columns lie in rows."""
        return Moments(self.weight[k], self.mean[k], self.var[k])

    @property
    def magnitude(self) -> Tensor:
        """`[K]`: the root of the mean square."""
        return (self.mean.square() + self.var).sqrt()

    @property
    def finite(self) -> Tensor:
        """bool `[K]`: whether every entry that counted was finite; no variance is where an entry or the mean isn't."""
        return self.var - self.var == 0


def zero_if_finite(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[*shape, ...]` to `shape`: 0 where all numbers are finite, NaN where one isn't.

    That takes half of the time that `isfinite` does.
    """
    zeros = x - x
    return zeros if x.shape == shape else zeros.reshape(*shape, -1).sum(-1)


def local(x: Tensor) -> Tensor:
    """The `reduce` of a single process: `x` itself."""
    return x


def moments(x: Tensor, weight: Tensor, reduce: Reduce = local) -> Moments:
    """Moments of each column, in float64 and two centred passes, merged over ranks by `reduce`.

    Args:
        x: `[M, K]`. Entries whose weight is 0 may hold anything, NaN included.
        weight: `[M, K]` or `[M, 1]`, not negative.
        reduce: called on `[2, K]` (weights, weighted sums), then on `[K]` (centred sums of squares).

    A column without weight has mean 0 and variance 0. A non-finite entry makes its column non-finite.
    """
    x = torch.where(weight > 0, x.double(), 0.0)
    weight = weight.double().expand_as(x)
    total, first = reduce(torch.stack((weight.sum(0), (weight * x).sum(0))))
    divisor = torch.where(total > 0, total, 1.0)
    mean = first / divisor
    var = reduce((weight * (x - mean).square()).sum(0)) / divisor
    return Moments(total, mean, var)


def standardize(x: Tensor, valid: Tensor, of: Moments, scale: Tensor) -> Tensor:
    """`x` with mean 0 and standard deviation 1 over its valid entries; invalid entries become 0.

    Args:
        x: any shape.
        valid: bool, `x`'s shape.
        of: the moments of these entries, 0-d.
        scale: 0-d, the magnitude against which spread is judged: a standard deviation not larger than
            `ROUNDING * scale` counts as no spread, and the answer is then 0 everywhere.
    """
    std = of.var.sqrt()
    spread = std > ROUNDING * scale
    y = (x.double() - of.mean) / torch.where(spread, std, 1.0)
    return torch.where(valid & spread, y, 0.0).to(x.dtype)


def explained_variance(prediction: Tensor, target: Tensor, valid: Tensor, reduce: Reduce = local) -> Tensor:
    """`1 - Var[target - prediction] / Var[target]` over the valid entries, 0-d float64.

    1 is a perfect critic, 0 one no better than a constant; NaN where the targets don't vary.
    """
    columns = torch.stack((target.reshape(-1), (target - prediction).reshape(-1)), dim=1)
    of = moments(columns, valid.reshape(-1, 1), reduce)
    return explained(of.take(0), of.take(1))


def explained(target: Moments, residual: Moments) -> Tensor:
    """`explained_variance` by the moments of targets, and of what predictions lack to them."""
    varies = target.var.sqrt() > ROUNDING * target.mean.abs()
    return torch.where(varies, 1.0 - residual.var / target.var, torch.nan)


def pick(x: Tensor, task: Tensor | None) -> Tensor:
    """`[L, K] -> [L]`: for every sample the column that its task names.

    Raises:
        ValueError: there are no tasks, and several columns.
    """
    if task is None and x.shape[-1] != 1:
        raise ValueError(f"{x.shape[-1]} values per sample, and no task to choose by")
    return x.squeeze(-1) if task is None else x.gather(-1, task.unsqueeze(-1)).squeeze(-1)
