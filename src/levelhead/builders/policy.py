"""The policy that a config describes, and its parts."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
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
from levelhead.config import ActionConfig, Config, Device, require_default
from levelhead.errors import ConfigError
from levelhead.layers import mlp
from levelhead.networks import GRU, LSTM, Encoder, Memory, Network, ObservationReader, Policy, Torso
from levelhead.seeding import Stream, derive
from levelhead.spaces import Space, action_tree, choices_of, zeros
from levelhead.tree import by_path, paths, tree_leaves
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
    with torch.random.fork_rng(devices=[]), _one_thread():
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
    match config.network.precision:
        case "float32" | "tf32":
            pass
        case "bfloat16":
            for torso in (network.shared, network.actor, network.critic):
                torso.reduced = True
        case "float64":  # which no statistic loses anything by
            policy = policy.double()
    _check(policy)
    return policy


@contextmanager
def _one_thread() -> Generator[None]:
    """With another number of torch's threads the decomposition that makes weights orthogonal rounds differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        if given.shape != (1, stated) or given.dtype != policy.dtype:
            raise ConfigError(
                f"network.{name} answers {tuple(given.shape)} of {given.dtype};"
                f" by {name}_dim it should be (1, {stated}) of {policy.dtype}"
            )
