"""Hyperparameters for environments where the generic defaults fall short.

Whatever differs from `Config` has its source beside it:

- the paper: Schulman et al. 2017, "Proximal policy optimization algorithms"
- baselines: OpenAI's code for it, PPO2
- the Zoo: RL Baselines3 Zoo, `hyperparams/ppo.yml`
- measured: here, over seeds; `docs/log.md` and `benchmarks/learning.py` have the figures

Where a source normalises or clips rewards, for the sake of its critic, nothing here does: the value head is level.
"""

import math
import re
from dataclasses import replace
from typing import Literal, get_args

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
from levelhead.envs import is_atari
from levelhead.errors import ConfigError
from levelhead.schedules import Schedule, constant

BOX2D = ("BipedalWalker", "BipedalWalkerHardcore", "LunarLander", "LunarLanderContinuous")
MUJOCO = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
          "InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d")  # fmt: skip
ANNEALED = OptimizerConfig(learning_rate=Schedule(1e-3, 0.0))
NORMALIZED = NetworkConfig(normalize_observation=True)

PresetKind = Literal["tuned", "layered"]
LAYERED = OptimizerConfig(
    shared=GroupConfig(learning_rate=constant(6.5e-4), eps=1e-5),
    actor=GroupConfig(learning_rate=constant(3e-4), eps=1e-8),
    critic=GroupConfig(learning_rate=constant(1e-3), eps=1e-6),
)
"""A learning rate and an eps for each layer of the network: what is shared, what acts, what values.

The learning rates of actor and critic are those of OpenAI's Spinning Up; that of the shared layers is their mean.
"""


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

    Raises:
        ConfigError: there is no such objective, kind or targets.
    """
    for name, given, known in (
        ("objective", objective, get_args(ObjectiveKind)),
        ("preset", kind, get_args(PresetKind)),
        ("targets", targets, (None, *get_args(TargetKind))),
    ):
        if given not in known:
            raise ConfigError(f"{name} is {given}; accepted: one of {known}")
    config = _for_objective(_environment(env_id), objective)
    if objective == "a2c" and _name(env_id) in MUJOCO:  # measured
        config = replace(config, num_steps=16)
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
    if objective != "clip":  # nothing else reads it
        config = replace(config, ppo=replace(config.ppo, clip_range=PPOConfig.clip_range))
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


def _name(env_id: str) -> str:
    """An id without module and version."""
    return re.sub(r"-v\d+$", "", env_id.rpartition(":")[2])


def _environment(env_id: str) -> Config:
    base = Config(env_id)
    name = _name(env_id)
    if is_atari(env_id):
        return _atari(base)
    if name in MUJOCO:
        return _mujoco(base, name)
    if name in BOX2D:
        return _box2d(base, name)
    return _classic_control(base, name)


def _classic_control(base: Config, name: str) -> Config:
    match name:
        case "CartPole":  # measured
            return replace(base, total_steps=100_000, optimizer=ANNEALED)
        case "Acrobot":  # measured
            return replace(base, total_steps=300_000, optimizer=ANNEALED)
        case "Pendulum":  # epochs from the Zoo, whose discount of 0.9 was measured to be too short; the rest measured
            return replace(
                base,
                total_steps=200_000,
                num_steps=256,
                ppo=PPOConfig(gamma=0.95, epochs=10, minibatches=16),
                optimizer=ANNEALED,
            )
        case "MountainCar":  # Zoo
            return replace(
                base, total_steps=1_000_000, num_envs=16, num_steps=16, network=NORMALIZED, ppo=PPOConfig(lam=0.98)
            )
        case "MountainCarContinuous":  # measured, with white noise too: no worse
            return replace(
                base,
                total_steps=100_000,
                num_steps=256,
                network=NORMALIZED,
                action=ActionConfig(color=1.0),
                ppo=PPOConfig(minibatches=8),
                optimizer=OptimizerConfig(learning_rate=constant(1e-3)),
            )
        case _:
            return base


def _box2d(base: Config, name: str) -> Config:
    match name:
        case "BipedalWalker":  # Zoo
            return replace(
                base,
                total_steps=5_000_000,
                num_envs=32,
                num_steps=2048,
                network=NORMALIZED,
                ppo=PPOConfig(gamma=0.999, epochs=10, minibatches=1024, clip_range=constant(0.18)),
            )
        case "BipedalWalkerHardcore":  # Zoo
            return replace(
                base,
                total_steps=100_000_000,
                num_envs=16,
                num_steps=2048,
                network=NORMALIZED,
                ppo=PPOConfig(epochs=10, minibatches=512, clip_range=Schedule(0.2, 0.0), entropy_coef=constant(0.001)),
                optimizer=OptimizerConfig(learning_rate=Schedule(2.5e-4, 0.0)),
            )
        case _:  # both LunarLanders: steps, environments, discount, lambda, entropy from the Zoo; the rest measured
            return replace(
                base,
                total_steps=1_000_000,
                num_envs=16,
                num_steps=256,
                ppo=PPOConfig(gamma=0.999, lam=0.98, minibatches=16, entropy_coef=Schedule(0.01, 0.0)),
                optimizer=ANNEALED,
            )


def _mujoco(base: Config, name: str) -> Config:
    # The paper, section 6.1 and table 3: a million steps, 2048 rows, batches of 64, 10 epochs, 3e-4. That it is
    # annealed, and observations normalised, is from baselines.
    mujoco = replace(
        base,
        total_steps=1_000_000,
        num_steps=256,
        network=NORMALIZED,
        ppo=PPOConfig(epochs=10, minibatches=32),
        optimizer=OptimizerConfig(learning_rate=Schedule(3e-4, 0.0)),
    )
    # The Zoo's, whose 512 rows are of one environment.
    humanoid = replace(
        mujoco,
        total_steps=10_000_000,
        num_steps=64,
        network=NetworkConfig(actor=(256, 256), critic=(256, 256), activation="relu", normalize_observation=True),
        action=ActionConfig(std=constant(math.exp(-2))),
    )
    match name:
        case "HalfCheetah":  # learning rate and std measured
            return replace(mujoco, action=ActionConfig(std=constant(math.exp(-0.5))), optimizer=ANNEALED)
        case "Swimmer":  # Zoo
            return replace(
                mujoco,
                num_envs=4,
                num_steps=1024,
                ppo=PPOConfig(gamma=0.9999, lam=0.98, epochs=10, minibatches=16),
                optimizer=OptimizerConfig(learning_rate=constant(6e-4)),
            )
        case "Humanoid":  # Zoo
            return replace(
                humanoid,
                ppo=PPOConfig(
                    gamma=0.95,
                    lam=0.9,
                    epochs=5,
                    minibatches=2,
                    clip_range=constant(0.3),
                    entropy_coef=constant(0.00238306),
                ),
                optimizer=OptimizerConfig(learning_rate=constant(3.56987e-5), max_grad_norm=2.0),
            )
        case "HumanoidStandup":  # Zoo
            return replace(
                humanoid,
                ppo=PPOConfig(
                    lam=0.9,
                    epochs=20,
                    minibatches=16,
                    clip_range=constant(0.3),
                    entropy_coef=constant(3.62109e-6),
                ),
                optimizer=OptimizerConfig(learning_rate=constant(2.55673e-5), max_grad_norm=0.7),
            )
        case _:
            return mujoco


def _atari(base: Config) -> Config:
    # The paper, tables 5 and 6, where the value loss weighs 1; 0.5 of a squared error, as here, is the Zoo's. The
    # network, in which nothing but the heads is apart, is that of baselines (Huang et al. 2022, Atari 8).
    return replace(
        base,
        total_steps=10_000_000,
        network=NetworkConfig(actor=(), critic=()),
        ppo=PPOConfig(epochs=3, clip_range=Schedule(0.1, 0.0), entropy_coef=constant(0.01)),
        optimizer=OptimizerConfig(learning_rate=Schedule(2.5e-4, 0.0)),
    )
