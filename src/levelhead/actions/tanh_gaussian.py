"""Real-valued actions that a hyperbolic tangent keeps within their bounds."""

# ruff: noqa: ARG002  # masks belong to the protocol; nobody passes one to a head whose `legal` refuses them
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from levelhead.actions.bounds import UnitBounds
from levelhead.actions.gaussian import GaussianHead, GaussianParameters
from levelhead.actions.head import Evaluation
from levelhead.actions.sigma import Sigma
from levelhead.tree import Tree

LOG_4 = 2 * math.log(2)

# The logistic distribution with scale 1/2 as a mixture of normal ones around 0: their weights and standard deviations,
# fitted so that the largest error of E|u + v| over all u is least (4e-6; see `_MeanLogSlope`).
WEIGHTS = 0.146066, 0.500292, 0.316349, 0.037293
STDS = 0.509103, 0.756722, 1.120192, 1.646938


class TanhGaussianHead(GaussianHead):
    """A diagonal Gaussian `u`, squashed: the environment receives `low + (high - low) (tanh(u) + 1) / 2`.

    What is stored is `u`, so that nothing is lost near the bounds, where tanh rounds to 1. Log-probability and entropy
    are those of the environment's action, in its units. KL is that of the Gaussians, since `u` and the action determine
    each other. The mode is the mean of `u`, so the median of the action; its density may be higher at the bounds.

    Args:
        input_dim, sigma, color: as in `GaussianHead`; the sigma is that of `u`.
        low, high: bounds of the environment's actions, of their shape.

    Raises:
        ValueError: a dimension has no finite range, or as in `GaussianHead`.

    Source: Haarnoja et al. 2018, "Soft actor-critic", appendix C; the entropy is ours.
    """

    bounds: UnitBounds
    weights: Tensor
    variances: Tensor

    def __init__(
        self, input_dim: int, low: Tensor, high: Tensor, sigma: Sigma | None = None, *, color: float = 0.0
    ) -> None:
        super().__init__(input_dim, low, high, sigma, bounds="rescale", color=color)
        self.entropy_learned = True  # through the mean, whatever sigma is
        self.register_buffer("weights", torch.tensor(WEIGHTS), persistent=False)
        self.register_buffer("variances", torch.tensor(STDS).square(), persistent=False)

    def evaluate(self, features: Tensor, action: Tensor, mask: Tree | None = None) -> Evaluation:
        log_prob, entropy, parameters, _ = super().evaluate(features, action)
        mean, variance = parameters.mean, (2 * parameters.log_std).exp()
        slope, expected_slope = log_slope(action), _MeanLogSlope.apply(mean, variance, self.weights, self.variances)
        scale = self.bounds.log_scale
        return Evaluation(log_prob - slope.sum(-1) - scale, entropy + expected_slope.sum(-1) + scale, parameters)

    def log_prob(self, parameters: GaussianParameters, action: Tensor) -> Tensor:
        return super().log_prob(parameters, action) - log_slope(action).sum(-1) - self.bounds.log_scale

    def to_environment(self, action: Tensor) -> Tensor:
        return self.bounds(action.tanh())

    def code(self, action: Tensor) -> Tensor:
        """The action in units in which its bounds are -1 and 1."""
        return action.tanh()


def log_slope(u: Tensor) -> Tensor:
    """`log(1 - tanh(u)^2)`, finite for any finite u: `log 4 - 2 |u|` far out, where tanh has long been 1."""
    return LOG_4 - 2 * (u + softplus(-2 * u))


class _MeanLogSlope(torch.autograd.Function):
    """The mean of `log_slope` under normal distributions, within 1e-5 for every mean and std, its gradient within 1e-4.

    `log(2 cosh u)` is the mean of `|u + v|`, v being logistic with scale 1/2: both have the second derivative
    `sech(u)^2` and approach `|u|`. Now v is nearly a mixture of normal variables, u + v then is one too, and the mean
    magnitude of a normal variable is known. What the mixture is off by at any u bounds what its mean is off by.
    Quadrature would want many nodes for a wide distribution, in whose units the curve has a kink.

    Derivatives are written out because recording them costs several times the function itself.

    Source: of the mixture, Monahan and Stefanski 1992, "Normal scale mixture approximations to F*(z) and computation of
    the logistic-normal integral".
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, weights: Tensor, variances: Tensor) -> Tensor:
        """Means and variances `[L, D]`, and those of the mixture's parts, to `[L, D]`."""
        mean = mean.unsqueeze(-1)
        std = (variance.unsqueeze(-1) + variances).sqrt()
        ratio = mean / (math.sqrt(2) * std)
        sign, peak = ratio.erf(), math.sqrt(2 / math.pi) * (-ratio.square()).exp()
        ctx.save_for_backward(-2 * sign @ weights, -(peak / std) @ weights)
        return LOG_4 - 2 * (mean * sign + std * peak) @ weights

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (by_mean, by_variance) = grad_outputs, ctx.saved_tensors
        return gradient * by_mean, gradient * by_variance, None, None
