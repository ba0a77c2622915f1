"""Turns a config into objects: the one place that asks which variant was chosen."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from levelhead.actions import (
    ActionHead,
    BetaHead,
    CategoricalHead,
    ConditionedSigma,
    Gate,
    GaussianHead,
    IndependentSigma,
    JointHead,
    MultiCategoricalHead,
    Part,
    ScheduledSigma,
    Sigma,
    TanhGaussianHead,
    in_order,
)
from levelhead.advantages import (
    AdvantageScaling,
    HeadScaledAdvantage,
    PercentileAdvantage,
    RawAdvantage,
    StandardizedAdvantage,
)
from levelhead.auxiliary import Auxiliary
from levelhead.collector import Collector
from levelhead.config import ActionConfig, AdvantageScale, Config, Device, GroupConfig, require_default
from levelhead.criterion import Criterion, CriterionSettings
from levelhead.divergence import KLControl
from levelhead.envs import VecEnv
from levelhead.errors import ConfigError
from levelhead.estimators import GAE, Estimator, NStep, VTrace
from levelhead.layers import mlp
from levelhead.learner import Learner
from levelhead.networks import GRU, LSTM, Encoder, Memory, Network, ObservationReader, Policy, Torso
from levelhead.objectives import (
    A2CObjective,
    ClipObjective,
    KLObjective,
    Objective,
    TrustRegionObjective,
    VPGObjective,
)
from levelhead.optimizer import AUXILIARY, GroupSettings, Optimizer, OptimizerSettings
from levelhead.phases import Epochs, Phase, Split
from levelhead.rewards import RewardTransform
from levelhead.schedules import Coefficient
from levelhead.seeding import Stream, derive
from levelhead.spaces import Space, action_tree, choices_of, zeros
from levelhead.trainer import Trainer, TrainerSettings
from levelhead.tree import by_path, paths, tree_leaves
from levelhead.trust_region import TrustRegion
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

NOISE_SETTINGS = ("sigma", "std", "std_hidden", "log_std_bounds", "color")
"""Of a Gaussian, by their names in `ActionConfig`."""


def build_device(device: Device) -> torch.device:
    """The device that a config means.

    Raises:
        ConfigError: `cuda` where there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("device is 'cuda', and torch sees no GPU; accepted here: auto, cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def build_network(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """Torsos of linear layers, after an encoder where an observation has several parts or images, and their memory.

    Args:
        config: of the run.
        shapes: of the observation's parts, by path, as `ObservationReader.shapes` says.

    Raises:
        ConfigError: images that the encoder doesn't take.
    """
    c, separate = config.network, config.memory.sharing == "separate"
    images = any(len(shape) == 3 for shape in shapes.values())
    if not images:
        require_default("network", c, ("image_encoder",), "no part of the observation is an image")
    encoder = Encoder(shapes, c.image_encoder) if images or list(shapes) != [""] else None
    dim = encoder.dim if encoder else shapes[""][0]
    shared, shared_dim = _torso(config, dim, c.shared, remembers=not separate)
    actor, actor_dim = _torso(config, shared_dim, c.actor, remembers=separate)
    critic, critic_dim = _torso(config, shared_dim, c.critic, remembers=separate)
    first = [encoder] if encoder else []
    return Network(Torso(*first, *shared), Torso(*actor), Torso(*critic), actor_dim, critic_dim)


def _torso(config: Config, dim: int, hidden: tuple[int, ...], remembers: bool) -> tuple[Sequence[nn.Module], int]:
    """Layers on so many features, a memory among them if it has one, and the number of features after them."""
    memory = config.memory
    if not remembers or memory.kind == "none":
        return ([mlp(dim, hidden, config.network.activation)] if hidden else []), (hidden[-1] if hidden else dim)
    match memory.place:
        case "before":
            layers = [_memory(config, dim), mlp(memory.size, hidden, config.network.activation)]
            return layers, hidden[-1] if hidden else memory.size
        case "after":
            layers = [mlp(dim, hidden, config.network.activation), _memory(config, hidden[-1] if hidden else dim)]
            return layers, memory.size


def _memory(config: Config, dim: int) -> Memory:
    match config.memory.kind:
        case "lstm":
            return LSTM(dim, config.memory.size)
        case "gru":
            return GRU(dim, config.memory.size)
        case "none":
            raise ValueError("no memory was asked for")


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
        case "rollout" | "minibatch":
            return StandardizedAdvantage()
        case "head":
            return HeadScaledAdvantage()
        case "percentile":
            return PercentileAdvantage(tasks, device)
        case "none":
            return RawAdvantage()


def build_action_head(config: Config, input_dim: int, space: Space) -> ActionHead:
    """The head that fits an action space: one per part, joined as the config says.

    Raises:
        ConfigError: no head fits, or a setting has nothing to act on.
    """
    tree = action_tree(space)
    c = config.action
    if not any(isinstance(leaf, gym.spaces.Box) for leaf in tree_leaves(tree)):
        require_default("action", c, ("distribution", "bounds", *NOISE_SETTINGS), f"actions are {space}")
    if not isinstance(tree, dict | tuple):
        for name in ("gates", "sees"):
            if getattr(c, name):
                raise ConfigError(f"action.{name} has nothing to act on: actions are {space}, a single part")
        return _leaf_head(c, input_dim, tree)
    leaves = by_path(tree)
    for name, path in [("gates", p) for p in c.gates] + [("sees", p) for p in c.sees]:
        if path not in leaves:
            raise ConfigError(f"action.{name} names {path!r}; the parts of the action are {', '.join(leaves)}")
    parts = {path: _part(c, path, leaf) for path, leaf in leaves.items()}
    return JointHead(input_dim, in_order(parts), paths(tree))


def _part(c: ActionConfig, path: str, space: Space) -> Part:
    gate = None
    if path in c.gates:
        ((chooser, values),) = c.gates[path].items()
        gate = Gate(chooser, tuple(values))
    return Part(partial(_leaf_head, c, space=space), tuple(c.sees.get(path, ())), gate)


def _leaf_head(c: ActionConfig, input_dim: int, space: Space) -> ActionHead:
    match space:
        case gym.spaces.Discrete():
            return CategoricalHead(input_dim, int(space.n), int(space.start))
        case gym.spaces.MultiDiscrete() | gym.spaces.MultiBinary():
            return MultiCategoricalHead(input_dim, *choices_of(space), space.shape)
        case gym.spaces.Box():
            try:
                return _box_head(c, input_dim, torch.from_numpy(space.low), torch.from_numpy(space.high))
            except ValueError as error:
                raise ConfigError(f"actions {space}: {error}") from error
        case _:
            raise TypeError(f"no head for {space}")


def _box_head(c: ActionConfig, input_dim: int, low: Tensor, high: Tensor) -> ActionHead:
    if c.distribution != "gaussian":
        require_default("action", c, ("bounds",), f"a {c.distribution} distribution stays within them")
    match c.distribution:
        case "gaussian":
            sigma = build_sigma(c, input_dim, low.numel())
            return GaussianHead(input_dim, low, high, sigma, bounds=c.bounds, color=c.color)
        case "tanh":
            return TanhGaussianHead(input_dim, low, high, build_sigma(c, input_dim, low.numel()), color=c.color)
        case "beta":
            require_default("action", c, NOISE_SETTINGS, "a Beta distribution has no such thing")
            return BetaHead(input_dim, low, high)


def build_sigma(c: ActionConfig, input_dim: int, dim: int) -> Sigma:
    """The standard deviation that a config describes.

    Raises:
        ConfigError: a setting has nothing to act on.
    """
    if c.std_hidden and c.sigma != "conditioned":
        raise ConfigError(f"action.std_hidden has nothing to act on: action.sigma is {c.sigma}")
    if c.log_std_bounds and c.sigma in ("fixed", "scheduled"):
        raise ConfigError(f"action.log_std_bounds has nothing to act on: action.sigma is {c.sigma}")
    match c.sigma:
        case "fixed" | "scheduled":
            return ScheduledSigma(dim, c.std)
        case "independent":
            return IndependentSigma(dim, c.std.start, c.log_std_bounds)
        case "conditioned":
            if c.log_std_bounds is None:
                return ConditionedSigma(input_dim, dim, c.std.start, c.std_hidden)
            return ConditionedSigma(input_dim, dim, c.std.start, c.std_hidden, c.log_std_bounds)


def build_policy(
    config: Config,
    observation_space: Space,
    action_space: Space,
    network: Network | None = None,
    value_head: ValueHead | None = None,
    tasks: tuple[str, ...] = (),
    action_head: ActionHead | None = None,
) -> Policy:
    """A policy with fresh weights, drawn from the config's seed; torch's global generator is left as it was.

    Args:
        config: of the run.
        observation_space, action_space: of a single environment.
        network: torsos of your own.
        value_head: one of your own.
        tasks: names of those that the environments play; the value head has an output for each.
        action_head: one of your own.

    Raises:
        ConfigError: a space that nothing fits, or a value head that doesn't fit the network.
    """
    outputs = max(len(tasks), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, Stream.NETWORK))
        reader = ObservationReader(observation_space, config.network.normalize_observation)
        network = network or build_network(config, reader.shapes)
        value_head = value_head or build_value_head(config, network.critic_dim, outputs)
        if (value_head.input_dim, value_head.output_dim) != (network.critic_dim, outputs):
            raise ConfigError(
                f"the value head reads {value_head.input_dim} features and has {value_head.output_dim} outputs;"
                f" this network needs {network.critic_dim}, and the environments {outputs}, one per task"
            )
        policy = Policy(
            reader=reader,
            network=network,
            action_head=action_head or build_action_head(config, network.actor_dim, action_space),
            value_head=value_head,
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
    network, space = policy.network, policy.observation_space
    reset = torch.ones(1, 1, dtype=torch.bool, device=policy.device)
    try:
        features = policy.features(policy.reader(zeros(space, (1,), policy.device)), network.initial_state(1), reset)
    except RuntimeError as error:
        raise ConfigError(f"the network doesn't take observations of {space}: {error}") from error
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
    if not head.squared:
        reason = f"the loss of {type(head).__name__} is a cross-entropy"
        require_default("ppo", ppo, ("value_clip", "value_huber"), reason)
    if type(env.tasks) is not tuple or len(set(env.tasks)) < len(env.tasks):
        raise ConfigError(f"the environments' tasks are {env.tasks!r}; accepted: a tuple of different names")
    if env.task is not None and not env.tasks:
        raise ConfigError("the environments say which task they play, and name none in `tasks`")
    if policy.tasks != env.tasks:
        raise ConfigError(f"the policy was made for tasks {policy.tasks}; the environments play {env.tasks}")
    chunk = _chunk(config, policy)
    if ppo.entropy_coef.bounds != (0.0, 0.0) and not policy.action_head.entropy_learned:
        raise ConfigError("ppo.entropy_coef has nothing to act on: nothing that is learned decides the entropy")
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
    return Trainer(
        policy,
        Collector(env, policy, config.num_steps, config.seed, config.reward_scale, ppo.chunk, ppo.burn_in),
        build_learner(config, policy, objective or build_objective(config, policy.device)),
        build_estimator(config),
        advantage,
        _reward_transform(config, env, policy),
        TrainerSettings(
            total_steps=config.total_steps,
            beta=config.head.beta,
            chunk=chunk,
            burn_in=ppo.burn_in,
        ),
    )


def _reward_transform(config: Config, env: VecEnv, policy: Policy) -> RewardTransform | None:
    if not config.normalize_reward:
        if config.clip_reward is None:
            return None
        return RewardTransform(env.num_envs, config.ppo.gamma, False, config.clip_reward, policy.device)
    if env.tasks:
        raise ConfigError("normalize_reward has one scale for all rewards, and the environments play several tasks")
    head = policy.value_head
    if head.has_statistics:
        warnings.warn(
            f"normalize_reward and {type(head).__name__} both level the scale of returns. The head alone is enough, and"
            " keeps values in reward units; without it, --value linear goes with --normalize-reward.",
            stacklevel=3,
        )
    return RewardTransform(env.num_envs, config.ppo.gamma, True, config.clip_reward, policy.device)


def build_objective(config: Config, device: torch.device) -> Objective:
    """What the actor maximises."""
    ppo = config.ppo
    match config.objective:
        case "clip":
            return ClipObjective(ppo.clip_range, device, ppo.dual_clip)
        case "kl":
            return KLObjective(ppo.kl_target, device)
        case "trpo":
            return TrustRegionObjective(ppo.kl_target, device)
        case "a2c":
            return A2CObjective()
        case "vpg":
            return VPGObjective()


def build_estimator(config: Config) -> Estimator:
    """How advantages and value targets are computed."""
    ppo, baseline, credit = config.ppo, config.baseline, config.credit
    match config.targets:
        case "gae":
            return GAE(ppo.gamma, baseline, credit, ppo.lam)
        case "mc":
            return GAE(ppo.gamma, baseline, credit, 1.0)
        case "nstep":
            return NStep(ppo.gamma, baseline, credit, ppo.n_step)
        case "vtrace":
            return VTrace(ppo.gamma, baseline, credit, ppo.lam)


def build_learner(config: Config, policy: Policy, objective: Objective) -> Learner:
    """How actor and critic learn from a rollout."""
    ppo, common = config.ppo, config.optimizer
    if isinstance(objective, TrustRegionObjective | VPGObjective):
        config.require_nothing_for_several_steps(f"the objective is a {type(objective).__name__}")
    control = KLControl(ppo.kl_limit, ppo.kl_check, common.kl_target, policy.device)
    settings = CriterionSettings(
        entropy_coef=ppo.entropy_coef,
        value_coef=ppo.value_coef,
        value_clip=ppo.value_clip,
        value_huber=ppo.value_huber,
        standardize=ppo.advantage == "minibatch",
    )
    criterion = Criterion(policy, objective, settings, kl=objective.needs_kl or control.needs_kl)
    groups = {name: _group(config, getattr(common, name)) for name in ("shared", "actor", "critic")}
    layer = None
    if config.auxiliary.every:
        layer, groups[AUXILIARY] = _auxiliary_layer(policy), _group(config, GroupConfig())
    optimizer = Optimizer(
        policy,
        OptimizerSettings(
            groups=groups,
            max_grad_norm=common.max_grad_norm if common.clip == "global" else None,
            weight_decay=common.weight_decay,
            warmup=common.warmup,
        ),
        () if layer is None else tuple(layer.parameters()),
    )

    def critic_epochs(epochs: int, minibatches: int) -> list[Phase]:
        return [Epochs(criterion.critic, optimizer, Split(epochs, minibatches))] if epochs else []

    split = Split(ppo.epochs, ppo.minibatches)
    fitted = critic_epochs(ppo.epochs, ppo.minibatches)
    own = config.critic.minibatches or ppo.minibatches
    match objective:
        case TrustRegionObjective():
            phases = [TrustRegion(criterion, optimizer, objective), *fitted]
        case VPGObjective():
            phases = [Epochs(criterion.actor, optimizer, Split(1, 1)), *fitted]
        case _:
            loss = criterion.joint if config.critic.joint else criterion.actor
            phases = [Epochs(loss, optimizer, split, control if control.needs_kl else None)]
    before, after = critic_epochs(config.critic.epochs_before, own), critic_epochs(config.critic.epochs_after, own)
    phases = [*before, *phases, *after]
    if layer is not None:
        every, clone_coef = config.auxiliary.every, Coefficient(config.auxiliary.clone_coef, policy.device)
        own_split = Split(config.auxiliary.epochs, ppo.minibatches)
        phases.append(Auxiliary(criterion, layer, optimizer, own_split, every, clone_coef))
    return Learner(criterion, optimizer, control, phases, fitted, ppo.freeze_actor, config.seed)


def _auxiliary_layer(policy: Policy) -> nn.Linear:
    """Predicts values, 0 at first, from the actor's features."""
    network, head = policy.network, policy.value_head
    if not [*network.shared.parameters(), *network.actor.parameters()]:
        raise ConfigError("auxiliary.every has nothing to act on: the actor has no layers below its head")
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(network.actor_dim, head.output_dim)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer.to(policy.device)


def _chunk(config: Config, policy: Policy) -> int:
    """Steps that are learned from in order: one where nothing is remembered."""
    given, steps, count = config.ppo.chunk, config.num_steps, config.ppo.minibatches
    if config.ppo.burn_in and given in (None, steps):
        raise ConfigError("ppo.burn_in has nothing to act on: ppo.chunk leaves whole rollouts in one piece")
    if config.ppo.burn_in and given is not None and config.ppo.burn_in >= given:
        raise ConfigError(f"ppo.burn_in is {config.ppo.burn_in}; accepted: less than ppo.chunk, {given}")
    if not policy.remembers:
        if given is not None:
            raise ConfigError("ppo.chunk has nothing to act on: the policy has no memory")
        return 1
    chunk = steps if given is None else given
    if steps % chunk:
        raise ConfigError(f"ppo.chunk is {chunk}; accepted: a divisor of num_steps, {steps}")
    columns = config.num_envs * steps // chunk
    if count > columns:
        raise ConfigError(
            f"ppo.minibatches is {count}; with memory, whose steps stay in order, accepted: at most {columns}, the"
            f" number of {'environments' if chunk == steps else 'chunks'}"
        )
    return chunk


def _group(config: Config, group: GroupConfig) -> GroupSettings:
    common = config.optimizer
    return GroupSettings(
        learning_rate=group.learning_rate or common.learning_rate,
        eps=common.eps if group.eps is None else group.eps,
        max_grad_norm=common.max_grad_norm if group.max_grad_norm is None else group.max_grad_norm,
    )
