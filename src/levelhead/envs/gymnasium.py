"""Gymnasium's vector environments, in whichever autoreset mode they come."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from levelhead.envs.vec import Step, VecEnv
from levelhead.errors import ConfigError

Array = npt.NDArray[Any]


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment behind the `VecEnv` protocol; arrays are shared with torch, not copied.

    All three autoreset modes tell the same story: every episode's true final observation reaches the caller, and rows
    in which an environment was only being reset are marked invalid.

    Args:
        env: a vector environment whose metadata name its autoreset mode.

    Raises:
        ConfigError: the mode is missing from the metadata, or unknown.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        try:
            self.mode = AutoresetMode(env.metadata.get("autoreset_mode"))
        except ValueError as error:
            raise ConfigError(
                f"{env} doesn't say how it resets: metadata['autoreset_mode'] must be one of"
                f" {', '.join(m.name for m in AutoresetMode)}; {error}"
            ) from error
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self._resetting = np.zeros(self.num_envs, dtype=np.bool_)

    def reset(self, seed: int) -> Tensor:
        observation, _ = self.env.reset(seed=seed)
        self._resetting = np.zeros(self.num_envs, dtype=np.bool_)
        return torch.from_numpy(observation)

    def step(self, action: Tensor) -> Step:
        array = action.cpu().numpy().astype(self.action_space.dtype, copy=False)
        observation, reward, terminated, truncated, info = self.env.step(array)
        ended = terminated | truncated
        valid = final = None
        match self.mode:
            case AutoresetMode.NEXT_STEP:
                if self._resetting.any():
                    valid = torch.from_numpy(~self._resetting)
                self._resetting = ended
            case AutoresetMode.SAME_STEP:
                if ended.any():
                    final = _with_rows(observation, ended, info["final_obs"])
            case AutoresetMode.DISABLED:
                if ended.any():
                    final = torch.from_numpy(observation.copy())
                    observation, _ = self.env.reset(options={"reset_mask": ended})
        return Step(
            torch.from_numpy(observation),
            torch.from_numpy(np.asarray(reward)),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
            valid,
            final,
        )

    def close(self) -> None:
        self.env.close()


def _with_rows(observation: Array, rows: Array, replacements: Sequence[Array]) -> Tensor:
    final = observation.copy()
    for i in np.flatnonzero(rows).tolist():
        final[i] = replacements[i]
    return torch.from_numpy(final)


def make_gymnasium(
    env: str | Callable[[], gym.Env[Any, Any]], num_envs: int, kwargs: Mapping[str, Any] | None = None
) -> GymnasiumVecEnv:
    """N environments in this process, by registered id or by a function that makes one.

    Args:
        env: id in Gymnasium's registry, or an environment factory.
        num_envs: N.
        kwargs: reach the constructor of an environment given by id.

    Raises:
        ConfigError: the id is unknown, the environment's dependencies are missing, or it refuses the arguments.
    """
    make = partial(gym.make, env, disable_env_checker=True, **(kwargs or {})) if isinstance(env, str) else env
    try:
        vector = SyncVectorEnv([make] * num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except gym.error.DependencyNotInstalled as error:
        raise ConfigError(f"{env}: {error}. levelhead's extras bring such dependencies: box2d, mujoco") from error
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ConfigError(f"cannot make {env}: {error}") from error
    return GymnasiumVecEnv(vector)
