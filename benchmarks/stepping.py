"""Steps per second of environments alone, with random actions, by every backend that has them, in turn.

python benchmarks/stepping.py [ID ...] [--num-envs 8] [--steps 500] [--rounds 5]
"""

import argparse
import statistics
import time
from typing import get_args

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

import levelhead as lh
from levelhead.envs import Backend

BACKENDS = tuple(backend for backend in get_args(Backend) if backend != "auto")


class SlowCartPole(CartPoleEnv):
    """A step of it takes a processor a millisecond more."""

    def step(self, action):
        over = time.perf_counter() + 1e-3
        while time.perf_counter() < over:
            pass
        return super().step(action)


gym.register("Slow/CartPole-v1", SlowCartPole, max_episode_steps=500)


def speed(env: lh.GymnasiumVecEnv, steps: int) -> float:
    """Environment steps per second, after a tenth as many that don't count."""
    env.reset(0)
    env.action_space.seed(0)
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(steps + steps // 10)]
    for t, action in enumerate(actions):
        if t == steps // 10:
            started = time.perf_counter()
        env.step_arrays(action)
    return env.num_envs * steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", default=["ALE/Pong-v5", "ALE/Breakout-v5", "CartPole-v1", "Slow/CartPole-v1"])
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| environment | backend | steps per second |\n|---|---|---|")
    for env_id in arguments.ids:
        envs: dict[str, lh.GymnasiumVecEnv] = {}
        for backend in BACKENDS:
            try:
                envs[backend] = lh.make_gymnasium(env_id, arguments.num_envs, backend=backend)
            except lh.ConfigError as error:
                print(f"| {env_id} | {backend} | {error} |")
        speeds: dict[str, list[float]] = {backend: [] for backend in envs}
        for _ in range(arguments.rounds):
            for backend, env in envs.items():
                speeds[backend].append(speed(env, arguments.steps))
        for backend, found in speeds.items():
            spread = f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"
            print(f"| {env_id} | {backend} | {spread} |", flush=True)
            envs[backend].close()


if __name__ == "__main__":
    main()
