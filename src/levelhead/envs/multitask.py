"""Several kinds of environments as one, for a policy that plays them all."""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from levelhead.envs.backends import Backend
from levelhead.envs.gymnasium import make_gymnasium
from levelhead.envs.processes import Workers
from levelhead.envs.shards import ShardedVecEnv
from levelhead.envs.vec import Step, VecEnv, joined, receive_tensors, send_tensors
from levelhead.errors import ConfigError
from levelhead.seeding import Stream, derive
from levelhead.tree import Tree, tree_map

SEPARATOR = "+"


class MultiTaskVecEnv(VecEnv):
    """Environments of several kinds side by side, padded to common spaces; each kind is a task.

    An observation is flattened, filled up with zeros to the longest, and followed by a one-hot code of the task.
    Box actions live in [-1, 1] and are as many as the most that a task takes: each task reads the first of them,
    rescaled to its own bounds; the rest of them the policy draws in vain, and counts in its log-probability and
    entropy. Other actions must be alike in all tasks. An observation normaliser would mix what the tasks have in one
    place.

    Args:
        members: vector environments by the name of their task.

    Raises:
        ConfigError: fewer than two members, or spaces that have nothing in common.
    """

    def __init__(self, members: Mapping[str, VecEnv]) -> None:
        if len(members) < 2:
            raise ConfigError(f"several tasks are asked for, and {len(members)} is given")
        for name, member in members.items():
            if member.tasks:
                raise ConfigError(f"task {name} consists of tasks itself, {member.tasks}: list those")
        self.tasks = tuple(members)
        self.members = tuple(members.values())
        self._counts = [member.num_envs for member in self.members]
        self.num_envs = sum(self._counts)
        self.task = torch.arange(len(members)).repeat_interleave(torch.tensor(self._counts))
        sizes = [_size(name, member.observation_space) for name, member in members.items()]
        self._width = int(max(sizes))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (self._width + len(members),))
        self.action_space = _common_actions({name: member.action_space for name, member in members.items()})

    def reset(self, seed: int) -> Tensor:
        first = [member.reset(derive(seed, Stream.TASK, k)) for k, member in enumerate(self.members)]
        self._join_masks()
        return torch.cat([self._padded(k, x) for k, x in enumerate(first)])

    def step(self, action: Tree) -> Step:
        self.send(action)
        return self.receive()

    def send(self, action: Tree) -> None:
        stops = itertools.accumulate(self._counts)
        for member, end in zip(self.members, stops, strict=True):
            own = tree_map(lambda x, start=end - member.num_envs, stop=end: x[start:stop], action)
            send_tensors(member, _own_action(member.action_space, own))

    def receive(self) -> Step:
        steps = [self._padded_step(k, receive_tensors(member)) for k, member in enumerate(self.members)]
        self._join_masks()
        return joined(steps)

    @property
    def restarts(self) -> int | None:
        counts = [member.restarts for member in self.members if member.restarts is not None]
        return sum(counts) if counts else None

    def close(self) -> None:
        for member in self.members:
            member.close()

    def _join_masks(self) -> None:
        """One mask for all, if any member has one; the others' rows are legal throughout."""
        masks = [member.action_mask for member in self.members]
        parts = [{"": mask} if isinstance(mask, Tensor) else mask or {} for mask in masks]
        whole: dict[str, Tensor] = {}
        for path, choices in {path: mask.shape[1] for given in parts for path, mask in given.items()}.items():
            free = (torch.ones(n, choices, dtype=torch.bool) for n in self._counts)
            whole[path] = torch.cat([given.get(path, rest) for given, rest in zip(parts, free, strict=True)])
        self.action_mask = whole.get("", whole) if whole else None

    def _padded_step(self, task: int, step: Step) -> Step:
        final = step.final_observation
        return step._replace(
            observation=self._padded(task, step.observation),
            final_observation=None if final is None else self._padded(task, final),
        )

    def _padded(self, task: int, observation: Tensor) -> Tensor:
        flat = observation.reshape(len(observation), -1)
        padded = torch.zeros(len(flat), self._width + len(self.tasks), device=flat.device)
        padded[:, : flat.shape[1]] = flat
        padded[:, self._width + task] = 1.0
        return padded


def _size(name: str, space: gym.Space[Any]) -> int:
    if not isinstance(space, gym.spaces.Box):
        raise ConfigError(f"the observations of task {name} are {space}; accepted where there are several tasks: Box")
    return math.prod(space.shape)


def _common_actions(spaces: Mapping[str, gym.Space[Any]]) -> gym.Space[Any]:
    first = next(iter(spaces.values()))
    if all(space == first for space in spaces.values()) and not isinstance(first, gym.spaces.Box):
        return first
    for name, space in spaces.items():
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            listed = ", ".join(f"{name} {space}" for name, space in spaces.items())
            raise ConfigError(f"tasks must have Box actions with one axis, or all the same space; these have {listed}")
        if not space.is_bounded():
            raise ConfigError(f"the actions of task {name} need bounds to be rescaled to; they are {space}")
    sizes = [space.shape[0] for space in spaces.values() if isinstance(space, gym.spaces.Box)]
    return gym.spaces.Box(-1.0, 1.0, (max(sizes),))


def _own_action(space: gym.Space[Any], action: Tree) -> Tree:
    """What an action in the common space means in a task's own."""
    if not isinstance(space, gym.spaces.Box):
        return action
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    share = (action[:, : len(low)].to(low.device, torch.float64) + 1) / 2
    # In double precision, then clamped, so that rounding takes no action out of its bounds.
    return torch.clamp((low * (1 - share) + high * share).to(low.dtype), low, high)


def task_names(env: object) -> tuple[str, ...]:
    """The ids that a text joins by `+`; none where it is a single one, or no text."""
    return tuple(env.split(SEPARATOR)) if isinstance(env, str) and SEPARATOR in env else ()


def make_env(
    env: str | Callable[[], gym.Env[Any, Any]],
    num_envs: int,
    kwargs: Mapping[str, Any] | None = None,
    backend: Backend = "sync",
    workers: Workers | None = None,
    shards: int = 1,
) -> VecEnv:
    """N environments, of one kind or of several.

    Args:
        env: id in Gymnasium's registry, several ids joined by `+` for as many tasks, or an environment factory.
        num_envs: N, shared evenly among tasks.
        kwargs: reach the constructor of an environment given by a single id.
        backend, workers: what runs them, as `make_gymnasium` has it.
        shards: equal parts that they come in, of which N is a multiple.

    Raises:
        ConfigError: as `make_gymnasium` and `MultiTaskVecEnv`; an id comes twice, or N is too small for the tasks.
    """
    if shards > 1:
        parts: list[VecEnv] = []
        with _closed_on_error(parts):
            parts.extend(make_env(env, num_envs // shards, kwargs, backend, workers) for _ in range(shards))
            return ShardedVecEnv(parts)
    names = task_names(env)
    if not names:
        return make_gymnasium(env, num_envs, kwargs, backend, workers)
    if len(set(names)) < len(names):
        raise ConfigError(f"every task of {env} must be another environment")
    if num_envs < len(names):
        raise ConfigError(f"num_envs is {num_envs}; {env} needs at least {len(names)}, one per task")
    if kwargs:
        raise ConfigError(f"env.kwargs are for a single environment; register variants of your own for {env}")
    share, rest = divmod(num_envs, len(names))
    members: dict[str, VecEnv] = {}
    with _closed_on_error(members.values()):
        for k, name in enumerate(names):
            members[name] = make_gymnasium(name, share + (k < rest), backend=backend, workers=workers)
        return MultiTaskVecEnv(members)


@contextmanager
def _closed_on_error(made: Iterable[VecEnv]) -> Generator[None]:
    """Closes those that have been made by then, where making others fails."""
    try:
        yield
    except BaseException:
        for env in made:
            env.close()
        raise
