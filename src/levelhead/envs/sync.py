"""Environments one after another, with as little as possible in between."""

import reprlib
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from levelhead.errors import ConfigError
from levelhead.masks import MASK_KEY
from levelhead.tree import tree_map

Notes = list[tuple[int, dict[str, Any]]]
"""What is passed on of infos, each with the environment's number."""


@dataclass(frozen=True)
class Room:
    """Arrays of N rows that environments write their answers to."""

    observation: Any
    reward: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]

    def rows(self, start: int, stop: int) -> "Room":
        """Some of them, in the same memory."""
        observation = tree_map(lambda x: x[start:stop], self.observation)
        return Room(observation, self.reward[start:stop], self.terminated[start:stop], self.truncated[start:stop])


def make_room(space: gym.Space[Any], rows: int, zeros: Callable[..., npt.NDArray[Any]] = np.zeros) -> Room:
    """Room for so many environments that observe `space`; `zeros` allocates it, given shape and dtype."""
    observation = create_empty_array(space, rows, fn=zeros)
    return Room(observation, zeros(rows, dtype=np.float64), *(zeros(rows, dtype=np.bool_) for _ in range(2)))


def reset_each(
    envs: Sequence[gym.Env[Any, Any]], room: Room, seeds: Iterable[int | None], options: dict[str, Any] | None
) -> Notes:
    """Begins new episodes, whose first observations go to the rows."""
    notes: Notes = []
    for i, (env, seed) in enumerate(zip(envs, seeds, strict=True)):
        observation, info = _reset(env, seed=seed, options=options)
        put(room.observation, i, observation)
        if MASK_KEY in info:
            notes.append((i, {MASK_KEY: info[MASK_KEY]}))
    return notes


def step_each(envs: Sequence[gym.Env[Any, Any]], room: Room, actions: Iterable[Any]) -> Notes:
    """A step of each; where it ends an episode, the row has the next one's first observation, and a note the last."""
    notes: Notes = []
    for i, (env, action) in enumerate(zip(envs, actions, strict=True)):
        answer = env.step(action)
        try:
            observation, room.reward[i], terminated, truncated, info = answer
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"an environment answered a step with {reprlib.repr(answer)}; expected an observation, a reward that is"
                f" one number, whether it terminated or was truncated, and infos ({error})"
            ) from error
        room.terminated[i], room.truncated[i] = terminated, truncated
        if terminated or truncated:
            # A copy, as environments may write the next episode's first into the same place.
            notes.append((i, {"final_obs": deepcopy(observation)}))
            observation, info = _reset(env)
        put(room.observation, i, observation)
        if MASK_KEY in info:
            notes.append((i, {MASK_KEY: info[MASK_KEY]}))
    return notes


def _reset(env: gym.Env[Any, Any], **options: Any) -> tuple[Any, dict[str, Any]]:
    """A new episode's first observation, and infos."""
    answer: Any = env.reset(**options)  # whatever it is
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict):
        return answer
    raise ConfigError(
        f"an environment answered a reset with {reprlib.repr(answer)}; expected an observation and a dict of infos"
    )


def seeds_of(seed: int | list[int | None] | None, rows: int) -> list[int | None]:
    """Environment i is seeded with `seed + i`, or with its own of a list."""
    return seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(rows)]


class StackedEnvs(VectorEnv[Any, Any, Any]):
    """What single environments of one kind answer, in rows; an episode that ends is followed by the next at once."""

    _room: Room

    def _describe(self, first: gym.Env[Any, Any], rows: int) -> None:
        """They are all as the first one."""
        self.num_envs = rows
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.spec, self.render_mode = first.spec, first.render_mode
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(self.single_observation_space, rows)
        self.action_space = batch_space(self.single_action_space, rows)

    def _gathered(self, notes: Notes) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for i, note in notes:
            try:
                infos = self._add_info(infos, note, i)
            except ValueError as error:
                raise ConfigError(f"the {' and '.join(note)} of environment {i} is unlike others': {error}") from error
        return infos

    def _answer(self, infos: dict[str, Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        room = self._room
        return room.observation, room.reward.copy(), room.terminated.copy(), room.truncated.copy(), infos


class SyncEnvs(StackedEnvs):
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
        self._describe(self.envs[0], len(self.envs))
        for env in self.envs[1:]:
            for given, expected in (
                (env.observation_space, self.single_observation_space),
                (env.action_space, self.single_action_space),
            ):
                if given != expected:
                    raise ConfigError(f"the environments differ: one has {given}, another {expected}")
        self._room = make_room(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Environment i is seeded with `seed + i`, or with its own of a list."""
        notes = reset_each(self.envs, self._room, seeds_of(seed, self.num_envs), options)
        return self._room.observation, self._gathered(notes)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self._answer(self._gathered(step_each(self.envs, self._room, iterate(self.action_space, actions))))

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002  # of the protocol
        for env in self.envs:
            env.close()


def put(rows: Any, i: int, single: Any) -> None:
    """Writes a single observation into row i; along the rows, as a tuple may be an array.

    Raises:
        ConfigError: its shape is another than a row's.
    """
    if isinstance(rows, dict):
        for key, part in rows.items():
            put(part, i, single[key])
    elif isinstance(rows, tuple):
        for part, own in zip(rows, single, strict=True):
            put(part, i, own)
    elif (shape := getattr(single, "shape", None)) == rows.shape[1:] or shape is None:
        rows[i] = single
    else:
        raise ConfigError(f"an environment's observation has shape {shape}; expected {rows.shape[1:]}")
