"""The torsos of a policy: layers, some of which may remember."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from levelhead.networks.memory import Memory
from levelhead.tree import Tree, tree_map


class Torso(nn.Module):
    """Layers one after another; a `Memory` may be among them.

    Args:
        layers: each `[B, D] -> [B, D']`, the first one from whatever the torso is given; or a `Memory`.

    Attributes:
        reduced: whether layers without memory compute in bfloat16, from float32 and to float32.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.reduced = False

    def initial_state(self, n: int) -> tuple[Tree, ...]:
        """That of each memory, for n sequences."""
        return tuple(layer.initial_state(n) for layer in self.layers if isinstance(layer, Memory))

    def forward(self, x: Any, state: tuple[Tree, ...], reset: Tensor) -> tuple[Any, tuple[Tree, ...]]:
        """Features of T steps of N sequences, in rows, and the state after the last step.

        Args:
            x: `[T * N, ...]`, time-major.
            state: one per memory, before the first step.
            reset: bool `[T, N]`, True where an episode begins.
        """
        remaining = list(state)
        for layer in self.layers:
            if isinstance(layer, Memory):
                y, after = layer(x.unflatten(0, reset.shape), remaining.pop(0), reset)
                x = y.flatten(0, 1)
                remaining.append(after)
            elif self.reduced:
                with torch.autocast(reset.device.type, torch.bfloat16):
                    x = layer(x)
                x = tree_map(torch.Tensor.float, x)
            else:
                x = layer(x)
        return x, tuple(remaining)


class State(NamedTuple):
    """What a network remembers, by torso; leaves `[N, ...]`. Empty where it has no memory."""

    shared: tuple[Tree, ...]
    actor: tuple[Tree, ...]
    critic: tuple[Tree, ...]


class Network(nn.Module):
    """Three torsos: observations through `shared`, then through `actor` and `critic` to the features of the heads.

    The parts are optimised as three groups, each with its own learning rate and gradient clip. What they read is
    float32 `[B, D]` where observations are real numbers of any shape, one-hot codes where they are discrete, bytes
    `[B, C, H, W]` where they are images, and dicts or tuples of these where the observation space nests them.

    Args:
        shared: to `[B, S]`; `nn.Identity()` for an actor and critic that share nothing.
        actor: to `[B, actor_dim]`.
        critic: to `[B, critic_dim]`.
        actor_dim, critic_dim: number of features that the heads receive.

    Each part is a module, or a `Torso` of modules and memories.
    """

    def __init__(self, shared: nn.Module, actor: nn.Module, critic: nn.Module, actor_dim: int, critic_dim: int) -> None:
        super().__init__()
        self.shared, self.actor, self.critic = (
            part if isinstance(part, Torso) else Torso(part) for part in (shared, actor, critic)
        )
        self.actor_dim = actor_dim
        self.critic_dim = critic_dim

    def initial_state(self, n: int) -> State:
        """Of n sequences at the beginning of an episode."""
        return State(*(part.initial_state(n) for part in (self.shared, self.actor, self.critic)))
