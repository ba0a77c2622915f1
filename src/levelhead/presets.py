"""Hyperparameters for environments where the generic defaults fall short.

"Measured" means here, over seeds: `docs/log.md` and `benchmarks/learning.py` have the figures.
"""

import math
import re
from dataclasses import replace
from typing import Literal

from levelhead.config import (
    ActionConfig,
    Config,
    GroupConfig,
    NetworkConfig,
    ObjectiveKind,
    OptimizerConfig,
    PPOConfig,
    TargetKind,
)
from levelhead.schedules import Schedule, constant

MUJOCO = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
          "InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d")  # fmt: skip
ANNEALED = OptimizerConfig(learning_rate=Schedule(1e-3, 0.0))


PresetKind = Literal["tuned", "layered"]
LAYERED = OptimizerConfig(
    shared=GroupConfig(learning_rate=constant(6.5e-4), eps=1e-5),
    actor=GroupConfig(learning_rate=constant(3e-4), eps=1e-8),
    critic=GroupConfig(learning_rate=constant(1e-3), eps=1e-6),
)
"""A learning rate and an eps for each layer of the network: what is shared, what acts, what values."""


def preset(
    env_id: str, objective: ObjectiveKind = "clip", kind: PresetKind = "tuned", targets: TargetKind | None = None
) -> Config:
    """The config to start from for an environment and an objective.

    Args:
        env_id: in Gymnasium's registry.
        objective: what the actor maximises.
        kind: `tuned` for the environment, or `layered`: the same but for a hidden layer that actor and critic share,
            one more for each of them, and `LAYERED` learning rates.
        targets: how returns are estimated; None for what goes with the objective.
    """
    config = _for_objective(_environment(env_id), objective)
    if targets is not None:
        config = _with_targets(config, targets)
    match kind:
        case "tuned":
            return config
        case "layered":
            network = replace(config.network, shared=(64,), actor=(64,), critic=(64,))
            return replace(config, network=network, optimizer=LAYERED)


def _for_objective(config: Config, objective: ObjectiveKind) -> Config:
    optimizer, rate = config.optimizer, config.optimizer.learning_rate
    match objective:
        case "clip":
            return config
        case "kl":
            # The penalty can keep the divergence at its target only as long as steps could take it further.
            steady = replace(optimizer, learning_rate=constant(rate.start))
            return replace(config, objective=objective, optimizer=steady)
        case "trpo":
            return replace(config, objective=objective)
        case "a2c":  # returns to the end of rollouts of 5 steps, from Mnih et al. 2016
            once = replace(config, num_steps=5, ppo=replace(config.ppo, epochs=1, minibatches=1))
            return replace(_with_targets(once, "mc"), objective=objective)
        case "vpg":  # measured
            return replace(config, objective=objective, num_steps=64, ppo=replace(config.ppo, epochs=10, minibatches=4))


def _with_targets(config: Config, targets: TargetKind) -> Config:
    """Without the environment's lambda where nothing reads it."""
    lam = config.ppo.lam if targets in ("gae", "vtrace") else PPOConfig.lam
    return replace(config, targets=targets, ppo=replace(config.ppo, lam=lam))


def _environment(env_id: str) -> Config:
    base = Config(env_id)
    name = re.sub(r"-v\d+$", "", env_id.rpartition(":")[2])
    match name:
        case "CartPole":  # learning rate measured
            return replace(base, total_steps=100_000, optimizer=ANNEALED)
        case "Acrobot":  # learning rate measured
            return replace(base, total_steps=300_000, optimizer=ANNEALED)
        case (
            "Pendulum"
        ):  # epochs from RL Baselines3 Zoo; its discount of 0.9 measured to be too short; the rest measured
            return replace(
                base,
                total_steps=200_000,
                num_steps=256,
                ppo=PPOConfig(gamma=0.95, epochs=10, minibatches=16),
                optimizer=ANNEALED,
            )
        case "MountainCarContinuous":  # measured, with white noise too: no worse
            return replace(
                base,
                total_steps=100_000,
                num_steps=256,
                network=NetworkConfig(normalize_observation=True),
                action=ActionConfig(color=1.0),
                ppo=PPOConfig(minibatches=8),
                optimizer=OptimizerConfig(learning_rate=constant(1e-3)),
            )
        case (
            "LunarLander" | "LunarLanderContinuous"
        ):  # discount, lambda, entropy from RL Baselines3 Zoo; the rest measured
            return replace(
                base,
                total_steps=1_000_000,
                num_envs=16,
                num_steps=256,
                ppo=PPOConfig(gamma=0.999, lam=0.98, minibatches=16, entropy_coef=Schedule(0.01, 0.0)),
                optimizer=ANNEALED,
            )
        case _ if name in MUJOCO:
            # Schulman et al. 2017, table 3: 2048 rows, batches of 64, 10 epochs, 3e-4 annealed.
            mujoco = replace(
                base,
                total_steps=1_000_000,
                num_steps=256,
                network=NetworkConfig(normalize_observation=True),
                ppo=PPOConfig(epochs=10, minibatches=32),
                optimizer=OptimizerConfig(learning_rate=Schedule(3e-4, 0.0)),
            )
            if name != "HalfCheetah":
                return mujoco
            # Learning rate and std measured.
            return replace(mujoco, action=ActionConfig(std=constant(math.exp(-0.5))), optimizer=ANNEALED)
        case _:
            return base
