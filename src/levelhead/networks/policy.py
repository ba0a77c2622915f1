"""The policy: observation reader, network, action head and value head in one module."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from levelhead.actions import ActionHead
from levelhead.errors import ConfigError
from levelhead.masks import batch_of_one, read_mask, require_legal, split_mask
from levelhead.networks.network import Network, State
from levelhead.networks.observation import ObservationReader
from levelhead.numerics import pick
from levelhead.spaces import Space
from levelhead.tree import Tree, tree_leaves, tree_map
from levelhead.values import ValueHead


class Policy(nn.Module):
    """An agent: how to act, and what the critic thinks of a state.

    Args:
        reader: of observations.
        network: the torsos.
        action_head: reads the actor's features.
        value_head: reads the critic's features.
        action_space: what the environment takes, for those who want to compare; None where unknown.
        tasks: names of those that it plays, one per output of the value head; empty where there is one alone.
    """

    def __init__(
        self,
        reader: ObservationReader,
        network: Network,
        action_head: ActionHead,
        value_head: ValueHead,
        action_space: Space | None = None,
        tasks: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.action_space = action_space
        self.reader = reader
        self.network = network
        self.action_head = action_head
        self.value_head = value_head
        self.remembers = bool(tree_leaves(network.initial_state(1)))
        self._state: State | None = None
        self._begins = torch.ones(0, dtype=torch.bool)

    @property
    def observation_space(self) -> Space:
        return self.reader.space

    @property
    def device(self) -> torch.device:
        return self.value_head.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters, and of what networks read."""
        return self.value_head.linear.weight.dtype

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by optimiser group; a group without parameters is left out."""
        groups = {
            "shared": list(self.network.shared.parameters()),
            "actor": [*self.network.actor.parameters(), *self.action_head.parameters()],
            "critic": [*self.network.critic.parameters(), *self.value_head.parameters()],
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    # -- T steps of N environments, in rows ------------------------------------------------------------------------

    def actor_features(self, x: Tree, state: State, reset: Tensor) -> tuple[Tensor, State]:
        """What the action head reads, and the state after the last step; the critic's own memory stays where it was.

        Args:
            x: `[T * N, ...]`, time-major, as the reader answers it.
            state: before the first step.
            reset: bool `[T, N]`, True where an episode begins. Acting is the case T = 1.
        """
        x, shared = self.network.shared(x, state.shared, reset)
        features, actor = self.network.actor(x, state.actor, reset)
        return features, State(shared, actor, state.critic)

    def critic_features(self, x: Tree, state: State, reset: Tensor) -> tuple[Tensor, State]:
        """What the value head reads; as `actor_features`, with the actor's own memory staying where it was."""
        x, shared = self.network.shared(x, state.shared, reset)
        features, critic = self.network.critic(x, state.critic, reset)
        return features, State(shared, state.actor, critic)

    def critic_features_alone(self, x: Tree, state: State, reset: Tensor) -> Tensor:
        """What the value head reads, without gradient for the shared part."""
        with torch.no_grad():
            shared, _ = self.network.shared(x, state.shared, reset)
        return self.network.critic(shared, state.critic, reset)[0]

    def features(self, x: Tree, state: State, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actor's and critic's features from one pass through the shared part."""
        shared, _ = self.network.shared(x, state.shared, reset)
        return self.network.actor(shared, state.actor, reset)[0], self.network.critic(shared, state.critic, reset)[0]

    def remember(self, x: Tree, state: State, reset: Tensor) -> State:
        """The state after these steps, of all three torsos."""
        x, shared = self.network.shared(x, state.shared, reset)
        return State(
            shared, self.network.actor(x, state.actor, reset)[1], self.network.critic(x, state.critic, reset)[1]
        )

    # -- for callers who go step by step ---------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self,
        observation: npt.ArrayLike | Tree,
        action_mask: Any = None,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Actions as the environment takes them, for one observation or a batch.

        A policy with memory remembers from call to call: call `reset` where an episode begins. One begins by itself
        with the first call, and where the number of observations changes.

        Args:
            observation: in the structure and shapes of the observation space, or a batch of such; arrays or tensors. A
                dict may hold the mask beside them, under `action_mask`.
            action_mask: what is legal, in any form in which environments give it (see `read_mask`); None for all.
            sample: draw from the policy; where False, the most probable action.
            generator: on the CPU, for the draw; torch's global one where not given.

        Returns:
            One action, or a batch of them, as arrays in the structure of the action space and within its bounds.

        Raises:
            ConfigError: observation or mask doesn't fit, or the mask leaves nothing legal.
        """
        observation, found = split_mask(observation, self.observation_space)
        given = self.reader.tensors(observation, self.device)
        leading = self.reader.leading(given)
        if len(leading) > 1:
            raise ConfigError(f"the batch of observations has shape {leading}; accepted: one observation, or a list")
        single = not leading
        rows = tree_map(lambda x: x.unsqueeze(0), given) if single else given
        n = 1 if single else leading[0]
        mask = self._mask(found if action_mask is None else action_mask, n, single)

        if self._state is None or len(self._begins) != n:
            self._state, self._begins = self.network.initial_state(n), torch.ones(n, dtype=torch.bool)
        reset = self._begins.to(self.device).unsqueeze(0)
        features, self._state = self.actor_features(self.reader(rows), self._state, reset)
        self._begins = torch.zeros_like(self._begins)
        if sample:
            noise = self.action_head.noise((1, n), generator or torch.default_generator)
            action, _ = self.action_head.sample(features, tree_map(lambda x: x[0].to(self.device), noise), mask)
        else:
            action = self.action_head.mode(features, mask)
        action = self.action_head.to_environment(action)
        return tree_map(lambda x: (x[0] if single else x).cpu().numpy(), action)

    def _mask(self, raw: Any, n: int, single: bool) -> Tree | None:
        if raw is None:
            return None
        if self.action_space is None:
            raise ConfigError("an action mask was given to a policy that was made without its action space")
        mask = read_mask(batch_of_one(raw) if single else raw, self.action_space, n)
        mask = tree_map(lambda x: x.to(self.device), mask)
        require_legal(self.action_head.legal(mask), "row")
        return mask

    def reset(self, index: int | Sequence[int] | None = None) -> None:
        """Lets `act` forget: an episode begins in the given rows of the batch, or in all of them.

        Raises:
            IndexError: there is no such row.
        """
        if index is None:
            self._state = None
        else:
            self._begins[index] = True

    @torch.no_grad()
    def values(self, observation: Tree) -> Tensor:
        """Values of each observation in reward units, one per task, `[L, K]`; changes no state.

        A policy with memory takes each as the first of an episode.
        """
        leading = self.reader.leading(observation)
        n = prod(leading)
        x = tree_map(lambda part: part.reshape(n, *part.shape[len(leading) :]), self.reader(observation))
        reset = torch.ones(1, n, dtype=torch.bool, device=self.device)
        features, _ = self.critic_features(x, self.network.initial_state(n), reset)
        return self.value_head(features).reshape(*leading, -1)

    def value(self, observation: Tree, task: Tensor | None = None) -> Tensor:
        """Value of each observation in reward units, for the task that it belongs to, `[L]`; changes no state.

        Args:
            observation: `[L, ...]`.
            task: `[L]` int64; needed where the policy plays several.
        """
        return pick(self.values(observation), task)
