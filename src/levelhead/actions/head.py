"""The protocol of action heads."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from levelhead.errors import ConfigError
from levelhead.tree import Tree


class Evaluation(NamedTuple):
    """What a policy says about given actions."""

    log_prob: Tensor
    """`[L]`, summed over action dimensions and heads."""
    entropy: Tensor
    """`[L]`, summed over action dimensions and heads."""
    parameters: Tree
    """The distribution's parameters, leaves `[L, ...]`."""
    entropies: tuple[Tensor, ...] = ()
    """What each part of a joint head adds to the entropy, `[L]` each, in the order of `ActionHead.names`."""


class ActionHead(nn.Module, ABC):
    """Features `[L, D]` to a distribution over actions, L being any leading shape.

    Randomness comes in as `noise`, drawn for a whole rollout at once, so that acting is a plain function of tensors.
    `parameters` is whatever tree of tensors describes the distribution, masks included, stored with each action:
    log-probabilities and divergences of the policy that acted need no second pass through the network.

    Attributes:
        names: of the heads that it consists of; empty where it is a single one.
        entropy_learned: whether the entropy depends on anything that is learned.
        exact: whether entropy and KL are those of the distribution, not estimates from the sampled action.
        code_dim: size of `code`.
    """

    names: tuple[str, ...] = ()
    entropy_learned: bool = True
    exact: bool = True
    code_dim: int

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tree:
        """Randomness for `sample` with leading shape `shape`, time first; independent of the policy."""

    @abstractmethod
    def sample(self, features: Tensor, noise: Tree, mask: Tree | None = None) -> tuple[Tree, Tree]:
        """An action per sample, and the distribution's parameters.

        Args:
            features: `[L, D]`.
            noise: a slice of what `noise` drew.
            mask: bool, False for choices that are illegal now: they have probability zero. None where all are legal.
        """

    @abstractmethod
    def mode(self, features: Tensor, mask: Tree | None = None) -> Tree:
        """The most probable action."""

    @abstractmethod
    def evaluate(self, features: Tensor, action: Tree, mask: Tree | None = None) -> Evaluation:
        """Log-probability of given actions, entropy and parameters, differentiable."""

    @abstractmethod
    def log_prob(self, parameters: Tree, action: Tree) -> Tensor:
        """`[L]`, of given actions under stored parameters."""

    @abstractmethod
    def kl(self, old: Tree, new: Tree) -> Tensor:
        """KL(old || new), `[L]`, between stored parameters."""

    @abstractmethod
    def to_environment(self, action: Tree) -> Tree:
        """The action as the environment takes it: within its bounds, counted from its first value, in its shape."""

    @abstractmethod
    def code(self, action: Tree) -> Tensor:
        """The action as numbers `[L, code_dim]` for heads that decide after this one: choices as one-hot codes."""

    def legal(self, mask: Tree) -> Tensor:
        """`[L]` bool: whether a mask leaves something to choose.

        Raises:
            ConfigError: the head takes no masks, or none of that shape.
        """
        raise ConfigError(f"{type(self).__name__} takes no mask; {mask} was given")

    def advance(self, progress: float) -> None:
        """Moves schedules to `progress`, the share of training done."""


def require_mask(mask: Tree, choices: int) -> Tensor:
    """`mask` where it is bool `[L, choices]`.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim < 1 or mask.shape[-1] != choices:
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ConfigError(f"an action mask is {given}; expected torch.bool (..., {choices}), one entry per choice")
    return mask
