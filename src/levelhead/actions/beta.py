"""Real-valued actions within bounds, after the beta distribution."""

# ruff: noqa: ARG002  # masks belong to the protocol; nobody passes one to a head whose `legal` refuses them
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from levelhead.actions.bounds import UnitBounds
from levelhead.actions.head import ActionHead, Evaluation
from levelhead.layers import orthogonal
from levelhead.tree import Tree

PROPOSALS = 6
"""Of each gamma variable. All are rejected with probability 0.05^6 = 2e-8 at most; then the last one counts."""
MARGIN = torch.finfo(torch.float32).eps
"""Samples keep away from 0 and 1 by this much, so that log-probabilities are finite."""


class BetaParameters(NamedTuple):
    """Both shape parameters, at least 1, each `[L, D]`."""

    alpha: Tensor
    beta: Tensor


class GammaNoise(NamedTuple):
    """What `gamma` makes its proposals of, each `[..., K]`."""

    normal: Tensor
    exponential: Tensor


class BetaHead(ActionHead):
    """Independent beta distributions between the bounds, `alpha, beta = 1 + softplus(linear)`, hence with one peak.

    Unlike a clipped Gaussian it is a density on the box itself: no action is drawn outside, none piles up at a bound.
    What is stored is the action as a share of the range, in (0, 1); log-probability and entropy are those of the
    environment's action, in its units.

    Args:
        input_dim: number of features.
        low, high: bounds of the environment's actions, of their shape.

    Raises:
        ValueError: a dimension has no finite range.

    Source: Chou, Maturana and Scherer 2017, "Improving stochastic policy gradients in continuous control with deep
    reinforcement learning using the beta distribution".
    """

    def __init__(self, input_dim: int, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.bounds = UnitBounds(low, high)
        self.code_dim = self.bounds.dim
        self.linear = orthogonal(nn.Linear(input_dim, 2 * self.code_dim), gain=0.01)
        # The stored action covers a range of 1, where that of the bounds is 2.
        self.log_scale = self.bounds.log_scale + self.code_dim * math.log(2)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> GammaNoise:
        """Proposals for two gamma variables per dimension: each `[*shape, 2, D, K]`."""
        normal = torch.randn(*shape, 2, self.code_dim, PROPOSALS, generator=generator, device=generator.device)
        return GammaNoise(normal, torch.empty_like(normal).exponential_(generator=generator))

    def _distribution(self, features: Tensor) -> BetaParameters:
        alpha, beta = (1 + softplus(self.linear(features))).chunk(2, -1)
        return BetaParameters(alpha, beta)

    def sample(self, features: Tensor, noise: GammaNoise, mask: Tree | None = None) -> tuple[Tensor, BetaParameters]:
        parameters = self._distribution(features)
        first, second = gamma(torch.stack(parameters, -2), noise).unbind(-2)
        return _inside(first / (first + second)), parameters

    def mode(self, features: Tensor, mask: Tree | None = None) -> Tensor:
        alpha, beta = self._distribution(features)
        total = alpha + beta - 2
        # Where both are 1 the distribution is uniform: the middle is as good as any.
        return _inside(torch.where(total > 0, (alpha - 1) / total, 0.5))

    def evaluate(self, features: Tensor, action: Tensor, mask: Tree | None = None) -> Evaluation:
        parameters = self._distribution(features)
        return Evaluation(self.log_prob(parameters, action), self._entropy(parameters), parameters)

    def log_prob(self, parameters: BetaParameters, action: Tensor) -> Tensor:
        alpha, beta = _precise(parameters)
        x = action.double()
        density = (alpha - 1) * x.log() + (beta - 1) * (-x).log1p() - log_beta(alpha, beta)
        return (density.sum(-1) - self.log_scale).to(action.dtype)

    def _entropy(self, parameters: BetaParameters) -> Tensor:
        alpha, beta = _precise(parameters)
        mean_log, mean_log1m = _mean_logs(alpha, beta)
        entropy = log_beta(alpha, beta) - (alpha - 1) * mean_log - (beta - 1) * mean_log1m
        return (entropy.sum(-1) + self.log_scale).to(parameters.alpha.dtype)

    def kl(self, old: BetaParameters, new: BetaParameters) -> Tensor:
        (alpha, beta), (new_alpha, new_beta) = _precise(old), _precise(new)
        mean_log, mean_log1m = _mean_logs(alpha, beta)
        distance = (alpha - new_alpha) * mean_log + (beta - new_beta) * mean_log1m
        return (distance + log_beta(new_alpha, new_beta) - log_beta(alpha, beta)).sum(-1).to(old.alpha.dtype)

    def to_environment(self, action: Tensor) -> Tensor:
        return self.bounds(2 * action - 1)

    def code(self, action: Tensor) -> Tensor:
        """The action in units in which its bounds are -1 and 1."""
        return 2 * action - 1


def gamma(concentration: Tensor, noise: GammaNoise) -> Tensor:
    """Gamma variables of the given concentrations, at least 1, and rate 1: the first proposal that is accepted.

    A proposal is `d (1 + c x)^3` with x standard normal; at least 95 in 100 are accepted.

    Args:
        concentration: `[...]`.
        noise: each `[..., K]`.

    Source: Marsaglia and Tsang 2000, "A simple method for generating gamma variables". The logarithm of their uniform
    variable is the negative of our exponential one.
    """
    d = concentration.unsqueeze(-1) - 1 / 3
    v = torch.addcmul(torch.ones_like(d), noise.normal, (9 * d).rsqrt()).clamp(min=0).pow(3)
    accepted = noise.exponential > d * (v - 1 - v.log()) - 0.5 * noise.normal.square()
    accepted[..., -1] = True
    first = accepted.byte().argmax(-1, keepdim=True)
    return (d * v.gather(-1, first)).squeeze(-1).clamp(min=torch.finfo(v.dtype).tiny)


def log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    """Logarithm of the beta function."""
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


def _mean_logs(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Means of `log x` and `log(1 - x)`."""
    total = (alpha + beta).digamma()
    return alpha.digamma() - total, beta.digamma() - total


def _precise(parameters: BetaParameters) -> tuple[Tensor, Tensor]:
    """In float64: of narrow distributions, large terms nearly cancel."""
    return parameters.alpha.double(), parameters.beta.double()


def _inside(x: Tensor) -> Tensor:
    return x.clamp(MARGIN, 1 - MARGIN)
