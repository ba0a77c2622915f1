"""What a gradient step on one minibatch costs: in torch, compiled by it, and in native code for each instruction set.

    python benchmarks/native_step.py [--rounds 9] [--tasks cnn] [--engines torch compile] [--threads 2] [--beside 1]

Gather, forward, loss, backward, clip and Adam, on one thread, or so many of native code's: for two networks of two
layers of 64 tanh units, for the Nature CNN, and with an LSTM of 64 units. Whole iterations of `Learner.learn` are timed
in turn, and divided by their steps; permutations and what else an iteration needs are in the figures. Ratios are of the
same round. What an engine doesn't take is left out; compiling comes before, and how long it took is in the last column.
`--beside` so many processes that keep a processor busy shows what a second thread does where none is left for it.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from levelhead import native
from levelhead.builders import build_learner, build_objective, build_policy
from levelhead.config import Config, MemoryConfig, NetworkConfig, PPOConfig
from levelhead.errors import ConfigError
from levelhead.learner import Learner
from levelhead.rollout import Batch
from levelhead.spaces import Space


@dataclass(frozen=True)
class Task:
    """A rollout of 8 environments, and who learns from it."""

    observations: Space
    actions: Space
    rows: int
    epochs: int
    minibatches: int
    more: dict[str, Any] = field(default_factory=dict)
    """Fields of the config."""


def numbers(count: int) -> Space:
    return gym.spaces.Box(-np.inf, np.inf, (count,))


TASKS = {
    "halfcheetah": Task(numbers(17), gym.spaces.Box(-1.0, 1.0, (6,)), 2048, 10, 32),
    "cartpole": Task(numbers(4), gym.spaces.Discrete(2), 1024, 4, 4),
    "cnn": Task(
        gym.spaces.Box(0, 255, (4, 84, 84), np.uint8),
        gym.spaces.Discrete(6),
        1024,
        1,
        4,
        {"network": NetworkConfig((), (), ())},
    ),
    "lstm": Task(numbers(17), gym.spaces.Discrete(6), 1024, 1, 4, {"memory": MemoryConfig("lstm", 64)}),
}


def make(task: Task, engine: str, threads: int = 1) -> tuple[Learner, Batch]:
    """A learner, and a rollout to learn from.

    Raises:
        ConfigError: the engine doesn't take the task.
    """
    ppo = PPOConfig(epochs=task.epochs, minibatches=task.minibatches)
    steps = task.rows // 8
    more = {"engine": engine, "threads": threads, **task.more}
    config = Config("none", num_envs=8, num_steps=steps, device="cpu", ppo=ppo, **more)
    policy = build_policy(config, task.observations, task.actions)
    generator = torch.Generator().manual_seed(0)
    steps, columns = (steps, 8) if policy.remembers else (1, task.rows)
    if task.observations.dtype == np.uint8:
        images = (task.rows, *task.observations.shape)
        rows = torch.randint(256, images, generator=generator, dtype=torch.uint8)
    else:
        rows = torch.randn(task.rows, *task.observations.shape, generator=generator)
    advantage, target = torch.randn(2, steps, columns, generator=generator)
    # Without memory every row begins an episode; with one, a hundredth.
    begins = torch.rand(steps, columns, generator=generator) < (0.01 if policy.remembers else 2.0)
    state = policy.network.initial_state(columns)
    with torch.no_grad():
        features, _ = policy.actor_features(rows, state, begins)
        noise = policy.action_head.noise((task.rows,), generator)
        action, parameters = policy.action_head.sample(features, noise)
        log_prob = policy.action_head.log_prob(parameters, action)
    observation, action, log_prob = (x.unflatten(0, (steps, columns)) for x in (rows, action, log_prob))
    batch = Batch(observation, action, None, log_prob, advantage, target, target, begins, state)
    learner = build_learner(config, policy, build_objective(config, policy.device))
    learner.advance(0.0, 0)
    return learner, batch


class Runner:
    """Iterations of one engine, each after the first timed."""

    def __init__(self, task: Task, engine: str, threads: int) -> None:
        self.engine = engine if engine in native.INSTRUCTION_SETS else native.best_instruction_set()
        kind = engine if engine in ("torch", "compile") else "native"
        self.learner, self.batch = make(task, kind, threads)
        self.steps = task.epochs * task.minibatches
        self.times: list[float] = []
        self.first = self._seconds()

    def _seconds(self) -> float:
        native.best_instruction_set = lambda: self.engine
        valid = torch.ones_like(self.batch.begins)
        started = time.perf_counter()
        self.learner.learn(self.batch, valid, torch.tensor(True), 0)
        return time.perf_counter() - started

    def time(self) -> None:
        self.times.append(self._seconds() / self.steps * 1e6)


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    best = native.INSTRUCTION_SETS.index(native.best_instruction_set())
    engines = ["torch", "compile", *native.INSTRUCTION_SETS[: best + 1]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--engines", nargs="+", default=engines, choices=engines)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # another one would wait busily in the way of native code's
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.beside)]
    try:
        compare(arguments.tasks, arguments.engines, arguments.rounds, arguments.threads)
    finally:
        for other in others:
            other.kill()


def compare(tasks: list[str], engines: list[str], rounds: int, threads: int) -> None:
    print("| | engine | us a step | times faster than torch | first iteration, s |\n|---|---|---|---|---|")
    for name in tasks:
        runners: dict[str, Runner] = {}
        for engine in dict.fromkeys(("torch", *engines)):
            try:
                runners[engine] = Runner(TASKS[name], engine, threads)
            except ConfigError:
                continue
        for i in range(rounds):
            for runner in runners.values() if i % 2 else reversed(runners.values()):
                runner.time()
        for engine, runner in runners.items():
            ratios = [a / b for a, b in zip(runners["torch"].times, runner.times, strict=True)]
            cells = (name, engine, spread(runner.times), spread(ratios, 1), f"{runner.first:.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
