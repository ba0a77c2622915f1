"""Gymnasium's vector environments, in whichever autoreset mode they come."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from levelhead.envs.atari import is_atari, make_atari
from levelhead.envs.backends import ANY_FACTORY, NAMED, Backend, EnvPoolEnvs, choose_backend, make_vector
from levelhead.envs.processes import LOST, ProcessEnvs, Workers
from levelhead.envs.sync import SyncEnvs, put
from levelhead.envs.vec import ArrayStep, Step, VecEnv
from levelhead.errors import ConfigError
from levelhead.masks import MASK_KEY, read_mask, split_mask, without_mask
from levelhead.spaces import space_tree
from levelhead.tree import Tree, tree_map

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment behind the `VecEnv` protocol; arrays are shared with torch, not copied.

    All three autoreset modes tell the same story: every episode's true final observation reaches the caller, and rows
    in which an environment was only being reset are marked invalid.

    Masks of legal actions are taken from the key `action_mask` of a Dict observation, which the policy then doesn't
    observe, or from that key of the info of `reset` and every step.

    Args:
        env: a vector environment whose metadata name its autoreset mode.
        running: how it runs them, for people to read.

    Raises:
        ConfigError: the mode is missing from the metadata, or unknown.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], running: str = "") -> None:
        try:
            self.mode = AutoresetMode(env.metadata.get("autoreset_mode"))
        except ValueError as error:
            raise ConfigError(
                f"{env} doesn't say how it resets: metadata['autoreset_mode'] must be one of"
                f" {', '.join(m.name for m in AutoresetMode)}; {error}"
            ) from error
        self.env = env
        self.running = running
        self.num_envs = env.num_envs
        self.observation_space, self._mask_observed = without_mask(env.single_observation_space)
        self.action_space = env.single_action_space
        # Whoever overrides the one way of stepping means both.
        self.arrays = type(self).step is GymnasiumVecEnv.step
        # These go on while nobody waits for them.
        self._elsewhere = env if isinstance(env, ProcessEnvs | EnvPoolEnvs) and self.arrays else None
        self._action_tree = space_tree(self.action_space)
        self._kind = self.action_space.dtype
        # Where there is nothing to do around a step, but at ends of episodes; a class made of this one may do more.
        as_drawn = np.float32 if isinstance(self.action_space, gym.spaces.Box) else np.int64
        self._plain = type(self) is GymnasiumVecEnv and self._elsewhere is None and self._kind == as_drawn
        self._resetting = np.zeros(self.num_envs, dtype=np.bool_)
        self._nobody = np.zeros(self.num_envs, dtype=np.bool_)
        self._masked = False
        self._parts: dict[str, Tensor] | None = None

    def reset(self, seed: int) -> Tree:
        observation, info = self.env.reset(seed=seed)
        self._resetting = np.zeros(self.num_envs, dtype=np.bool_)
        self._masked = self._mask_observed or MASK_KEY in info
        self._parts = None
        self.action_mask = self._mask(observation, info, self._nobody)
        return tree_map(torch.from_numpy, self._observed(observation))

    def step(self, action: Tree) -> Step:
        return self.step_arrays(tree_map(lambda x: x.cpu().numpy(), action)).tensors()

    def step_arrays(self, action: Tree) -> ArrayStep:
        return self._answer(*self.env.step(self._cast(action)))

    def plain_step(self) -> Callable[[Any], Any] | None:
        return None if not self._plain or self._masked or np.count_nonzero(self._resetting) else self.env.step

    def read_plain(self, answer: Any) -> ArrayStep:
        return self._answer(*answer)

    # These two say again what the base class does: calling it would cost a thousandth of training, or two.
    def send(self, action: Tree) -> None:
        if self._elsewhere is None:
            self._sent = action
        else:
            self._elsewhere.step_async(self._cast(action))

    def receive(self) -> Step | ArrayStep:
        if self._elsewhere is not None:
            return self._answer(*self._elsewhere.step_wait())
        return self.step_arrays(self._sent) if self.arrays else self.step(self._sent)

    def _cast(self, action: Tree) -> Tree:
        """In the action space's own kinds of numbers."""
        if isinstance(action, np.ndarray) and action.dtype == self._kind:  # as it mostly is
            return action
        return tree_map(lambda space, x: x.astype(space.dtype, copy=False), self._action_tree, action)

    def _answer(
        self, observation: Any, reward: Array, terminated: Bools, truncated: Bools, info: Mapping[str, Any]
    ) -> ArrayStep:
        ended = terminated | truncated
        valid = final = None
        match self.mode:
            case AutoresetMode.NEXT_STEP:
                if np.count_nonzero(self._resetting):
                    valid = ~self._resetting
                self._resetting = ended
                self.action_mask = self._mask(observation, info, ended)
            case AutoresetMode.SAME_STEP:
                if np.count_nonzero(ended):
                    final = self._with_rows(observation, ended, info["final_obs"])
                if LOST in info:
                    valid = ~info[LOST]
                self.action_mask = self._mask(observation, info, self._nobody)
            case AutoresetMode.DISABLED:
                self.action_mask = self._mask(observation, info, ended)
                if ended.any():
                    final = tree_map(np.copy, self._observed(observation))
                    observation, fresh = self.env.reset(options={"reset_mask": ended})
                    first = self._mask(observation, fresh, ~ended)
                    if self.action_mask is not None:
                        self.action_mask = tree_map(torch.bitwise_and, self.action_mask, first)
        return ArrayStep(self._observed(observation), np.asarray(reward), terminated, truncated, valid, final)

    @property
    def restarts(self) -> int | None:
        return getattr(self.env, "restarts", None)

    def close(self) -> None:
        self.env.close()

    def _observed(self, observation: Any) -> Tree:
        return split_mask(observation, self.observation_space)[0] if self._mask_observed else observation

    def _with_rows(self, observation: Any, rows: Bools, replacements: Sequence[Any]) -> Tree:
        """Batched observations in which some rows are replaced by single ones."""
        final = tree_map(np.copy, split_mask(observation, self.observation_space)[0])
        for i in np.flatnonzero(rows).tolist():
            single, _ = split_mask(replacements[i], self.observation_space)
            put(final, i, single)
        return final

    def _mask(self, observation: Any, info: Mapping[str, Any], idle: Bools) -> Tree | None:
        """What is legal; True throughout in idle rows, which need no mask."""
        if not self._masked:
            if MASK_KEY in info:
                raise ConfigError(f"the environments' info holds {MASK_KEY!r} after a step, and did not after reset")
            return None
        if self._mask_observed:
            raw = observation[MASK_KEY]
        else:
            given: Bools = info.get(f"_{MASK_KEY}", np.full(self.num_envs, MASK_KEY in info))
            if not (given | idle).all():
                missing = np.flatnonzero(~(given | idle)).tolist()
                raise ConfigError(
                    f"the info of environments {missing} holds no {MASK_KEY!r}; that of others, or of reset, did"
                )
            if not given.any():
                return tree_map(torch.ones_like, self.action_mask)
            raw = info[MASK_KEY]
        free = torch.from_numpy(idle).unsqueeze(-1)
        masks = tree_map(lambda mask: mask | free, read_mask(raw, self.action_space, self.num_envs))
        return self._with_all_parts(masks) if isinstance(masks, dict) else masks

    def _with_all_parts(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts that had masks after reset; one that has none now is free."""
        if self._parts is None:
            self._parts = masks
        if not masks.keys() <= self._parts.keys():
            raise ConfigError(f"action masks have parts {list(masks)}; after reset they had {list(self._parts)}")
        return {path: masks.get(path, torch.ones_like(first)) for path, first in self._parts.items()}


def make_gymnasium(
    env: str | Callable[[], gym.Env[Any, Any]],
    num_envs: int,
    kwargs: Mapping[str, Any] | None = None,
    backend: Backend = "sync",
    workers: Workers | None = None,
) -> GymnasiumVecEnv:
    """N environments, by registered id or by a function that makes one.

    Args:
        env: id in Gymnasium's registry, or an environment factory. Games of Atari by their id are preprocessed, as
            `make_atari` says.
        num_envs: N.
        kwargs: reach the constructor of an environment given by id.
        backend: what runs them. `sync`: Gymnasium's environments one after another. `vector`: the vector version that
            an environment was registered with; of Atari's games ALE's. `envpool`: EnvPool's, with `kwargs` for its
            options. `processes`: Gymnasium's, in processes of their own, which pays where a step takes longer than to
            hand it over. `auto`: the fastest of the others that runs the environment.
        workers: how `processes` spreads them.

    Raises:
        ConfigError: the id is unknown, the environment's dependencies are missing, or it refuses the arguments.
    """
    if not isinstance(env, str):
        if backend not in ("auto", *ANY_FACTORY):
            raise ConfigError(f"backend is {backend}, which needs an environment's id")
        make = env
    elif (chosen := choose_backend(env, kwargs or {}) if backend == "auto" else backend) not in ANY_FACTORY:
        return _made_elsewhere(env, num_envs, kwargs or {}, chosen)
    elif is_atari(env):
        make = partial(make_atari, env, kwargs or {})
    else:
        make = partial(gym.make, env, disable_env_checker=True, **(kwargs or {}))
    apart = backend == "processes"
    try:
        vector = ProcessEnvs([make] * num_envs, workers) if apart else SyncEnvs([make] * num_envs)
    except gym.error.DependencyNotInstalled as error:
        raise ConfigError(
            f"{env}: {error}. levelhead's extras bring such dependencies: box2d, mujoco, atari"
        ) from error
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ConfigError(f"cannot make {env}: {error}") from error
    return GymnasiumVecEnv(vector, NAMED["processes" if apart else "sync"])


def _made_elsewhere(env_id: str, num_envs: int, kwargs: Mapping[str, Any], backend: Backend) -> GymnasiumVecEnv:
    make = {"vector": make_vector, "envpool": EnvPoolEnvs}[backend]
    try:
        return GymnasiumVecEnv(make(env_id, num_envs, kwargs), NAMED[backend])
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ConfigError(f"cannot make {env_id}: {error}") from error
