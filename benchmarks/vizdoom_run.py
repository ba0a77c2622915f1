"""ViZDoom's Deathmatch with everything at once: images, hybrid actions, and memory on demand. Where does the time go?

    python benchmarks/vizdoom_run.py [--steps 8192] [--memory lstm] [--encoder impala] [--envs 8]

Trains for a few thousand steps and prints seconds of collecting (acting and the game) and of learning for every
iteration, then steps per second of each and of both. The first iteration, in which kernels are chosen, doesn't count.
It is no claim about learning: that takes millions of steps. Needs `pip install vizdoom==1.3.2`.
"""

import argparse
import math
import sys
from typing import get_args

import environments  # noqa: F401  registers it
import torch

import levelhead as lh
from levelhead.config import MemoryKind
from levelhead.networks import ImageEncoder

ENV_ID = "levelhead/VizdoomDeathmatch-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8192)
    parser.add_argument("--memory", default="none", choices=get_args(MemoryKind))
    parser.add_argument("--encoder", default="nature", choices=get_args(ImageEncoder))
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--rollout", type=int, default=64, help="steps of each environment")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    config = lh.Config(
        ENV_ID,
        total_steps=a.steps,
        num_envs=a.envs,
        num_steps=a.rollout,
        network=lh.NetworkConfig(actor=(), critic=(), activation="relu", image_encoder=a.encoder),
        memory=lh.MemoryConfig() if a.memory == "none" else lh.MemoryConfig(a.memory, 256),
        ppo=lh.PPOConfig(entropy_coef=0.01),
    )
    env = lh.make_gymnasium(ENV_ID, a.envs)
    try:
        policy = lh.build_policy(config, env.observation_space, env.action_space)
        count = sum(p.numel() for p in policy.parameters())
        print(f"{env.observation_space}\n{env.action_space}\n{count:,} parameters on {policy.device}\n")
        print(f"{'steps':>8} {'collect':>9} {'learn':>9} {'steps/s':>8} {'return':>8} {'entropy':>8}")
        measured: list[lh.Iteration] = []
        for iteration in lh.build_trainer(config, env, policy):
            m = iteration.metrics
            print(
                f"{iteration.step:>8,} {m['time/collect']:>7.2f} s {m['time/learn']:>7.2f} s {m['time/fps']:>8,.0f}"
                f" {m.get('rollout/ep_rew_mean', math.nan):>8.2f} {m['entropy/action']:>8.2f}",
                flush=True,
            )
            measured.append(iteration)
    finally:
        env.close()
    if len(measured) < 2:
        sys.exit("the first iteration doesn't count; take more steps")
    steps = sum(i.steps for i in measured[1:])
    collect, learn = (sum(i.metrics[name] for i in measured[1:]) for name in ("time/collect", "time/learn"))
    print(
        f"\n{steps:,} steps after the first iteration: collecting {steps / collect:,.0f} steps/s, learning"
        f" {steps / learn:,.0f} steps/s, both {steps / (collect + learn):,.0f} steps/s;"
        f" collecting takes {collect / (collect + learn):.0%} of the time"
    )


if __name__ == "__main__":
    main()
