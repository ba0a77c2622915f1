"""Turns a config into objects: the one place that asks which variant was chosen."""

from typing import Any

import gymnasium as gym
import torch
from torch import nn

from levelhead.actions import ActionHead, CategoricalHead, GaussianHead
from levelhead.collector import Collector
from levelhead.config import Config, Device, GroupConfig, NetworkConfig
from levelhead.envs import VecEnv
from levelhead.errors import ConfigError
from levelhead.learner import GroupSettings, Learner, LearnerSettings
from levelhead.networks import Network, ObservationNormalizer, Policy, mlp
from levelhead.objectives import ClipObjective, Objective
from levelhead.seeding import Stream, derive
from levelhead.spaces import require_action, require_observation
from levelhead.trainer import Trainer, TrainerSettings
from levelhead.values import LinearValueHead, PopArtValueHead, RunningNormHead, ValueHead, ValueNormHead


def build_device(device: Device) -> torch.device:
    """The device that a config means.

    Raises:
        ConfigError: `cuda` where there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("device is 'cuda', and torch sees no GPU; accepted here: auto, cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def build_network(config: Config, observation_dim: int) -> Network:
    """Multi-layer perceptrons, shared from the observation up as far as the config says."""
    c = config.network
    shared_dim = c.shared[-1] if c.shared else observation_dim
    return Network(
        shared=mlp(observation_dim, c.shared, c.activation) if c.shared else nn.Identity(),
        actor=mlp(shared_dim, c.actor, c.activation),
        critic=mlp(shared_dim, c.critic, c.activation),
        actor_dim=c.actor[-1] if c.actor else shared_dim,
        critic_dim=c.critic[-1] if c.critic else shared_dim,
    )


def build_value_head(config: Config, input_dim: int) -> ValueHead:
    """The value head that the config names; `head.beta` is the trainer's business."""
    match config.value:
        case "popart":
            return PopArtValueHead(input_dim)
        case "runningnorm":
            return RunningNormHead(input_dim)
        case "valuenorm":
            return ValueNormHead(input_dim)
        case "linear":
            return LinearValueHead(input_dim)


def build_action_head(config: Config, input_dim: int, space: gym.Space[Any]) -> ActionHead:
    """The head that fits an action space."""
    space = require_action(space)
    if isinstance(space, gym.spaces.Discrete):
        if config.network.log_std != NetworkConfig().log_std:
            raise ConfigError(f"network.log_std has nothing to act on: actions are {space}")
        return CategoricalHead(input_dim, int(space.n), int(space.start))
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    return GaussianHead(input_dim, low, high, config.network.log_std)


def build_policy(
    config: Config,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: Network | None = None,
    value_head: ValueHead | None = None,
) -> Policy:
    """A policy with fresh weights, drawn from the config's seed; torch's global generator is left as it was.

    Raises:
        ConfigError: a space that nothing fits, or a value head that doesn't fit the network.
    """
    shape = require_observation(observation_space).shape
    dim = torch.Size(shape).numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, Stream.NETWORK))
        network = network or build_network(config, dim)
        value_head = value_head or build_value_head(config, network.critic_dim)
        if (value_head.input_dim, value_head.output_dim) != (network.critic_dim, 1):
            raise ConfigError(
                f"the value head reads {value_head.input_dim} features and has {value_head.output_dim} outputs;"
                f" this network needs {network.critic_dim} and 1"
            )
        policy = Policy(
            observation_shape=shape,
            network=network,
            action_head=build_action_head(config, network.actor_dim, action_space),
            value_head=value_head,
            normalizer=ObservationNormalizer(dim) if config.network.normalize_observation else None,
            action_space=action_space,
        )
    return policy.to(build_device(config.device))


def build_trainer(config: Config, env: VecEnv, policy: Policy, objective: Objective | None = None) -> Trainer:
    """A trainer at its beginning; resets the environments."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ConfigError("training runs in one process, and a torch.distributed process group exists")
    ppo = config.ppo
    head = policy.value_head
    for name, used in (("head.beta", config.head.beta is not None), ("ppo.advantage 'head'", ppo.advantage == "head")):
        if used and not head.has_statistics:
            raise ConfigError(f"{name} has nothing to act on: {type(head).__name__} keeps no statistics")
    learner = Learner(
        policy,
        objective or ClipObjective(ppo.clip_range, policy.device),
        LearnerSettings(
            epochs=ppo.epochs,
            minibatches=ppo.minibatches,
            entropy_coef=ppo.entropy_coef,
            value_coef=ppo.value_coef,
            value_clip=ppo.value_clip,
            groups={name: _group(config, getattr(config.optimizer, name)) for name in ("shared", "actor", "critic")},
        ),
        config.seed,
    )
    return Trainer(
        policy,
        Collector(env, policy, config.num_steps, config.seed, config.reward_scale),
        learner,
        TrainerSettings(
            total_steps=config.total_steps,
            gamma=ppo.gamma,
            lam=ppo.lam,
            advantage=ppo.advantage,
            beta=config.head.beta,
        ),
    )


def _group(config: Config, group: GroupConfig) -> GroupSettings:
    common = config.optimizer
    return GroupSettings(
        learning_rate=group.learning_rate or common.learning_rate,
        eps=common.eps if group.eps is None else group.eps,
        max_grad_norm=common.max_grad_norm if group.max_grad_norm is None else group.max_grad_norm,
    )
