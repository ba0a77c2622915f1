"""The policy: normaliser, network, action head and value head in one module."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from levelhead.actions import ActionHead
from levelhead.errors import ConfigError
from levelhead.networks.normalizer import ObservationNormalizer
from levelhead.numerics import pick
from levelhead.values import ValueHead


class Network(nn.Module):
    """Three torsos: observations through `shared`, then through `actor` and `critic` to the features of the heads.

    The parts are optimised as three groups, each with its own learning rate and gradient clip. Observations arrive
    as float32, flattened to `[B, observation_dim]`; reshape inside a torso where it wants images.

    Args:
        shared: `[B, observation_dim] -> [B, S]`; `nn.Identity()` for an actor and critic that share nothing.
        actor: `[B, S] -> [B, actor_dim]`.
        critic: `[B, S] -> [B, critic_dim]`.
        actor_dim, critic_dim: number of features that the heads receive.
    """

    def __init__(self, shared: nn.Module, actor: nn.Module, critic: nn.Module, actor_dim: int, critic_dim: int) -> None:
        super().__init__()
        self.shared = shared
        self.actor = actor
        self.critic = critic
        self.actor_dim = actor_dim
        self.critic_dim = critic_dim


class Policy(nn.Module):
    """An agent: how to act, and what the critic thinks of a state.

    Args:
        observation_shape: shape of one observation.
        network: the torsos.
        action_head: reads the actor's features.
        value_head: reads the critic's features.
        normalizer: of flattened observations; None for none.
        action_space: what the environment takes, for those who want to compare; None where unknown.
        tasks: names of those that it plays, one per output of the value head; empty where there is one alone.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        network: Network,
        action_head: ActionHead,
        value_head: ValueHead,
        normalizer: ObservationNormalizer | None = None,
        action_space: object = None,
        tasks: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.observation_shape = observation_shape
        self.action_space = action_space
        self.normalizer = normalizer
        self.network = network
        self.action_head = action_head
        self.value_head = value_head

    @property
    def device(self) -> torch.device:
        return self.value_head.linear.weight.device

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by optimiser group; a group without parameters is left out."""
        groups = {
            "shared": list(self.network.shared.parameters()),
            "actor": [*self.network.actor.parameters(), *self.action_head.parameters()],
            "critic": [*self.network.critic.parameters(), *self.value_head.parameters()],
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def prepare(self, observation: Tensor) -> Tensor:
        """`[L, *observation_shape]` of any dtype to normalised float32 `[L, D]`, as the network reads it."""
        leading = observation.shape[: observation.ndim - len(self.observation_shape)]
        x = observation.reshape(*leading, -1).float()
        return x if self.normalizer is None else self.normalizer(x)

    def actor_features(self, x: Tensor) -> Tensor:
        """Prepared observations `[L, D]` to what the action head reads."""
        return self.network.actor(self.network.shared(x))

    def critic_features(self, x: Tensor) -> Tensor:
        """Prepared observations `[L, D]` to what the value head reads."""
        return self.network.critic(self.network.shared(x))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Actor's and critic's features from one pass through the shared part."""
        shared = self.network.shared(x)
        return self.network.actor(shared), self.network.critic(shared)

    @torch.no_grad()
    def values(self, observation: Tensor) -> Tensor:
        """Values of each observation in reward units, one per task, `[L, K]`; changes no state."""
        return self.value_head(self.critic_features(self.prepare(observation)))

    def value(self, observation: Tensor, task: Tensor | None = None) -> Tensor:
        """Value of each observation in reward units, for the task that it belongs to, `[L]`; changes no state.

        Args:
            observation: `[L, *observation_shape]`.
            task: `[L]` int64; needed where the policy plays several.
        """
        return pick(self.values(observation), task)

    @torch.no_grad()
    def act(self, observation: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """Greedy actions, as the environment takes them, for one observation or a batch; changes no state.

        Args:
            observation: `[*observation_shape]` or `[B, *observation_shape]`, array or tensor.

        Returns:
            One action, or a batch of them, within the environment's bounds.

        Raises:
            ConfigError: the observation has another shape.
        """
        given = observation if isinstance(observation, Tensor) else torch.from_numpy(np.array(observation))
        shape = self.observation_shape
        if given.shape[given.ndim - len(shape) :] != shape or given.ndim not in (len(shape), len(shape) + 1):
            raise ConfigError(f"observation has shape {tuple(given.shape)}; expected {shape} or a batch of it")
        x = self.prepare(given.to(self.device))
        action = self.action_head.mode(self.actor_features(x))
        return self.action_head.to_environment(action).cpu().numpy()
