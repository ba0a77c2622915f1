"""Masks of legal actions, in the forms in which environments give them."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from levelhead.errors import ConfigError
from levelhead.spaces import Space, choices_of
from levelhead.tree import Tree, tree_map

Array = npt.NDArray[Any]
MASK_KEY = "action_mask"
"""Where environments put masks, in an observation that is a dict or in the info of a step."""


def without_mask(space: Space) -> tuple[Space, bool]:
    """An observation space without the mask that it may hold, and whether it held one."""
    if not isinstance(space, gym.spaces.Dict) or MASK_KEY not in space.spaces:
        return space, False
    return gym.spaces.Dict([(key, child) for key, child in space.spaces.items() if key != MASK_KEY]), True


def split_mask(observation: Any, space: Space) -> tuple[Any, Any]:
    """An observation without the mask that it may hold beside what `space` has, and that mask or None."""
    if not isinstance(observation, dict) or not isinstance(space, gym.spaces.Dict) or MASK_KEY in space.spaces:
        return observation, None
    return {key: x for key, x in observation.items() if key != MASK_KEY}, observation.get(MASK_KEY)


def batch_of_one(raw: Any) -> Any:
    """The mask of one environment as that of a batch of one."""
    return tree_map(lambda part: None if part is None else np.asarray(part)[None], raw)


def read_mask(raw: Any, space: Space, num_envs: int) -> Tree:
    """Masks of N environments as action heads take them: bool `[N, choices]`, or a dict of these by path.

    Args:
        raw: as N environments gave it, batched by Gymnasium. Of a discrete space: one number per choice, those of a
            MultiDiscrete side by side or as a tuple with an array for each; nothing but 0 means legal. Of a Tuple or
            Dict: the same, nested, where parts without a mask may be missing or None.
        space: of the actions.
        num_envs: N.

    Raises:
        ConfigError: the mask doesn't fit the space.
    """
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        masks = _by_path(raw, space, num_envs, "")
        if not masks:
            raise ConfigError(f"the action mask {raw!r} has nothing for any discrete part of {space}")
        return masks
    return _leaf(raw, space, num_envs, "")


def _by_path(raw: Any, space: Space, num_envs: int, path: str) -> dict[str, Tensor]:
    match space:
        case gym.spaces.Dict():
            children = dict(space.spaces)
            given = _parts_of_dict(raw, children, path)
        case gym.spaces.Tuple():
            children = {str(i): child for i, child in enumerate(space.spaces)}
            given = _parts_of_tuple(raw, path)
        case _:
            return {path: _leaf(raw, space, num_envs, path)}
    unknown = [key for key in given if key not in children]
    if unknown:
        raise ConfigError(f"the action mask has parts {unknown} that the action space {space} lacks")
    masks: dict[str, Tensor] = {}
    for key, part in given.items():
        if not _nothing(part):
            masks |= _by_path(part, children[key], num_envs, f"{path}/{key}" if path else key)
    return masks


def _parts_of_dict(raw: Any, children: Mapping[str, Space], path: str) -> dict[str, Any]:
    """Parts with N rows each, from a dict of them or from an array with a dict for each environment."""
    if _is_array_of(raw, dict):
        rows = [row or {} for row in raw]
        return {key: _array_of([row.get(key) for row in rows]) for row in rows for key in row}
    if not isinstance(raw, dict):
        raise ConfigError(f"the action mask of {path or 'a Dict space'} is {type(raw).__name__}; expected a dict")
    # Gymnasium marks which environments gave a part, under its name with an underscore before it.
    flags = {f"_{key}" for key in raw} - children.keys()
    given = {flag[1:]: raw[flag] for flag in flags & raw.keys()}
    return {key: _only(part, given.get(key)) for key, part in raw.items() if key not in flags}


def _only(part: Any, given: Any) -> Any:
    """A part that holds None for the environments that did not give it."""
    if not isinstance(part, np.ndarray) or given is None or given.all():
        return part
    return _array_of([row if known else None for row, known in zip(part, given, strict=True)])


def _parts_of_tuple(raw: Any, path: str) -> dict[str, Any]:
    """Parts with N rows each, from a tuple of them or from an array with a tuple for each environment."""
    if _is_array_of(raw, tuple):
        size = max(len(row) for row in raw if row is not None)
        raw = tuple(_array_of([None if row is None else row[i] for row in raw]) for i in range(size))
    if not isinstance(raw, tuple):
        raise ConfigError(f"the action mask of {path or 'a Tuple space'} is {type(raw).__name__}; expected a tuple")
    return {str(i): part for i, part in enumerate(raw)}


def _is_array_of(raw: Any, kind: type) -> bool:
    """Whether it has an object of that kind, or None, for each environment."""
    if not isinstance(raw, np.ndarray) or raw.dtype != object:
        return False
    return all(row is None or isinstance(row, kind) for row in raw)


def _array_of(items: list[Any]) -> Array:
    array = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        array[i] = item
    return array


def _nothing(part: Any) -> bool:
    return part is None or (isinstance(part, np.ndarray) and part.dtype == object and all(x is None for x in part))


def _leaf(raw: Any, space: Space, num_envs: int, path: str) -> Tensor:
    named = f"the action mask of {path!r}" if path else "the action mask"
    if isinstance(space, gym.spaces.Box):
        raise ConfigError(f"{named} masks {space}; only discrete choices can be masked")
    counts = choices_of(space)[0]
    try:
        if isinstance(raw, tuple):
            raw = _array_of(list(zip(*raw, strict=True)))
        if isinstance(raw, np.ndarray) and raw.dtype == object:
            raw = np.stack([_row(row, counts) for row in raw])
        given = np.asarray(raw)
        flat = given.reshape(len(given), -1)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{named} cannot be read: {error}") from error
    if flat.shape != (num_envs, sum(counts)):
        told = f"{flat.shape[1]} entries for each environment; {space} has {sum(counts)} choices"
        raise ConfigError(f"{named} has {told}. Its shape is {given.shape}, for {num_envs} environments")
    return torch.from_numpy(flat != 0)


def _row(row: Any, counts: list[int]) -> Array:
    """One environment's; everything is legal where it gave nothing."""
    if row is None:
        return np.ones(sum(counts))
    if not isinstance(row, tuple):
        return np.ravel(row)
    parts = [np.ravel(part) for part in row]
    sizes = [len(part) for part in parts]
    if sizes != counts:
        raise ValueError(f"it has {sum(sizes)} entries in parts of {sizes}, not {counts}")
    return np.concatenate(parts)


def require_legal(legal: Tensor, row: str) -> None:
    """Refuses masks that leave nothing to choose.

    Args:
        legal: bool `[N]`, of `ActionHead.legal`.
        row: what is counted, for the message.

    Raises:
        ConfigError: one does; names the rows.
    """
    if not bool(legal.all()):
        stuck = (~legal).nonzero().flatten().tolist()
        raise ConfigError(f"the action mask of {row} {', '.join(map(str, stuck))} leaves nothing legal")
