"""What is handed over as objects, and settings that these would leave without effect."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from levelhead.actions import ActionHead
from levelhead.config import Config, require_default
from levelhead.distributed import Shards, ranks
from levelhead.envs import Backend, GymnasiumVecEnv, VecEnv, Workers, make_env, task_names
from levelhead.errors import ConfigError
from levelhead.networks import Network
from levelhead.objectives import Objective
from levelhead.presets import preset
from levelhead.rundir import RunInfo
from levelhead.values import ValueHead

AnyEnv = str | Callable[[], gym.Env[Any, Any]] | VectorEnv[Any, Any, Any] | VecEnv


@dataclass(frozen=True)
class Parts:
    """What was handed over as objects, which no config can rebuild."""

    env: AnyEnv | None = None
    network: Network | None = None
    value: ValueHead | None = None
    action_head: ActionHead | None = None
    objective: Objective | None = None

    @property
    def by_name(self) -> dict[str, object]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def given(self) -> tuple[str, ...]:
        """The names of those that there are."""
        return tuple(name for name, part in self.by_name.items() if part is not None)


@contextmanager
def opened(env: AnyEnv, config: Config, shards: Shards) -> Generator[VecEnv]:
    """This process's part of a run's environments; closed afterwards, unless they were handed over."""
    here = config.num_envs * shards.here // shards.count
    workers = Workers(config.env.workers, config.env.timeout, config.env.max_restarts)
    with made(env, here, config.env.kwargs, config.backend, workers, shards.here) as vec:
        yield vec


@contextmanager
def made(
    env: AnyEnv,
    num_envs: int,
    kwargs: dict[str, Any],
    backend: Backend = "sync",
    workers: Workers | None = None,
    shards: int = 1,
) -> Generator[VecEnv]:
    """The environments that `env` stands for; closed afterwards, unless they were handed over."""
    if shards > 1 and isinstance(env, VecEnv | VectorEnv):
        raise ConfigError(f"environments handed over are one shard, and each process is to have {shards}")
    if isinstance(env, VecEnv):
        yield env
    elif isinstance(env, VectorEnv):
        yield GymnasiumVecEnv(env)
    elif not isinstance(env, str) and not callable(env):
        raise ConfigError(
            f"env is {env!r}; accepted: an id, a function or class that makes an environment, a Gymnasium vector"
            " environment, or a VecEnv"
        )
    else:
        vec = make_env(env, num_envs, kwargs, backend, workers, shards)
        try:
            yield vec
        finally:
            vec.close()


def require_consistent(env: AnyEnv, config: Config, num_envs: int | None) -> None:
    """Refuses settings that an environment handed over as an object would leave without effect."""
    if config.eval_every:
        require_episodes("eval_episodes", config.eval_episodes, env)
    if isinstance(env, str):
        return
    vectorised = isinstance(env, VectorEnv | VecEnv)
    if config.backend not in ("auto", "sync", *(() if vectorised else ("processes",))):
        raise ConfigError(f"backend is {config.backend}, and the environment is handed over as an object")
    if config.env.kwargs:
        raise ConfigError("env.kwargs has nothing to act on: the environment is handed over as an object")
    if vectorised:
        if num_envs not in (None, env.num_envs * ranks()):
            raise ConfigError(f"num_envs is {num_envs}, and the environments handed over are {env.num_envs * ranks()}")
        if config.eval_every:
            raise ConfigError("eval_every needs environments of its own: pass an id or a function")


def require_episodes(name: str, episodes: int, env: AnyEnv) -> None:
    needed = len(task_names(env))
    if episodes < needed:
        raise ConfigError(f"{name} is {episodes}; {env} needs at least {needed}, one per task")


def require_instance(name: str, given: object, kind: type | UnionType, accepted: str) -> None:
    if given is not None and not isinstance(given, kind):
        raise ConfigError(f"{name} is {given!r}; accepted: {accepted}")


def require_used(
    config: Config, network: Network | None, action_head: ActionHead | None, objective: Objective | None
) -> None:
    """Refuses settings that a part handed over as an object would leave without effect."""
    default = preset(config.env_id, config.objective)
    if network is not None:
        reason = "the network is handed over as an object"
        layers = ("shared", "actor", "critic", "activation", "image_encoder")
        require_default("network", config.network, layers, reason, default.network)
        require_default("memory", config.memory, ("size", "place", "sharing"), reason, default.memory)
    if action_head is not None and config.action != default.action:
        raise ConfigError("action has settings that nothing reads: the action head is handed over as an object")
    if objective is not None:
        reason = "the objective is handed over as an object"
        require_default("ppo", config.ppo, ("clip_range", "dual_clip", "kl_target"), reason, default.ppo)
        if config.objective != "clip":
            raise ConfigError(f"objective {config.objective} has nothing to act on: {reason}")


def require_parts(info: RunInfo, parts: Mapping[str, object]) -> None:
    """Refuses a missing object that the run was made with, and one that it was made without; of `parts` alone."""
    missing = [part for part, x in parts.items() if x is None and part in info.custom]
    needless = [part for part, x in parts.items() if x is not None and part not in info.custom]
    if needless:
        raise ConfigError(f"this run was made without objects for {', '.join(needless)}; its config rebuilds them")
    if missing:
        raise ConfigError(f"this run was made with objects that its config cannot rebuild; pass {', '.join(missing)}=")
