"""Spaces: which ones a policy takes, what their tensors are, and how they are written as JSON."""

import math
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from levelhead.errors import ConfigError
from levelhead.tree import Tree, by_path, tree_leaves, tree_map

Space = gym.Space[Any]
CHOICES = (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
LARGEST = 1 << 26
"""Entries of a box that is read from a file, at most."""
DEEPEST = 32
"""Levels of nesting of a space that is read from a file, at most."""


def space_tree(space: Space) -> Tree:
    """Nested `Tuple` and `Dict` spaces as a tree whose leaves are spaces that are neither."""
    match space:
        case gym.spaces.Dict():
            return {key: space_tree(child) for key, child in space.spaces.items()}
        case gym.spaces.Tuple():
            return tuple(space_tree(child) for child in space.spaces)
        case _:
            return space


def observation_tree(space: Space) -> Tree:
    """`space_tree` of observations that a policy can read.

    Raises:
        ConfigError: it cannot.
    """
    return _checked(space, "observation", (gym.spaces.Box, *CHOICES), "Box, Discrete, MultiDiscrete, MultiBinary")


def action_tree(space: Space) -> Tree:
    """`space_tree` of actions that there are heads for.

    Raises:
        ConfigError: there is none for a part.
    """
    tree = _checked(
        space, "action", (gym.spaces.Box, *CHOICES), "Discrete, MultiDiscrete, MultiBinary, Box of real numbers"
    )
    for path, leaf in by_path(tree).items():
        if isinstance(leaf, gym.spaces.Box) and not np.issubdtype(leaf.dtype, np.floating):
            raise ConfigError(f"{_named('action', path)} is {leaf}; accepted: Box of real numbers, or a discrete space")
    return tree


def _checked(space: Space, what: str, accepted: tuple[type, ...], names: str) -> Tree:
    tree = space_tree(space)
    try:
        leaves = by_path(tree)
    except ValueError as error:
        raise ConfigError(f"{what} space {space}: {error}") from error
    if not leaves:
        raise ConfigError(f"{what} space {space} is empty")
    for path, leaf in leaves.items():
        if not isinstance(leaf, accepted):
            raise ConfigError(f"{_named(what, path)} is {leaf}; accepted: {names}, and Tuple and Dict of these")
        if math.prod(leaf.shape or ()) == 0:
            raise ConfigError(f"{_named(what, path)} is {leaf}, which holds no number")
    return tree


def _named(what: str, path: str) -> str:
    return f"{what} space {path!r}" if path else f"the {what} space"


def choices_of(space: Space) -> tuple[list[int], list[int]]:
    """How many values each entry of a discrete space has, and the first of them."""
    match space:
        case gym.spaces.Discrete():
            return [int(space.n)], [int(space.start)]
        case gym.spaces.MultiDiscrete():
            return space.nvec.ravel().tolist(), space.start.ravel().tolist()
        case gym.spaces.MultiBinary():
            entries = math.prod(space.shape)
            return [2] * entries, [0] * entries
        case _:
            raise TypeError(f"{space} is not discrete")


def tensor_dtype(space: Space) -> torch.dtype:
    """What a policy keeps values of a space in: real numbers as float32, bytes as they are, the rest as int64."""
    dtype = np.dtype(space.dtype)
    if np.issubdtype(dtype, np.floating):
        return torch.float32
    return torch.uint8 if dtype.itemsize == 1 and dtype.kind in "ub" else torch.int64


def same_shapes(one: Space, other: Space) -> bool:
    """Whether two spaces have the same structure, shapes and kinds; bounds may differ."""
    try:
        alike = tree_map(_alike, space_tree(one), space_tree(other))
    except ValueError:
        return False
    return all(tree_leaves(alike))


def _alike(one: Space, other: Space) -> bool:
    if type(one) is not type(other) or one.shape != other.shape:
        return False
    return not isinstance(one, CHOICES) or choices_of(one) == choices_of(other)


def zeros(space: Space, leading: tuple[int, ...], device: torch.device) -> Tree:
    """A tree of zeros with so many values of a space."""

    def leaf(part: Space) -> torch.Tensor:
        return torch.zeros(*leading, *(part.shape or ()), dtype=tensor_dtype(part), device=device)

    return tree_map(leaf, space_tree(space))


# -- JSON ----------------------------------------------------------------------------------------------------------


def to_json(space: Space) -> dict[str, Any]:
    """A space that a saved policy can be rebuilt for, without its environment."""
    match space:
        case gym.spaces.Discrete():
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
        case gym.spaces.MultiDiscrete():
            counts, start = space.nvec.tolist(), space.start.tolist()
            return {"kind": "multidiscrete", "nvec": counts, "start": start, "dtype": str(space.dtype)}
        case gym.spaces.MultiBinary():
            return {"kind": "multibinary", "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n]}
        case gym.spaces.Box():
            bounds = {"low": _bound_to_json(space.low), "high": _bound_to_json(space.high)}
            return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case gym.spaces.Dict():
            # As pairs: the order of keys is part of the space.
            return {"kind": "dict", "spaces": [[key, to_json(child)] for key, child in space.spaces.items()]}
        case gym.spaces.Tuple():
            return {"kind": "tuple", "spaces": [to_json(child) for child in space.spaces]}
        case _:
            raise ConfigError(f"no way to write {space} down")


def from_json(data: dict[str, Any], depth: int = 0) -> Space:
    """The inverse of `to_json`; `depth` counts the spaces around this one.

    Raises:
        ValueError, LookupError, TypeError: it is not what `to_json` writes, too large, or nested too deeply.
    """
    if depth > DEEPEST:
        raise ValueError(f"spaces nested more than {DEEPEST} deep")
    match data["kind"]:
        case "discrete":
            return _space(gym.spaces.Discrete(data["n"], start=data["start"], dtype=np.dtype(data["dtype"]).type))
        case "multidiscrete":
            dtype = np.dtype(data["dtype"]).type
            return _space(gym.spaces.MultiDiscrete(data["nvec"], start=data["start"], dtype=dtype))
        case "multibinary":
            return _space(gym.spaces.MultiBinary(data["n"]))
        case "box":
            dtype = np.dtype(data["dtype"])
            low, high = (_bound_from_json(data[name], data["shape"], dtype) for name in ("low", "high"))
            return gym.spaces.Box(low, high, dtype=dtype.type)
        case "dict":
            # Pairs keep their order; from a dict Gymnasium would sort.
            return gym.spaces.Dict([(key, from_json(child, depth + 1)) for key, child in data["spaces"]])
        case "tuple":
            return gym.spaces.Tuple([from_json(child, depth + 1) for child in data["spaces"]])
        case kind:
            raise ValueError(f"unknown kind of space {kind!r}")


def _space(space: object) -> Space:
    return cast("Space", space)


def _bound_to_json(bound: npt.NDArray[Any]) -> list[float | str]:
    """Every entry, or one for all where they are equal; infinities as text, which JSON has no numbers for."""
    values = [x.item() if np.isfinite(x) else str(x) for x in bound.ravel()]
    return values[:1] if len(set(values)) == 1 else values


def _bound_from_json(values: list[float | str], shape: list[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if math.prod(shape) > LARGEST:
        raise ValueError(f"a box of shape {shape}; accepted: at most {LARGEST:,} entries")
    flat = np.array([float(x) if isinstance(x, str) else x for x in values], dtype)
    return np.broadcast_to(flat, math.prod(shape)).reshape(shape)
