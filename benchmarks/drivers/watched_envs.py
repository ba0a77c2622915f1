"""A task's environments for the libraries that bring none of their own."""

from typing import Any

import gymnasium as gym
import numpy as np
from tasks import Meter, Task


class WatchedEnvs(gym.vector.VectorWrapper):
    """Gymnasium's, one after another; tells the meter of episodes.

    An episode's last observation is replaced by the next one's first. Observations are float32, and actions that are
    real numbers are clipped to their bounds.
    """

    def __init__(self, task: Task, meter: Meter) -> None:
        super().__init__(
            gym.vector.SyncVectorEnv(
                [lambda: gym.make(task.env_id)] * task.num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
            )
        )
        self.meter = meter
        self.running = np.zeros(task.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, _ = self.env.reset(seed=seed, options=options)
        return observation.astype(np.float32), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        if isinstance(self.single_action_space, gym.spaces.Box):
            actions = np.clip(actions, self.single_action_space.low, self.single_action_space.high)
        observation, reward, terminated, truncated, _ = self.env.step(actions)
        self.running += reward
        ended = terminated | truncated
        self.meter.returns.extend(self.running[ended].tolist())
        self.running[ended] = 0.0
        return observation.astype(np.float32), reward.astype(np.float32), terminated, truncated, {}
