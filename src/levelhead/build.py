"""Turns a config into objects: the one place that asks which variant was chosen."""

from typing import Any

import gymnasium as gym
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from levelhead.actions import ActionHead, CategoricalHead, GaussianHead
from levelhead.advantages import (
    AdvantageScaling,
    HeadScaledAdvantage,
    PercentileAdvantage,
    RawAdvantage,
    StandardizedAdvantage,
)
from levelhead.collector import Collector
from levelhead.config import AdvantageScale, Config, Device, GroupConfig, NetworkConfig
from levelhead.envs import VecEnv
from levelhead.errors import ConfigError
from levelhead.learner import GroupSettings, Learner, LearnerSettings
from levelhead.networks import Network, ObservationNormalizer, Policy, mlp
from levelhead.objectives import ClipObjective, Objective
from levelhead.seeding import Stream, derive
from levelhead.spaces import require_action, require_observation
from levelhead.trainer import Trainer, TrainerSettings
from levelhead.values import (
    SIGNED_SQRT,
    SYMLOG,
    HLGaussValueHead,
    LinearValueHead,
    PopArtValueHead,
    RunningNormHead,
    TransformValueHead,
    TwoHotValueHead,
    ValueHead,
    ValueNormHead,
)


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


def build_value_head(config: Config, input_dim: int, tasks: int = 1) -> ValueHead:
    """The value head that the config names, with an output per task; `head.beta` is the trainer's business."""
    match config.value:
        case "popart":
            return PopArtValueHead(input_dim, tasks)
        case "runningnorm":
            return RunningNormHead(input_dim, tasks)
        case "valuenorm":
            return ValueNormHead(input_dim, tasks)
        case "hlgauss":
            return HLGaussValueHead(input_dim, tasks)
        case "twohot":
            return TwoHotValueHead(input_dim, tasks)
        case "symlog":
            return TransformValueHead(input_dim, tasks, transform=SYMLOG)
        case "sqrt":
            return TransformValueHead(input_dim, tasks, transform=SIGNED_SQRT)
        case "linear":
            return LinearValueHead(input_dim, tasks)


def build_advantage(kind: AdvantageScale, tasks: int, device: torch.device) -> AdvantageScaling:
    """How advantages are scaled."""
    match kind:
        case "rollout":
            return StandardizedAdvantage()
        case "head":
            return HeadScaledAdvantage()
        case "percentile":
            return PercentileAdvantage(tasks, device)
        case "none":
            return RawAdvantage()


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
    tasks: tuple[str, ...] = (),
) -> Policy:
    """A policy with fresh weights, drawn from the config's seed; torch's global generator is left as it was.

    Args:
        config: of the run.
        observation_space, action_space: of a single environment.
        network: torsos of your own.
        value_head: one of your own.
        tasks: names of those that the environments play; the value head has an output for each.

    Raises:
        ConfigError: a space that nothing fits, or a value head that doesn't fit the network.
    """
    shape = require_observation(observation_space).shape
    dim, outputs = torch.Size(shape).numel(), max(len(tasks), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, Stream.NETWORK))
        network = network or build_network(config, dim)
        value_head = value_head or build_value_head(config, network.critic_dim, outputs)
        if (value_head.input_dim, value_head.output_dim) != (network.critic_dim, outputs):
            raise ConfigError(
                f"the value head reads {value_head.input_dim} features and has {value_head.output_dim} outputs;"
                f" this network needs {network.critic_dim}, and the environments {outputs}, one per task"
            )
        policy = Policy(
            observation_shape=shape,
            network=network,
            action_head=build_action_head(config, network.actor_dim, action_space),
            value_head=value_head,
            normalizer=ObservationNormalizer(dim) if config.network.normalize_observation else None,
            action_space=action_space,
            tasks=tasks,
        )
    policy = policy.to(build_device(config.device))
    _check(policy)
    return policy


@torch.no_grad()
def _check(policy: Policy) -> None:
    """Refuses a network that would fail later, or quietly do something else than was meant.

    Raises:
        ConfigError: a parameter in no group or in two, features of another size than stated, or a module that acts
            differently in training, so that what was acted on is not what is learned from.
    """
    grouped = [id(p) for group in policy.groups().values() for p in group]
    for name, parameter in policy.named_parameters():
        if grouped.count(id(parameter)) != 1:
            raise ConfigError(
                f"parameter {name} is in {grouped.count(id(parameter))} of shared, actor and critic; accepted: one"
            )
    for name, module in policy.named_modules():
        if isinstance(module, _DropoutNd | _BatchNorm):
            raise ConfigError(f"module {name}, {module}, acts differently in training and in evaluation")
    network, observation = policy.network, torch.zeros(1, *policy.observation_shape, device=policy.device)
    try:
        features = policy.features(policy.prepare(observation))
    except RuntimeError as error:
        raise ConfigError(f"the network doesn't take observations {tuple(observation.shape)}: {error}") from error
    for name, given, stated in zip(("actor", "critic"), features, (network.actor_dim, network.critic_dim), strict=True):
        if given.shape != (1, stated) or given.dtype != torch.float32:
            raise ConfigError(
                f"network.{name} answers {tuple(given.shape)} of {given.dtype};"
                f" by {name}_dim it should be (1, {stated}) of torch.float32"
            )


def build_trainer(config: Config, env: VecEnv, policy: Policy, objective: Objective | None = None) -> Trainer:
    """A trainer at its beginning; resets the environments."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ConfigError("training runs in one process, and a torch.distributed process group exists")
    ppo = config.ppo
    head = policy.value_head
    if ppo.value_clip is not None and not head.takes_clip:
        raise ConfigError(f"ppo.value_clip has nothing to act on: the loss of {type(head).__name__} is a cross-entropy")
    if type(env.tasks) is not tuple or len(set(env.tasks)) < len(env.tasks):
        raise ConfigError(f"the environments' tasks are {env.tasks!r}; accepted: a tuple of different names")
    if env.task is not None and not env.tasks:
        raise ConfigError("the environments say which task they play, and name none in `tasks`")
    if policy.tasks != env.tasks:
        raise ConfigError(f"the policy was made for tasks {policy.tasks}; the environments play {env.tasks}")
    advantage = build_advantage(ppo.advantage, head.output_dim, policy.device)
    for name, used in (
        ("head.beta", config.head.beta is not None),
        (f"ppo.advantage {ppo.advantage!r}", advantage.needs_statistics),
    ):
        if used and not head.has_statistics:
            raise ConfigError(f"{name} has nothing to act on: {type(head).__name__} keeps no statistics")
    for name in ("shared", "actor", "critic"):
        if name not in policy.groups() and getattr(config.optimizer, name) != GroupConfig():
            raise ConfigError(f"optimizer.{name} has nothing to act on: the network has no such parameters")
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
        advantage,
        TrainerSettings(
            total_steps=config.total_steps,
            gamma=ppo.gamma,
            lam=ppo.lam,
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
