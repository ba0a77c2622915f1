"""Spaces as JSON, so that a saved policy can be rebuilt without its environment."""

from typing import Any, cast

import gymnasium as gym
import numpy as np

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
    """A Box or Discrete space; infinite bounds become null."""
    match space:
        case gym.spaces.Discrete():
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
        case gym.spaces.Box():
            bounds = {
                name: [float(x) if np.isfinite(x) else None for x in bound.ravel()]
                for name, bound in (("low", space.low), ("high", space.high))
            }
            return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case _:
            raise ConfigError(f"no way to write {space} down")


def from_json(data: dict[str, Any]) -> gym.Space[Any]:
    """The inverse of `to_json`."""
    if data["kind"] == "discrete":
        return cast("gym.Space[Any]", gym.spaces.Discrete(data["n"], start=data["start"]))
    if data["kind"] != "box":
        raise ValueError(f"unknown kind of space {data['kind']!r}")
    dtype = np.dtype(data["dtype"])
    low = np.array([-np.inf if x is None else x for x in data["low"]], dtype).reshape(data["shape"])
    high = np.array([np.inf if x is None else x for x in data["high"]], dtype).reshape(data["shape"])
    return gym.spaces.Box(low, high, dtype=dtype.type)
