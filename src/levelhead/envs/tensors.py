"""Environments of others that answer in tensors, as simulators on a GPU do."""

import inspect
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from levelhead.envs.vec import Step, VecEnv
from levelhead.errors import ConfigError
from levelhead.spaces import Space
from levelhead.tree import Tree, tree_leaves, tree_map

FINAL_KEYS = ("final_observation", "final_obs")
"""Where an info has final observations: as ManiSkill calls them, and as Gymnasium does."""
TIME_OUTS = "time_outs"
"""Where RSL-RL's extras say which ends are those of a time limit."""


class TensorVecEnv(VecEnv):
    """Batched environments in torch behind the `VecEnv` protocol. Their answers stay on the device they are on.

    A step answers as Gymnasium has it, `(observation, reward, terminated, truncated, info)`, which ManiSkill's
    `ManiSkillVectorEnv` and the environments of Isaac Lab do, or as RSL-RL does, `(observation, reward, done, extras)`.
    In the latter case `extras["time_outs"]` tells time limits from real ends; without it all ends are taken for real.
    The environments must begin the next episode in the step that ends one.

    Final observations are those in the info, `final_observation` or `final_obs`, `[N, ...]`; Isaac Lab gives them where
    its config sets `compute_final_obs`. Where there are none, the last observation before an end stands in for the one
    after it: a cut episode is bootstrapped from the value of the state the last action was taken in, as in RSL-RL.
    This puts the error of the last step off by gamma times the change of value in it, and has a memory see that
    observation twice.

    A `reset` that takes no seed has torch's global generators seeded instead.

    Args:
        env: with `num_envs`, `reset` and `step`, and the spaces of a single environment as `single_observation_space`
            and `single_action_space` where they are not given here.
        group: the part of a dict that is observed, `policy` in Isaac Lab; everything where not given.
        observation_space: of what is observed, of a single environment.
        action_space: of a single environment.

    Raises:
        ConfigError: spaces are missing, or there is no `reset`, or it resets in another step.
    """

    def __init__(
        self,
        env: Any,
        group: str | None = None,
        observation_space: Space | None = None,
        action_space: Space | None = None,
    ) -> None:
        if not callable(getattr(env, "reset", None)):
            raise ConfigError(f"{env} has no reset to start episodes with; pass the environment that it wraps")
        same_step = AutoresetMode.SAME_STEP
        mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode", same_step)
        if mode not in (same_step, same_step.value):
            raise ConfigError(f"{env} resets by {mode}; accepted of environments in tensors: {same_step}")
        self.env = env
        self.group = group
        self.num_envs = _attribute(env, "num_envs")
        self.action_space = _attribute(env, "single_action_space") if action_space is None else action_space
        self.observation_space = (
            _part(_attribute(env, "single_observation_space"), group)
            if observation_space is None
            else observation_space
        )
        parameters = inspect.signature(env.reset).parameters.values()
        self._takes_seed = any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)
        self._before: Tree | None = None
        self._device = torch.device("cpu")

    def reset(self, seed: int) -> Tree:
        seed %= 2**31  # as NumPy's older generators and 32-bit integers take it
        if not self._takes_seed:
            torch.manual_seed(seed)
        answer = self.env.reset(seed=seed) if self._takes_seed else self.env.reset()
        observation = self._observed(answer[0] if isinstance(answer, tuple) else answer)
        self._device = tree_leaves(observation)[0].device
        self.running = f"in torch on {self._device}"
        self._before = tree_map(torch.clone, observation)
        return observation

    def step(self, action: Tree) -> Step:
        answer = self.env.step(tree_map(lambda x: x.to(self._device), action))
        if len(answer) == 4:
            observation, reward, done, info = answer
            ended = done.bool()
            truncated = ended & info[TIME_OUTS].bool() if TIME_OUTS in info else torch.zeros_like(ended)
            terminated = ended & ~truncated
        else:
            observation, reward, terminated, truncated, info = answer
            ended = terminated | truncated
        observation = self._observed(observation)
        return Step(observation, reward, terminated, truncated, final_observation=self._final(observation, ended, info))

    def close(self) -> None:
        if hasattr(self.env, "close"):
            self.env.close()

    def _final(self, observation: Tree, ended: Tensor, info: Any) -> Tree | None:
        for key in FINAL_KEYS:
            if key in info:
                self._before = None  # who gives them gives them whenever an episode ends
                return self._observed(info[key])
        if self._before is None:
            return None
        before, self._before = self._before, tree_map(torch.clone, observation)
        return tree_map(lambda then, now: torch.where(_along(ended, now), then, now), before, observation)

    def _observed(self, observation: Any) -> Tree:
        return _tensors(self.observation_space, observation if self.group is None else observation[self.group])


def _tensors(space: Space, observation: Any) -> Tree:
    """The parts that a space names, out of anything that knows its parts by them, such as a `TensorDict`."""
    match space:
        case gym.spaces.Dict():
            return {key: _tensors(child, observation[key]) for key, child in space.spaces.items()}
        case gym.spaces.Tuple():
            return tuple(_tensors(child, part) for child, part in zip(space.spaces, observation, strict=True))
        case _:
            return observation


def _along(rows: Tensor, x: Tensor) -> Tensor:
    """`[N]` with as many axes as `[N, ...]`."""
    return rows.view(-1, *[1] * (x.ndim - 1))


def _attribute(env: Any, name: str) -> Any:
    """Of an environment, or of the one that its wrappers are about."""
    for owner in (env, getattr(env, "unwrapped", None)):
        if hasattr(owner, name):
            return getattr(owner, name)
    raise ConfigError(f"{env} has no {name}" + (f": give {name[7:]}" if name.startswith("single_") else ""))


def _part(space: Space, group: str | None) -> Space:
    if group is None:
        return space
    if not isinstance(space, gym.spaces.Dict) or group not in space.spaces:
        raise ConfigError(f"the environments observe {space}, which has no group {group!r}")
    return space[group]
