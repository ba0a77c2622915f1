"""Work that every library does alike in a comparison: the same environments, rollouts, networks and updates."""

import json
import os
import resource
import time
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """PPO on one environment: two tanh networks of 2 x 64, GAE lambda 0.95, clip 0.2, gradient norm 0.5."""

    env_id: str
    steps: int
    num_envs: int = 8
    num_steps: int = 128
    minibatches: int = 4
    epochs: int = 4
    learning_rate: float = 2.5e-4
    entropy_coef: float = 0.0
    gamma: float = 0.99
    normalize_observation: bool = False


TASKS = {
    "cartpole": Task("CartPole-v1", 204_800, entropy_coef=0.01),
    "halfcheetah": Task(
        "HalfCheetah-v5", 40_960, num_steps=256, minibatches=32, epochs=10, learning_rate=3e-4,
        normalize_observation=True,
    ),
}  # fmt: skip


def process_age() -> float:
    """Seconds since this process was created, interpreter and imports included."""
    with open("/proc/self/stat") as file:
        started = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as file:
        return float(file.read().split()[0]) - started / os.sysconf("SC_CLK_TCK")


@dataclass
class Meter:
    """Notes the end of every iteration and the return of every episode; prints one RESULT line."""

    marks: list[tuple[float, int]] = field(default_factory=list)
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    def iteration(self, step: int) -> None:
        self.marks.append((time.perf_counter(), step))

    def finish(self, **more: object) -> None:
        warm = self.marks[len(self.marks) // 5 :]
        (t0, s0), (t1, s1) = warm[0], warm[-1]
        result = {
            "steps_per_second": (s1 - s0) / (t1 - t0),
            "process_seconds": process_age(),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "last_100_episodes": sum(self.returns) / max(len(self.returns), 1),
            **more,
        }
        print("RESULT " + json.dumps(result), flush=True)
