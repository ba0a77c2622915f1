"""Real-valued actions with independent normal noise."""

# ruff: noqa: ARG002  # masks belong to the protocol; nobody passes one to a head whose `legal` refuses them
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softsign

from levelhead.actions.bounds import Bounds, UnitBounds
from levelhead.actions.head import ActionHead, Evaluation
from levelhead.actions.noise import colored_noise
from levelhead.actions.sigma import IndependentSigma, Sigma
from levelhead.layers import orthogonal
from levelhead.tree import Tree

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

BoundsHandling = Literal["clip", "rescale"]
BOUNDS: dict[BoundsHandling, type[Bounds]] = {"clip": Bounds, "rescale": UnitBounds}


class GaussianParameters(NamedTuple):
    """Mean and log standard deviation, each `[L, D]`."""

    mean: Tensor
    log_std: Tensor


class GaussianHead(ActionHead):
    """A diagonal Gaussian. Its mean is a linear function of the features, its standard deviation what `sigma` says.

    What is stored and trained on is the action as drawn, `[L, D]`; only the environment receives it clipped to its
    bounds. (The density of a clipped action has point masses at the bounds, which the log-probability would ignore.)

    Args:
        input_dim: number of features.
        low, high: bounds of the environment's actions, of their shape, infinite where there are none.
        sigma: of D dimensions; `IndependentSigma` where not given.
        bounds: `clip`: actions are drawn in the environment's units. `rescale`: they are drawn in units in which -1 to
            1 stands for `low` to `high`, so that the same start suits any range. Clipped they are in either case;
            mean, standard deviation, log-probability and entropy are those of actions before they are clipped.
        color: of the noise over time, not negative, see `colored_noise`; 0 is white. Each action has the distribution
            that its log-probability says, but successive ones are correlated given their states, which the
            log-probability of a trajectory, and the gradient built on it, ignores.

    Raises:
        ValueError: `rescale` where a dimension has no finite range, a sigma of another dimension, or no such color.
    """

    def __init__(
        self,
        input_dim: int,
        low: Tensor,
        high: Tensor,
        sigma: Sigma | None = None,
        *,
        bounds: BoundsHandling = "clip",
        color: float = 0.0,
    ) -> None:
        super().__init__()
        dim = low.numel()
        if sigma is not None and sigma.dim != dim:
            raise ValueError(f"a sigma of {sigma.dim} dimensions does not fit actions of {dim}")
        if not 0 <= color < math.inf:
            raise ValueError(f"the color of noise is a finite number and not negative, not {color}")
        self.sigma = IndependentSigma(dim) if sigma is None else sigma
        self.linear = orthogonal(nn.Linear(input_dim, dim), gain=0.01)
        self.bounds = BOUNDS[bounds](low, high)
        self.color = color
        self.code_dim = dim
        self.entropy_learned = self.sigma.learned

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal, `[*shape, D]`."""
        # One sample alone has no time.
        return colored_noise((*shape, self.code_dim), self.color if shape else 0.0, generator)

    def sample(self, features: Tensor, noise: Tensor, mask: Tree | None = None) -> tuple[Tensor, GaussianParameters]:
        mean, log_std = self.linear(features), self.sigma(features)
        return torch.addcmul(mean, noise, log_std.exp()), GaussianParameters(mean, log_std.expand_as(mean))

    def mode(self, features: Tensor, mask: Tree | None = None) -> Tensor:
        return self.linear(features)

    def evaluate(self, features: Tensor, action: Tensor, mask: Tree | None = None) -> Evaluation:
        mean, log_std = self.linear(features), self.sigma(features)
        squares, precision = mse_loss(mean, action, reduction="none"), (-2 * log_std).exp()
        # A log-std that is the same in every row is summed once, and one product weighs all squares.
        distance = squares @ precision if log_std.ndim == 1 else (squares * precision).sum(-1)
        total_log_std = log_std.sum(-1)
        log_prob = -0.5 * distance - (total_log_std + self.code_dim * LOG_SQRT_2PI)
        entropy = (total_log_std + self.code_dim * (0.5 + LOG_SQRT_2PI)).expand_as(log_prob)
        return Evaluation(log_prob, entropy, GaussianParameters(mean, log_std.expand_as(mean)))

    def log_prob(self, parameters: GaussianParameters, action: Tensor) -> Tensor:
        mean, log_std = parameters
        deviation = (action - mean) * (-log_std).exp()
        return (-0.5 * deviation.square() - log_std - LOG_SQRT_2PI).sum(-1)

    def kl(self, old: GaussianParameters, new: GaussianParameters) -> Tensor:
        ratio = (2 * (old.log_std - new.log_std)).exp()
        distance = ((old.mean - new.mean) * (-new.log_std).exp()).square()
        return (0.5 * (ratio + distance - 1) + new.log_std - old.log_std).sum(-1)

    def to_environment(self, action: Tensor) -> Tensor:
        return self.bounds(action)

    def code(self, action: Tensor) -> Tensor:
        """The action squashed to (-1, 1): it has no bounds, and one far out would drown what else a layer reads.

        By softsign, which still tells actions apart where tanh says 1 in float32.
        """
        return softsign(action)

    def advance(self, progress: float) -> None:
        self.sigma.advance(progress)
