"""What a gradient step on one minibatch costs: in torch, and in native code for each instruction set of this machine.

    python benchmarks/native_step.py [--rounds 9]

Gather, forward, loss, backward, clip and Adam, for two networks of two layers of 64 tanh units, on one thread. Whole
iterations of `Learner.learn` are timed in turn, and divided by their steps; permutations and what else an iteration
needs are in the figures. Ratios are of the same round.
"""

import argparse
import statistics
import time

import gymnasium as gym
import numpy as np
import torch

from levelhead import native
from levelhead.builders import build_learner, build_objective, build_policy
from levelhead.config import Config, PPOConfig
from levelhead.learner import Learner
from levelhead.networks import State
from levelhead.rollout import Batch
from levelhead.spaces import Space

TASKS: dict[str, tuple[int, Space, int, int, int]] = {
    "HalfCheetah, minibatches of 64": (17, gym.spaces.Box(-1.0, 1.0, (6,)), 2048, 10, 32),
    "CartPole, minibatches of 256": (4, gym.spaces.Discrete(2), 1024, 4, 4),
}
"""Numbers in an observation, action space, rows, epochs, minibatches."""


def make(numbers: int, space: Space, rows: int, epochs: int, minibatches: int, engine: str) -> tuple[Learner, Batch]:
    """A learner, and a rollout to learn from."""
    ppo = PPOConfig(epochs=epochs, minibatches=minibatches)
    config = Config("none", num_envs=8, num_steps=rows // 8, device="cpu", ppo=ppo, engine=engine)
    policy = build_policy(config, gym.spaces.Box(-np.inf, np.inf, (numbers,)), space)
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(1, rows, numbers, generator=generator)
    advantage, target = torch.randn(2, 1, rows, generator=generator)
    begins, state = torch.ones(1, rows, dtype=torch.bool), State((), (), ())
    with torch.no_grad():
        features, _ = policy.actor_features(observation[0], state, begins)
        noise = policy.action_head.noise((rows,), generator)
        action, parameters = policy.action_head.sample(features, noise)
        log_prob = policy.action_head.log_prob(parameters, action)
    batch = Batch(
        observation, action.unsqueeze(0), None, log_prob.unsqueeze(0), advantage, target, target, begins, state
    )
    learner = build_learner(config, policy, build_objective(config, policy.device))
    learner.advance(0.0, 0)
    return learner, batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    best = native.INSTRUCTION_SETS.index(native.best_instruction_set())
    engines = ["torch", *native.INSTRUCTION_SETS[: best + 1]]
    print("| | engine | us a step | times faster than torch |\n|---|---|---|---|")
    for name, (numbers, space, rows, epochs, minibatches) in TASKS.items():
        taken: dict[str, list[float]] = {engine: [] for engine in engines}
        for i in range(rounds + 1):
            for engine in engines if i % 2 else reversed(engines):
                chosen = engine if engine in native.INSTRUCTION_SETS else native.best_instruction_set()
                native.best_instruction_set = lambda chosen=chosen: chosen
                kind = "torch" if engine == "torch" else "native"
                learner, batch = make(numbers, space, rows, epochs, minibatches, kind)
                valid, healthy = torch.ones(1, rows, dtype=torch.bool), torch.tensor(True)
                learner.learn(batch, valid, healthy, 0)
                started = time.perf_counter()
                learner.learn(batch, valid, healthy, 1)
                if i:  # the first round warms up
                    taken[engine].append((time.perf_counter() - started) / (epochs * minibatches) * 1e6)
        for engine, times in taken.items():
            ratios = [a / b for a, b in zip(taken["torch"], times, strict=True)]
            spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            shown = f"{statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f})"
            print(f"| {name} | {engine} | {shown} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
