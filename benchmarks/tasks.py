"""Work that every library does alike in a comparison: the same environments, rollouts, networks and updates.

Needs nothing but Python, so that a driver's time and memory are those of its library.
"""

import hashlib
import json
import os
import resource
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field

HIDDEN = (64, 64)
"""Layers of tanh units that actor and critic have each."""


@dataclass(frozen=True)
class Task:
    """PPO on one environment: advantages standardised, learning rate linear to 0, Adam's eps 1e-5."""

    env_id: str
    steps: int
    """Whole rollouts."""
    num_envs: int = 8
    num_steps: int = 128
    minibatches: int = 4
    epochs: int = 4
    learning_rate: float = 2.5e-4
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    """Weight of the mean squared error, not of half of it."""
    gamma: float = 0.99
    lam: float = 0.95
    clip_range: float = 0.2
    """Of probability ratios, and of values where the library clips them."""
    max_grad_norm: float = 0.5
    normalize_observation: bool = False
    goal: float | None = None
    """Mean return of the latest 100 episodes that ends training; looked at after every iteration."""

    @property
    def rollout(self) -> int:
        """Steps between two updates, over all environments."""
        return self.num_envs * self.num_steps

    @property
    def pictures(self) -> bool:
        """Whether it is one of Atari's games, whose screens a convolutional network reads."""
        return self.env_id.startswith("ALE/")

    @property
    def threads(self) -> int:
        """Of torch; a second one helps where there are convolutions, and costs where there are none."""
        return 2 if self.pictures else 1

    @property
    def iterations(self) -> int:
        """Rollouts until the end."""
        return self.steps // self.rollout

    @property
    def digest(self) -> str:
        """Tells tasks apart in a few letters."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


TASKS = {
    "cartpole": Task("CartPole-v1", 204_800, entropy_coef=0.01),
    "halfcheetah": Task(
        "HalfCheetah-v5", 40_960, num_steps=256, minibatches=32, epochs=10, learning_rate=3e-4,
        normalize_observation=True,
    ),
    "pong": Task("ALE/Pong-v5", 10_240, clip_range=0.1, entropy_coef=0.01),
    "solve": Task("CartPole-v1", 512_000, entropy_coef=0.01, goal=475.0),
}  # fmt: skip


def arguments() -> tuple[Task, int]:
    """The first two words of a driver's command line: TASK as JSON, and SEED."""
    task, seed = sys.argv[1:3]
    return Task(**json.loads(task)), int(seed)


def process_age() -> float:
    """Seconds since this process was created, interpreter and imports included."""
    with open("/proc/self/stat") as file:
        started = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as file:
        return float(file.read().split()[0]) - started / os.sysconf("SC_CLK_TCK")


@dataclass
class Meter:
    """Notes the end of every iteration and the return of every episode; prints one RESULT line."""

    task: Task
    marks: list[tuple[float, int]] = field(default_factory=list)
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    @property
    def solved(self) -> bool:
        """Whether the goal is reached; never where there is none."""
        full = len(self.returns) == self.returns.maxlen
        return self.task.goal is not None and full and sum(self.returns) / len(self.returns) >= self.task.goal

    def iteration(self, step: int) -> None:
        """Ends the process if the goal is reached."""
        self.marks.append((time.perf_counter(), step))
        if self.solved:
            self.finish()
            raise SystemExit

    def finish(self) -> None:
        warm = self.marks[len(self.marks) // 5 :]
        (t0, s0), (t1, s1) = warm[0], warm[-1]
        result = {
            "steps": s1,
            "steps_per_second": (s1 - s0) / (t1 - t0),
            "process_seconds": process_age(),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "episodes_mean": sum(self.returns) / len(self.returns) if self.returns else None,
            "solved": self.solved,
        }
        print("RESULT " + json.dumps(result), flush=True)
