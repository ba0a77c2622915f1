"""Which code runs the environments of an id."""

import importlib
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from levelhead.envs.atari import AtariEnvs, is_atari
from levelhead.errors import ConfigError
from levelhead.threads import processors

Backend = Literal["auto", "sync", "vector", "envpool", "processes"]
ANY_FACTORY: tuple[Backend, ...] = ("sync", "processes")
"""Those that run whatever environment there is a function for."""
NAMED: dict[Backend, str] = {
    "sync": "one after another",
    "vector": "by their own vector version",
    "envpool": "by EnvPool",
    "processes": "in processes of their own",
}
ARRAYS_OF_OTHERS = ("phys2d/",)
"""Environments whose vector versions answer arrays that are not NumPy's."""


def choose_backend(env_id: str, kwargs: Mapping[str, Any]) -> Backend:
    """The fastest one that runs an environment just as `gym.make` would; arguments of its own are not translated."""
    if has_vector(env_id):
        return "vector"
    if not kwargs and has_envpool(env_id):
        return "envpool"
    return "sync"


def has_vector(env_id: str) -> bool:
    """Whether the environment was registered with a vector version of its own, in NumPy, that is the same.

    Of Atari's games it is not, quite: `AtariEnvs` says how they differ.
    """
    if is_atari(env_id) or env_id.startswith(ARRAYS_OF_OTHERS):
        return False
    try:
        return gym.spec(env_id).vector_entry_point is not None
    except (gym.error.Error, ImportError):
        return False


def has_envpool(env_id: str) -> bool:
    """Whether EnvPool is installed and has the id, with the spaces and the time limit that Gymnasium's has."""
    if is_atari(env_id) or not _known_to_envpool(env_id) or env_id not in gym.registry:
        return False
    try:
        single = gym.make(env_id, disable_env_checker=True)
    except (gym.error.Error, ImportError):
        return False
    pool = _make_pool(env_id, num_envs=1)
    try:
        same = all(
            type(own) is type(other) and own.shape == other.shape
            for own, other in (
                (pool.observation_space, single.observation_space),
                (pool.action_space, single.action_space),
            )
        )
        limit = None if single.spec is None else single.spec.max_episode_steps
        return same and pool.spec.config.max_episode_steps == limit
    finally:
        pool.close()
        single.close()


def _known_to_envpool(env_id: str) -> bool:
    return find_spec("envpool") is not None and env_id in _envpool().list_all_envs()


def _envpool() -> Any:
    return importlib.import_module("envpool")


def _make_pool(env_id: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        # EnvPool writes its bounds in double precision, and Gymnasium complains.
        warnings.filterwarnings("ignore", "(?s).*precision lowered by casting", UserWarning)
        pool = _envpool().make_gymnasium(env_id, **options)
        _ = pool.observation_space, pool.action_space  # made when first asked for
    return pool


def make_vector(env_id: str, num_envs: int, kwargs: Mapping[str, Any]) -> VectorEnv[Any, Any, Any]:
    """The vector version that an environment brings along.

    Raises:
        ConfigError: there is none.
    """
    if is_atari(env_id):
        return AtariEnvs(env_id, num_envs, kwargs)
    if not has_vector(env_id):
        others = ("auto", *ANY_FACTORY, *(("envpool",) if has_envpool(env_id) else ()))
        raise ConfigError(
            f"backend is vector, and {env_id} has no vector version of its own in NumPy; accepted: {', '.join(others)}"
        )
    limit = gym.spec(env_id).max_episode_steps  # which nobody else tells it
    options = kwargs if limit is None else {"max_episode_steps": limit, **kwargs}
    env = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **options)
    # CartPole's asks at every step whether the actions are such, which takes longer than what it does with them; those
    # of an action head are.
    env.unwrapped.action_space.contains = _anything
    return env


def _anything(x: Any) -> bool:  # noqa: ARG001  # of the protocol
    return True


class EnvPoolEnvs(VectorEnv[Any, Any, Any]):
    """EnvPool's environments, in C++ on as many threads as there are processors.

    Args:
        env_id: of an environment that both Gymnasium and EnvPool have.
        num_envs: N.
        kwargs: options of EnvPool's.

    Raises:
        ConfigError: EnvPool is missing, has no such environment, or refuses the options.
    """

    def __init__(self, env_id: str, num_envs: int, kwargs: Mapping[str, Any]) -> None:
        if find_spec("envpool") is None:
            raise ConfigError('backend is envpool, which is missing: pip install "levelhead[envpool]"')
        if not has_envpool(env_id):
            raise ConfigError(
                f"backend is envpool, which has no {env_id} with the spaces and the time limit it should have"
            )
        with gym.make(env_id, disable_env_checker=True) as single:
            self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.env_id, self.num_envs, self.kwargs = env_id, num_envs, dict(kwargs)
        self._pool = self._make(0)
        self.metadata = self._pool.metadata
        self._numbers = np.arange(num_envs, dtype=np.int32)
        self._wire = _wire_of(self._pool)

    def _make(self, seed: int) -> Any:
        threads = min(self.num_envs, processors())
        options = {"num_threads": threads, **self.kwargs, "num_envs": self.num_envs, "seed": seed}
        try:
            return _make_pool(self.env_id, **options)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"EnvPool refuses {self.env_id} with {self.kwargs}: {error}") from error

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """New environments where there is a seed, which EnvPool's take when they are made."""
        if isinstance(seed, list) or options:
            raise ConfigError("EnvPool's environments are reset with one seed for all, and without options")
        if seed is not None:
            self._pool.close()
            self._pool = self._make(seed % 2**31)
        return self._pool.reset()[0], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Starts a step, which `step_wait` answers."""
        if self._wire is None:
            self._pool.send(actions.astype(self._pool.action_space.dtype, copy=False))
        else:
            self._pool._send([self._numbers, self._numbers, actions.astype(self._wire.action, order="C", copy=False)])

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What comes of the step."""
        if self._wire is None:
            observation, reward, terminated, truncated, _ = self._pool.recv()
        else:
            arrays = self._pool._recv()
            observation, reward, done, truncated = (arrays[place] for place in self._wire.places)
            terminated = done & ~truncated
        return observation, reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002  # of the protocol
        self._pool.close()


class _Wire(NamedTuple):
    """What EnvPool's C++ takes and answers.

    Its Python code around that, which arranges infos that nobody reads here, takes longer than most environments.
    """

    action: np.dtype[Any]
    places: tuple[int, ...]
    """Of observation, reward, end and cut among the arrays."""


def _wire_of(pool: Any) -> _Wire | None:
    """None where it is not the one known here."""
    takes, answers = (list[str](getattr(pool, name, ())) for name in ("_action_keys", "_state_keys"))
    wanted = ("obs", "reward", "done", "trunc")
    if takes != ["env_id", "players.env_id", "action"] or not {*wanted} <= {*answers}:
        return None
    return _Wire(pool.spec.action_array_spec["action"].dtype, tuple(answers.index(name) for name in wanted))
