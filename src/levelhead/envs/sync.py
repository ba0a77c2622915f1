"""Environments of one process, one after another, with as little as possible in between."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from levelhead.errors import ConfigError
from levelhead.masks import MASK_KEY


class SyncEnvs(VectorEnv[Any, Any, Any]):
    """As Gymnasium's `SyncVectorEnv` that resets in the step that ends an episode and shares its observations.

    Of an environment's info only the mask of legal actions is passed on. Gymnasium gathers all of it at every step,
    which takes longer than the step itself where that is a short one.

    Args:
        makes: a function per environment that makes it.

    Raises:
        ConfigError: their spaces differ.
    """

    def __init__(self, makes: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        self.envs = [make() for make in makes]
        self.num_envs = len(self.envs)
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.spec, self.render_mode = first.spec, first.render_mode
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        for env in self.envs[1:]:
            for given, expected in (
                (env.observation_space, self.single_observation_space),
                (env.action_space, self.single_action_space),
            ):
                if given != expected:
                    raise ConfigError(f"the environments differ: one has {given}, another {expected}")
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observation = create_empty_array(self.single_observation_space, self.num_envs, fn=np.zeros)
        self._reward = np.zeros(self.num_envs, dtype=np.float64)
        self._terminated, self._truncated = np.zeros((2, self.num_envs), dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Environment i is seeded with `seed + i`, or with its own of a list."""
        infos: dict[str, Any] = {}
        seeds = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(self.num_envs)]
        for i, (env, own) in enumerate(zip(self.envs, seeds, strict=True)):
            observation, info = env.reset(seed=own, options=options)
            put(self._observation, i, observation)
            if MASK_KEY in info:
                infos = self._add_info(infos, {MASK_KEY: info[MASK_KEY]}, i)
        return self._observation, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        infos: dict[str, Any] = {}
        for i, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            observation, self._reward[i], terminated, truncated, info = env.step(action)
            self._terminated[i], self._truncated[i] = terminated, truncated
            if terminated or truncated:
                # A copy, as environments may write the next episode's first into the same place.
                infos = self._add_info(infos, {"final_obs": deepcopy(observation)}, i)
                observation, info = env.reset()
            put(self._observation, i, observation)
            if MASK_KEY in info:
                infos = self._add_info(infos, {MASK_KEY: info[MASK_KEY]}, i)
        return self._observation, self._reward.copy(), self._terminated.copy(), self._truncated.copy(), infos

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002  # of the protocol
        for env in self.envs:
            env.close()


def put(rows: Any, i: int, single: Any) -> None:
    """Writes a single observation into row i; along the rows, as a tuple may be an array."""
    if isinstance(rows, dict):
        for key, part in rows.items():
            put(part, i, single[key])
    elif isinstance(rows, tuple):
        for part, own in zip(rows, single, strict=True):
            put(part, i, own)
    else:
        rows[i] = single
