"""Trains every scenario in a few iterations, alone or on the ranks that torchrun starts, and keeps what was learned.

python scenarios.py DIRECTORY SHARDS NAME...
"""

import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import safetensors.torch
import torch

import levelhead as lh
from levelhead.config import (
    AuxiliaryConfig,
    CriticConfig,
    MemoryConfig,
    NetworkConfig,
    OptimizerConfig,
    ParallelConfig,
    PPOConfig,
)
from levelhead.distributed import is_first, process_group
from levelhead.schedules import constant

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import Guarded

ENVS, STEPS, ITERATIONS = 8, 16, 20
ROLLOUT = ENVS * STEPS
PPO = PPOConfig(epochs=2, minibatches=3)  # which doesn't divide a shard's rows
DOUBLE = NetworkConfig(actor=(8,), critic=(8,), precision="float64")
SINGLE = replace(DOUBLE, precision="float32")
BASE = lh.Config(
    "CartPole-v1",
    total_steps=ITERATIONS * ROLLOUT,
    num_envs=ENVS,
    num_steps=STEPS,
    device="cpu",
    checkpoint_every=ITERATIONS * ROLLOUT // 2,
    network=DOUBLE,
    ppo=PPO,
)
BRIEF = replace(BASE, total_steps=6 * ROLLOUT, checkpoint_every=3 * ROLLOUT)
LSTM = MemoryConfig("lstm", 6)
TORCH = replace(BASE, network=SINGLE, engine="torch", total_steps=ROLLOUT)
SCENARIOS = {
    "mlp": BASE,
    "lstm": replace(BASE, memory=LSTM, ppo=replace(PPO, chunk=8, burn_in=2, minibatches=2)),
    "masks": replace(BASE, env_id="Guarded-v0"),
    "invalid rows": replace(BASE, backend="vector"),  # an environment's reset takes a step, in which no action counts
    "kl stop": replace(BASE, ppo=replace(PPO, epochs=6, kl_limit=constant(1e-6))),
    "kl stop by epoch": replace(BRIEF, ppo=replace(PPO, epochs=6, kl_limit=constant(1e-6), kl_check="epoch")),
    "kl rate": replace(BRIEF, optimizer=OptimizerConfig(kl_target=constant(1e-3))),
    "kl penalty": replace(BRIEF, objective="kl"),
    "trust region": replace(BRIEF, objective="trpo", network=replace(DOUBLE, actor=(4,))),
    "observations": replace(BRIEF, env_id="Pendulum-v1", network=replace(DOUBLE, normalize_observation=True)),
    "rewards": replace(BRIEF, env_id="Pendulum-v1", normalize_reward=True, value="linear"),
    "tasks": replace(BRIEF, env_id="Pendulum-v1+MountainCarContinuous-v0"),
    "percentile": replace(BRIEF, ppo=replace(PPO, advantage="percentile")),
    "minibatch": replace(BRIEF, ppo=replace(PPO, advantage="minibatch", minibatches=2)),
    "mean of others": replace(BRIEF, baseline="mean", ppo=replace(PPO, advantage="none")),
    "v-trace": replace(BRIEF, targets="vtrace"),
    "histogram": replace(BRIEF, value="hlgauss"),
    "auxiliary": replace(BRIEF, auxiliary=AuxiliaryConfig(every=3, epochs=2)),
    "critic apart": replace(BRIEF, critic=CriticConfig(epochs_before=1, epochs_after=1, minibatches=2)),
    "single": TORCH,
    "native": replace(TORCH, engine="native"),
    "native, kl stop": replace(TORCH, engine="native", ppo=replace(PPO, epochs=6, kl_limit=constant(1e-6))),
}


def run(name: str, directory: Path, shards: int) -> None:
    """Leaves a run directory, and the policy as `<name>.safetensors`."""
    config = replace(SCENARIOS[name], run_dir=directory / name, parallel=ParallelConfig(shards=shards))
    policy = lh.train(config.env_id, config=config).policy
    if is_first():
        safetensors.torch.save_file(policy.state_dict(), directory / f"{name}.safetensors")


def main() -> None:
    directory, shards, *names = sys.argv[1:]
    gym.register("Guarded-v0", Guarded)
    torch.set_num_threads(1)
    with process_group():
        for name in names or SCENARIOS:
            run(name, Path(directory), int(shards))


if __name__ == "__main__":
    main()
