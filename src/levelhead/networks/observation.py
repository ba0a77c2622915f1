"""Observations as environments give them, brought to what networks read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from levelhead.errors import ConfigError
from levelhead.layers import OneHot
from levelhead.networks.normalizer import ObservationNormalizer
from levelhead.numerics import Reduce, local, moments
from levelhead.spaces import Space, choices_of, observation_tree
from levelhead.tree import Tree, by_path, paths, tree_map

SMALLEST_IMAGE = 32
"""Bytes with three axes, of which two are at least this long, are an image."""


class Reader(nn.Module, ABC):
    """One part of an observation, `[L, *raw_shape]` of any dtype to `[L, *shape]`, L being any leading shape."""

    like: Tensor
    """Empty, of the precision that networks are in: it is cast along with them."""

    def __init__(self, raw_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.raw_shape = raw_shape
        self.shape = shape
        self.register_buffer("like", torch.empty(0), persistent=False)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """What networks read."""

    def update(self, x: Tensor, valid: Tensor, apply: Tensor, reduce: Reduce) -> None:
        """Takes valid samples of all ranks into the statistics, if there are any, where `apply` (0-d bool)."""


class Numbers(Reader):
    """Real numbers, flattened to `[L, D]`, float32 if the policy is; with mean 0 and std 1 if normalised."""

    def __init__(self, raw_shape: tuple[int, ...], normalize: bool) -> None:
        super().__init__(raw_shape, (prod(raw_shape),))
        self.normalizer = ObservationNormalizer(prod(raw_shape)) if normalize else None

    def forward(self, x: Tensor) -> Tensor:
        flat = self._flat(x).to(self.like.dtype)
        return flat if self.normalizer is None else self.normalizer(flat)

    def update(self, x: Tensor, valid: Tensor, apply: Tensor, reduce: Reduce) -> None:
        if self.normalizer is not None:
            flat = self._flat(x).flatten(0, -2)
            self.normalizer.update(moments(flat, valid.reshape(-1, 1), reduce), apply)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.ndim - len(self.raw_shape)], *self.shape)


class Image(Reader):
    """Bytes `[L, H, W, C]` or `[L, C, H, W]` to bytes `[L, C, H, W]`: the shortest of the outer axes is the channels'.

    They stay bytes, a quarter of the memory, until a network reads them.
    """

    def __init__(self, raw_shape: tuple[int, ...]) -> None:
        first, middle, last = raw_shape
        self._channels_last = last < first
        super().__init__(raw_shape, (last, first, middle) if self._channels_last else raw_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, -3) if self._channels_last else x


class Choices(Reader):
    """Whole numbers out of a few each, as one-hot codes side by side, `[L, sum(counts)]`."""

    start: Tensor

    def __init__(self, raw_shape: tuple[int, ...], counts: Sequence[int], start: Sequence[int]) -> None:
        super().__init__(raw_shape, (sum(counts),))
        self.register_buffer("start", torch.tensor(start), persistent=False)
        self.one_hot = OneHot(counts)

    def forward(self, x: Tensor) -> Tensor:
        leading = x.shape[: x.ndim - len(self.raw_shape)]
        index = x.reshape(*leading, len(self.start)).long() - self.start
        return self.one_hot(index).to(self.like.dtype)


class ObservationReader(nn.Module):
    """All parts of an observation, in the environment's own structure.

    Args:
        space: of a single environment's observations.
        normalize: bring every real number to mean 0 and std 1.

    Attributes:
        shapes: what networks read, by path: `(D,)` of float32, or `(C, H, W)` of bytes.

    Raises:
        ConfigError: the space has a part that nothing reads.
    """

    def __init__(self, space: Space, normalize: bool) -> None:
        super().__init__()
        self.space = space
        tree = observation_tree(space)
        self._paths = paths(tree)
        self._reader = {path: _reader(leaf, normalize) for path, leaf in by_path(tree).items()}
        self.parts = nn.ModuleList(self._reader.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: reader.shape for path, reader in self._reader.items()}

    def forward(self, observation: Tree) -> Tree:
        """`[L, ...]` as the environment gives it to `[L, ...]` as networks read it."""
        return tree_map(lambda path, x: self._reader[path](x), self._paths, observation)

    def tensors(self, observation: Any, device: torch.device) -> Tree:
        """An observation of arrays, lists or tensors, in the space's structure, as tensors.

        Raises:
            ConfigError: its structure is another one.
        """
        try:
            return _tensors(self._paths, observation, device)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the observation doesn't fit {self.space}: {error!r}") from error

    def update(self, observation: Tree, valid: Tensor, apply: Tensor, reduce: Reduce = local) -> None:
        """Takes valid samples into the statistics, where `apply` (0-d bool).

        Args:
            observation: `[L, ...]`.
            valid: `[L]` bool.
            apply: where False, nothing changes.
            reduce: sums over ranks.
        """
        tree_map(lambda path, x: self._reader[path].update(x, valid, apply, reduce), self._paths, observation)

    def leading(self, observation: Tree) -> tuple[int, ...]:
        """L: what comes before the shape of a single observation.

        Raises:
            ConfigError: structure or shapes are not those of the space, or its parts differ in L.
        """
        found: set[tuple[int, ...]] = set()

        def look(path: str, x: Tensor) -> None:
            shape = self._reader[path].raw_shape
            cut = x.ndim - len(shape)
            if cut < 0 or tuple(x.shape[cut:]) != shape:
                name = f"observation {path!r}" if path else "observation"
                raise ConfigError(f"{name} has shape {tuple(x.shape)}; expected {shape} or a batch of it")
            found.add(tuple(x.shape[:cut]))

        try:
            tree_map(look, self._paths, observation)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"the observation doesn't fit {self.space}: {error}") from error
        if len(found) > 1:
            raise ConfigError(f"the observation's parts come in batches of different shapes: {sorted(found)}")
        return found.pop()


def _reader(space: Space, normalize: bool) -> Reader:
    shape = space.shape or ()
    if not isinstance(space, gym.spaces.Box):
        return Choices(shape, *choices_of(space))
    if is_image(space):
        return Image(shape)
    return Numbers(shape, normalize)


def is_image(space: gym.spaces.Box) -> bool:
    """Whether a Box holds bytes with three axes, two of them long enough to be those of an image."""
    sides = sorted(space.shape)[1:]
    return space.dtype == np.uint8 and len(space.shape) == 3 and min(sides) >= SMALLEST_IMAGE


def _tensors(structure: Tree, observation: Any, device: torch.device) -> Tree:
    """Along `structure`, as a lone tuple of numbers is an array where a part of real numbers is meant."""
    if isinstance(structure, dict):
        if not isinstance(observation, dict) or sorted(observation) != sorted(structure):
            given = sorted(observation) if isinstance(observation, dict) else type(observation).__name__
            raise ValueError(f"expected keys {sorted(structure)}, not {given}")
        return {key: _tensors(child, observation[key], device) for key, child in structure.items()}
    if isinstance(structure, tuple):
        return tuple(_tensors(s, x, device) for s, x in zip(structure, observation, strict=True))
    x = observation if isinstance(observation, Tensor) else torch.from_numpy(np.array(observation))
    return x.to(device)
