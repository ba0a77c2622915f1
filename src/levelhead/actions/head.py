"""The protocol of action heads."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from levelhead.tree import Tree


class Evaluation(NamedTuple):
    """What a policy says about given actions."""

    log_prob: Tensor
    """`[L]`, summed over action dimensions."""
    entropy: Tensor
    """`[L]`, summed over action dimensions."""
    parameters: Tree
    """The distribution's parameters, leaves `[L, ...]`."""


class ActionHead(nn.Module, ABC):
    """Features `[L, D]` to a distribution over actions, L being any leading shape.

    Randomness comes in as `noise`, drawn for a whole rollout at once, so that acting is a plain function of tensors.
    `parameters` is whatever tree of tensors describes the distribution, stored with each action: log-probabilities
    and divergences of the policy that acted need no second pass through the network.
    """

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Randomness for `sample` with leading shape `shape`; independent of the policy."""

    @abstractmethod
    def sample(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tree]:
        """An action per sample, and the distribution's parameters."""

    @abstractmethod
    def mode(self, features: Tensor) -> Tensor:
        """The most probable action."""

    @abstractmethod
    def evaluate(self, features: Tensor, action: Tensor) -> Evaluation:
        """Log-probability of given actions, entropy and parameters, differentiable."""

    @abstractmethod
    def log_prob(self, parameters: Tree, action: Tensor) -> Tensor:
        """`[L]`, of given actions under stored parameters."""

    @abstractmethod
    def kl(self, old: Tree, new: Tree) -> Tensor:
        """Exact KL(old || new), `[L]`, between stored parameters."""

    @abstractmethod
    def to_environment(self, action: Tensor) -> Tensor:
        """The action as the environment takes it: within its bounds, counted from its first value."""
