"""Atari's games, preprocessed as is usual."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from levelhead.errors import ConfigError

FIXED = ("frameskip", "obs_type", "sound_obs", "continuous", "max_episode_steps")
"""Arguments of the games that the preprocessing decides, or would count in frames."""


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
    for name in FIXED:
        if name in kwargs:
            raise ConfigError(f"env.kwargs hold {name}, which the preprocessing of Atari decides")
    for package in ("ale_py", "cv2"):  # importing the first registers the games
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f'{env_id} needs {package}, which is missing: pip install "levelhead[atari]"') from error
    # One frame at a time, as the wrapper counts them itself.
    game = gym.make(env_id, frameskip=1, disable_env_checker=True, **kwargs)
    return FrameStackObservation(AtariPreprocessing(game), 4)
