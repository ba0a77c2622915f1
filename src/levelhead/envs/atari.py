"""Atari's games, preprocessed as is usual."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from levelhead.errors import ConfigError
from levelhead.threads import processors

FIXED = ("frameskip", "obs_type", "sound_obs", "continuous", "max_episode_steps")
"""Arguments of the games that the preprocessing decides, or would count in frames."""
VECTOR_OPTIONS = ("repeat_action_probability", "full_action_space", "max_num_frames_per_episode")
"""Arguments of the games that ALE's vector environment takes too."""
STACK = 4
"""Screens in an observation."""
MOST_IDLE = 30
"""Frames without an action at the beginning of an episode, at most."""


def is_atari(env_id: str) -> bool:
    """Whether an id means a single game of the Arcade Learning Environment, as `ALE/Pong-v5` does."""
    return re.fullmatch(r"([\w.]+:)?ALE/[\w-]+", env_id) is not None


def make_atari(env_id: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """A game that shows its last four screens, grey and 84 by 84: bytes `[4, 84, 84]`, the latest last.

    Episodes begin with 1 to 30 frames without an action. Each action is held for four frames; the screen is, pixel by
    pixel, the brighter of the last two. A lost life doesn't end an episode, and rewards stay as they are.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods; for lives, Machado et
    al. 2018, "Revisiting the Arcade Learning Environment".

    Args:
        env_id: as `is_atari` takes it.
        kwargs: reach the game's constructor.

    Raises:
        ConfigError: packages are missing, or an argument doesn't go with the preprocessing.
    """
    _require(env_id, kwargs, ("ale_py", "cv2"))
    # One frame at a time, as the wrapper counts them itself.
    game = gym.make(env_id, frameskip=1, disable_env_checker=True, **kwargs)
    return FrameStackObservation(AtariPreprocessing(game, MOST_IDLE), STACK)


class AtariEnvs(VectorEnv[Any, Any, Any]):
    """ALE's own vector environment, in C++ on as many threads as there are processors; shows what `make_atari` does.

    Screens, rewards and ends are the same, bit for bit, but for the limit on an episode's frames: idle ones don't count
    towards it here, so that it comes up to 30 of 108,000 frames later.

    Args:
        env_id: as `is_atari` takes it.
        num_envs: N.
        kwargs: arguments of the game's, of those in `VECTOR_OPTIONS`.

    Raises:
        ConfigError: `ale_py` is missing, or it takes no such argument.
    """

    def __init__(self, env_id: str, num_envs: int, kwargs: Mapping[str, Any]) -> None:
        _require(env_id, kwargs, ("ale_py",))
        unknown = sorted(kwargs.keys() - set(VECTOR_OPTIONS))
        if unknown:
            raise ConfigError(f"ALE's vector environment takes no {', '.join(unknown)}; backend sync does")
        given = {**gym.spec(env_id.rpartition(":")[2]).kwargs, **kwargs}
        made: Any = importlib.import_module("ale_py.vector_env").AtariVectorEnv
        # It writes into the metadata of its class, which would be those of all vector environments.
        self._games = type("Games", (made,), {"metadata": {}})(
            given["game"],
            num_envs,
            num_threads=min(num_envs, processors()),
            autoreset_mode=AutoresetMode.SAME_STEP,
            stack_num=STACK,
            noop_max=MOST_IDLE + 1,  # it draws fewer than that
            reward_clipping=False,
            use_fire_reset=False,
            **{name: given[name] for name in VECTOR_OPTIONS},
        )
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.single_observation_space: gym.Space[Any] = self._games.single_observation_space
        self.single_action_space: gym.Space[Any] = self._games.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._blank = np.zeros(num_envs, dtype=np.int64)
        """How many screens of each observation are older than the episode."""

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Environment i is seeded with `seed + i`, in 31 bits."""
        if isinstance(seed, list) or options:
            raise ConfigError("ALE's vector environment is reset with one seed for all, and without options")
        first, info = self._games.reset(seed=None if seed is None else seed % (2**31 - self.num_envs))
        return self._begun(first, info, np.ones(self.num_envs, dtype=np.bool_))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._games.step(actions)
        np.maximum(self._blank - 1, 0, out=self._blank)
        ended = terminated | truncated
        if ended.any():
            final = self._filled(info["final_obs"])
            observation, info = self._begun(observation, info, ended)
            info["final_obs"] = final
        else:
            self._filled(observation)
        return observation, reward, terminated, truncated, info

    def _begun(
        self, observation: npt.NDArray[np.uint8], info: dict[str, Any], rows: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Observations with the first ones of those rows' episodes; who drew no idle frame draws again."""
        self._blank[rows] = STACK - 1
        while (rows := rows & (info["episode_frame_number"] == 0)).any():
            observation, info = self._games.reset(options={"reset_mask": rows})
        return self._filled(observation), info

    def _filled(self, observation: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Screens from before an episode, which come black, as its first one."""
        for i in np.flatnonzero(self._blank):
            observation[i, : self._blank[i]] = observation[i, self._blank[i]]
        return observation


def _require(env_id: str, kwargs: Mapping[str, Any], packages: tuple[str, ...]) -> None:
    """Refuses arguments that the preprocessing decides, and missing packages."""
    for name in FIXED:
        if name in kwargs:
            raise ConfigError(f"env.kwargs hold {name}, which the preprocessing of Atari decides")
    for package in packages:  # importing ale_py registers the games
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f'{env_id} needs {package}, which is missing: pip install "levelhead[atari]"') from error
