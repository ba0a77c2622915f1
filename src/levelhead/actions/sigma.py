"""Standard deviations of Gaussian heads: on a schedule, learned, or learned as a function of the state."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from levelhead.layers import mlp
from levelhead.schedules import Schedule


class Sigma(nn.Module, ABC):
    """Features `[L, F]` to log standard deviations: `[D]` where they are the same in every state, `[L, D]` otherwise.

    Args:
        dim: D, the number of action dimensions.

    Attributes:
        learned: whether there is anything in it that learns.
    """

    learned: bool = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor: ...

    def advance(self, progress: float) -> None:
        """Moves schedules to `progress`, the share of training done."""


class ScheduledSigma(Sigma):
    """A standard deviation that nothing is learned about; `constant(0.5)` is a fixed one.

    Args:
        dim: D, the number of action dimensions.
        std: over the course of training.

    Raises:
        ValueError: a value of the schedule is not positive.
    """

    learned = False
    log_std: Tensor

    def __init__(self, dim: int, std: Schedule) -> None:
        super().__init__(dim)
        if std.bounds[0] <= 0:
            raise ValueError(f"a standard deviation is positive; {std} is not always")
        self.std = std
        self.register_buffer("log_std", torch.empty(dim))
        self.advance(0.0)

    def forward(self, features: Tensor) -> Tensor:  # noqa: ARG002  # the same in every state
        return self.log_std

    def advance(self, progress: float) -> None:
        self.log_std.fill_(math.log(self.std(progress)))


class LearnedSigma(Sigma):
    """What learned standard deviations share: a start, and bounds that may be left open.

    Args:
        dim: D, the number of action dimensions.
        std: where it starts.
        bounds: of the log-std, through `soft_clamp`; None for none.

    Attributes:
        start: the log-std that becomes that of `std` between the bounds.

    Raises:
        ValueError: `std` is not positive, or not strictly within the bounds.
    """

    def __init__(self, dim: int, std: float, bounds: tuple[float, float] | None) -> None:
        super().__init__(dim)
        if not 0 < std < math.inf:
            raise ValueError(f"a standard deviation is positive and finite, not {std}")
        self.bounds = bounds
        self.start = math.log(std) if bounds is None else soft_clamp_inverse(math.log(std), *bounds)

    def bounded(self, log_std: Tensor) -> Tensor:
        return log_std if self.bounds is None else soft_clamp(log_std, *self.bounds)


class IndependentSigma(LearnedSigma):
    """A free parameter per dimension, the same in every state.

    Args:
        dim, std, bounds: as in `LearnedSigma`.
    """

    def __init__(self, dim: int, std: float = 1.0, bounds: tuple[float, float] | None = None) -> None:
        super().__init__(dim, std, bounds)
        self.log_std = nn.Parameter(torch.full((dim,), self.start))

    def forward(self, features: Tensor) -> Tensor:  # noqa: ARG002  # the same in every state
        return self.bounded(self.log_std)


class ConditionedSigma(LearnedSigma):
    """A function of the actor's features: a linear layer, after hidden ones of its own if asked for.

    It starts at `std` in every state exactly, its last layer being a bias alone. The weights have a gradient all the
    same, and hidden layers have one once these have moved.

    Args:
        input_dim: F, the number of features.
        dim, std, bounds: as in `LearnedSigma`; by default between e^-5 and e^2, 0.007 and 7.4.
        hidden: widths of the hidden layers, each followed by tanh.
    """

    def __init__(
        self,
        input_dim: int,
        dim: int,
        std: float = 1.0,
        hidden: Sequence[int] = (),
        bounds: tuple[float, float] | None = (-5.0, 2.0),
    ) -> None:
        super().__init__(dim, std, bounds)
        self.hidden = mlp(input_dim, hidden)
        self.linear = nn.Linear(hidden[-1] if hidden else input_dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, self.start)

    def forward(self, features: Tensor) -> Tensor:
        return self.bounded(self.linear(self.hidden(features)))


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """`x` brought strictly between two bounds, with a gradient everywhere.

    A softplus from below and one from above, the lower shifted so that the range is that from `low` to `high` exactly.
    At a distance d inside the bounds it differs from `x` by about e^-d, and as far outside the gradient is e^-d: small,
    so that nothing drifts further, but zero only where float32 ends, some 87 outside. A hard clamp has none at all
    there: what is once outside never returns.

    Source: Chua et al. 2018, "Deep reinforcement learning in a handful of trials", appendix A.1; the shift is ours.
    """
    floor = _floor(low, high)
    return high - softplus(high - floor - softplus(x - floor))


def soft_clamp_inverse(y: float, low: float, high: float) -> float:
    """The `x` whose `soft_clamp` is `y`.

    Raises:
        ValueError: the bounds are not finite and in order, or `y` is not between them.
    """
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"the log-std cannot be kept between {low} and {high}")
    if not low < y < high:
        raise ValueError(f"a log-std of {y} does not lie between its bounds {low} and {high}")
    floor = _floor(low, high)
    return floor + _softplus_inverse(high - floor - _softplus_inverse(high - y))


def _floor(low: float, high: float) -> float:
    """Where the lower softplus levels out, for the upper one to bring it down to `low`."""
    return high - _softplus_inverse(high - low)


def _softplus_inverse(y: float) -> float:
    return y + math.log(-math.expm1(-y))
