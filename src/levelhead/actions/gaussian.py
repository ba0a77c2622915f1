"""Real-valued actions with independent normal noise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from levelhead.actions.head import ActionHead, Evaluation
from levelhead.initialization import orthogonal

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class GaussianParameters(NamedTuple):
    """Mean and log standard deviation, each `[L, D]`."""

    mean: Tensor
    log_std: Tensor


class GaussianHead(ActionHead):
    """A diagonal Gaussian whose log-std is a free parameter, the same in every state.

    What is stored and trained on is the action as drawn; only the environment receives it clipped to its bounds. (The
    density of a clipped action has point masses at the bounds, which the log-probability would ignore.)

    Args:
        input_dim: number of features.
        low, high: bounds of the environment's actions, `[D]`, infinite where there are none.
        log_std: where the log standard deviation starts.
    """

    low: Tensor
    high: Tensor

    def __init__(self, input_dim: int, low: Tensor, high: Tensor, log_std: float = 0.0) -> None:
        super().__init__()
        self.linear = orthogonal(nn.Linear(input_dim, low.numel()), gain=0.01)
        self.log_std = nn.Parameter(torch.full((low.numel(),), log_std))
        self.register_buffer("low", _rounded(low, torch.inf))
        self.register_buffer("high", _rounded(high, -torch.inf))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal, `[*shape, D]`."""
        return torch.randn(*shape, self.linear.out_features, generator=generator, device=generator.device)

    def sample(self, features: Tensor, noise: Tensor) -> tuple[Tensor, GaussianParameters]:
        mean = self.linear(features)
        action = torch.addcmul(mean, noise, self.log_std.exp())
        return action, GaussianParameters(mean, self.log_std.expand_as(mean))

    def mode(self, features: Tensor) -> Tensor:
        return self.linear(features)

    def evaluate(self, features: Tensor, action: Tensor) -> Evaluation:
        mean = self.linear(features)
        # The log-std is the same in every row: its terms are summed once, and one product weighs all squares.
        precision = (-2 * self.log_std).exp()
        total_log_std = self.log_std.sum()
        dimensions = mean.shape[-1]
        squares = mse_loss(mean, action, reduction="none") @ precision
        log_prob = -0.5 * squares - (total_log_std + dimensions * LOG_SQRT_2PI)
        entropy = (total_log_std + dimensions * (0.5 + LOG_SQRT_2PI)).expand_as(log_prob)
        return Evaluation(log_prob, entropy, GaussianParameters(mean, self.log_std.expand_as(mean)))

    def log_prob(self, parameters: GaussianParameters, action: Tensor) -> Tensor:
        mean, log_std = parameters
        deviation = (action - mean) * (-log_std).exp()
        return (-0.5 * deviation.square() - log_std - LOG_SQRT_2PI).sum(-1)

    def kl(self, old: GaussianParameters, new: GaussianParameters) -> Tensor:
        ratio = (2 * (old.log_std - new.log_std)).exp()
        distance = ((old.mean - new.mean) * (-new.log_std).exp()).square()
        return (0.5 * (ratio + distance - 1) + new.log_std - old.log_std).sum(-1)

    def to_environment(self, action: Tensor) -> Tensor:
        return action.clamp(self.low, self.high)


def _rounded(bound: Tensor, inwards: float) -> Tensor:
    """A bound in float32, rounded inwards, so that a clipped action lies within the bounds as they were given."""
    near = bound.float()
    outside = (near.double() - bound.double()) * inwards < 0
    return torch.where(outside, near.nextafter(torch.full_like(near, inwards)), near)
