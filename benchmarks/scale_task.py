"""What every library runs alike in reward_scale.py, and how each one's policy is scored; needs only Gymnasium."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import gymnasium as gym
import numpy as np

EPISODES = 100


@dataclass(frozen=True)
class ScaleTask:
    """PPO on one environment: two tanh networks, advantages standardised, no value clip. Pairs are a coefficient's
    start and end, linear in between."""

    env_id: str
    steps: int
    """Whole rollouts."""
    num_envs: int
    num_steps: int
    epochs: int
    minibatches: int
    learning_rate: tuple[float, float]
    entropy_coef: tuple[float, float]
    value_coef: float
    """Weight of the mean squared error, not of half of it."""
    gamma: float
    lam: float
    clip_range: float
    max_grad_norm: float
    adam_eps: float
    hidden: tuple[int, ...]
    log_std: float
    normalize_observation: bool

    @property
    def rollout(self) -> int:
        """Steps between two updates, over all environments."""
        return self.num_envs * self.num_steps

    @property
    def digest(self) -> str:
        """Tells tasks apart in a few letters."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


Task = TypeVar("Task")


def parse(kind: type[Task], text: str) -> Task:
    """A task of that kind out of its JSON."""
    return kind(**{name: tuple(x) if isinstance(x, list) else x for name, x in json.loads(text).items()})


def arguments() -> tuple[ScaleTask, float, int, str]:
    """A driver's command line: TASK as JSON, SCALE, SEED, TREATMENT."""
    task, scale, seed, treatment = sys.argv[1:]
    return parse(ScaleTask, task), float(scale), int(seed), treatment


def between(ends: tuple[float, float], progress: float) -> float:
    """A coefficient at `progress`, the share of training done before a rollout."""
    return ends[0] + (ends[1] - ends[0]) * max(progress, 0.0)


def greedy_return(env_id: str, act: Callable[[np.ndarray], np.ndarray], episodes: int = EPISODES) -> float:
    """Mean return in the environment's own units, from start states that are the same for every policy.

    `act` takes a batch of observations to a batch of actions within the environment's bounds.
    """
    envs = [gym.make(env_id, disable_env_checker=True) for _ in range(episodes)]
    observations = {i: env.reset(seed=10_000 + i)[0] for i, env in enumerate(envs)}
    total = 0.0
    while observations:
        actions = act(np.stack(list(observations.values())))
        following = {}
        for i, action in zip(observations, actions, strict=True):
            observation, reward, terminated, truncated, _ = envs[i].step(action)
            total += float(reward)
            if not (terminated or truncated):
                following[i] = observation
        observations = following
    return total / episodes


def finish(score: float | None, note: str = "") -> None:
    """The driver's one RESULT line; `score` is None where training broke down, and `note` says how."""
    print("RESULT " + json.dumps({"return": score, "note": note}), flush=True)
