"""What libraries run alike on environments.py, with memory or with masks, and how each one's policy is scored."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import environments  # noqa: F401  registers what tasks name
import gymnasium as gym
import numpy as np
from scale_task import parse

EPISODES = 50


@dataclass(frozen=True)
class PeerTask:
    """PPO on one environment: tanh networks, advantages standardised, Adam's eps 1e-5, no value clip."""

    env_id: str
    steps: int
    """Whole rollouts."""
    num_envs: int = 8
    num_steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    learning_rate: tuple[float, float] = (2.5e-4, 2.5e-4)
    """Start and end, linear in between."""
    gamma: float = 0.99
    lam: float = 0.95
    clip_range: float = 0.2
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    """Weight of the mean squared error, not of half of it."""
    max_grad_norm: float = 0.5
    hidden: tuple[int, ...] = (64, 64)
    """Layers of actor and critic each, behind the memory if there is one."""
    lstm_size: int = 64
    seed: int = 1
    also: tuple[str, ...] = ()
    """More environments to score the policy on."""

    @property
    def rollout(self) -> int:
        """Steps between two updates, over all environments."""
        return self.num_envs * self.num_steps

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def argument() -> PeerTask:
    """A driver's command line: TASK as JSON."""
    (task,) = sys.argv[1:]
    return parse(PeerTask, task)


Act = Callable[[np.ndarray, np.ndarray | None, bool], np.ndarray]
"""From observations, legal actions if the environment names them, and whether these are the first, to actions."""


def greedy_return(env_id: str, act: Act) -> float:
    """Mean over `EPISODES` episodes, from start states that are the same for every policy.

    They are played side by side; `act` sees the last observation of those that have ended until all have.
    """
    envs = [gym.make(env_id, disable_env_checker=True) for _ in range(EPISODES)]
    seen: list[tuple[Any, dict[str, Any]]] = [env.reset(seed=10_000 + i) for i, env in enumerate(envs)]
    going, total, first = set(range(EPISODES)), 0.0, True
    while going:
        observations, infos = zip(*seen, strict=True)
        masks = np.stack([info["action_mask"] for info in infos]) if "action_mask" in infos[0] else None
        actions = act(np.stack(observations), masks, first)
        first = False
        for i in sorted(going):
            observation, reward, terminated, truncated, info = envs[i].step(actions[i])
            seen[i] = observation, info
            total += float(reward)
            if terminated or truncated:
                going.remove(i)
    return total / EPISODES


def finish(task: PeerTask, act: Act, seconds: float) -> None:
    """Scores the policy and prints the driver's one RESULT line; `seconds` is what training took."""
    result = {
        "return": greedy_return(task.env_id, act),
        "also": {env_id: greedy_return(env_id, act) for env_id in task.also},
        "seconds": seconds,
        "steps_per_second": task.steps / seconds,
    }
    print("RESULT " + json.dumps(result), flush=True)
