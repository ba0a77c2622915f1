"""Spaces as JSON, so that a saved policy can be rebuilt without its environment."""

import math
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from levelhead.errors import ConfigError


def require_observation(space: gym.Space[Any]) -> gym.spaces.Box:
    """`space` if a policy can read it.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(space, gym.spaces.Box):
        raise ConfigError(f"observation space {space} is not supported; accepted: Box")
    return space


def require_action(space: gym.Space[Any]) -> gym.spaces.Discrete | gym.spaces.Box:
    """`space` if there is an action head for it.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(space, gym.spaces.Discrete):
        return space
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        return space
    raise ConfigError(f"no action head fits {space}; accepted: Discrete, or Box of real numbers with one axis")


def to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """A Box or Discrete space."""
    match space:
        case gym.spaces.Discrete():
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
        case gym.spaces.Box():
            bounds = {"low": _bound_to_json(space.low), "high": _bound_to_json(space.high)}
            return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case _:
            raise ConfigError(f"no way to write {space} down")


def from_json(data: dict[str, Any]) -> gym.Space[Any]:
    """The inverse of `to_json`."""
    if data["kind"] == "discrete":
        space = gym.spaces.Discrete(data["n"], start=data["start"], dtype=np.dtype(data["dtype"]).type)
        return cast("gym.Space[Any]", space)
    if data["kind"] != "box":
        raise ValueError(f"unknown kind of space {data['kind']!r}")
    dtype = np.dtype(data["dtype"])
    low, high = (_bound_from_json(data[name], data["shape"], dtype) for name in ("low", "high"))
    return gym.spaces.Box(low, high, dtype=dtype.type)


def _bound_to_json(bound: npt.NDArray[Any]) -> list[float | str]:
    """Every entry, or one for all where they are equal; infinities as text, which JSON has no numbers for."""
    values = [float(x) if np.isfinite(x) else str(x) for x in bound.ravel()]
    return values[:1] if len(set(values)) == 1 else values


def _bound_from_json(values: list[float | str], shape: list[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    flat = np.array([float(x) for x in values], dtype)
    return np.broadcast_to(flat, math.prod(shape)).reshape(shape)
