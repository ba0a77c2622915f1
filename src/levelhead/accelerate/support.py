"""What native code and torch.compile take on, and where native code finds the parts of a policy."""

import ctypes
import itertools
import operator
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from levelhead import native
from levelhead.actions import (
    ActionHead,
    Bounds,
    CategoricalHead,
    GaussianHead,
    IndependentSigma,
    MultiCategoricalHead,
    ScheduledSigma,
    UnitBounds,
)
from levelhead.criterion import Criterion
from levelhead.distributed import ranks
from levelhead.divergence import KLControl
from levelhead.native.plan import Distribution, Layer, Reading
from levelhead.networks import Network, Numbers, Policy, Torso
from levelhead.objectives import A2CObjective, ClipObjective, KLObjective, Objective, TrustRegionObjective, VPGObjective
from levelhead.spaces import space_tree
from levelhead.tree import tree_leaves
from levelhead.values import (
    LinearValueHead,
    PopArtValueHead,
    RunningNormHead,
    TransformValueHead,
    ValueHead,
    ValueNormHead,
)

T = TypeVar("T")
Engine = Literal["auto", "torch", "native", "compile"]

# In the order of plan.h.
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Tanh: 1, nn.ReLU: 2, nn.ELU: 3, nn.SiLU: 4}
OBJECTIVES: dict[type[Objective], int] = {
    ClipObjective: 0,
    KLObjective: 1,
    A2CObjective: 2,
    VPGObjective: 2,
    TrustRegionObjective: 2,  # the critic's epochs alone
}
CATEGORICAL, GAUSSIAN = 0, 1
ACTION_HEADS: tuple[type[ActionHead], ...] = (CategoricalHead, MultiCategoricalHead, GaussianHead)
VALUE_HEADS: tuple[type[ValueHead], ...] = (
    PopArtValueHead,
    RunningNormHead,
    ValueNormHead,
    LinearValueHead,
    TransformValueHead,
)
WIDE = 2**17
"""Weights in a layer from which on torch is faster; docs/log.md has the figures."""


class UnsupportedError(Exception):
    """Native code has no such thing; the message says what."""


class Linear(NamedTuple):
    """A linear layer and what follows it."""

    layer: nn.Linear
    activation: int = 0


def is_worthwhile(policy: Policy) -> bool:
    """Whether native code is the faster one; where layers are wide, torch's matrix products are."""
    return all(p.numel() <= WIDE for p in policy.parameters())


# -- what it takes -----------------------------------------------------------------------------------------------


def acting_refusal(policy: Policy) -> str | None:
    """Why native code can't act for a policy; None where it can."""
    return _reason(_require_actor, policy)


def valuing_refusal(policy: Policy) -> str | None:
    """Why native code can't read observations for a policy's critic; None where it can."""
    return _reason(_require_critic, policy)


def learning_refusal(criterion: Criterion, control: KLControl | None) -> str | None:
    """Why native code can't take the steps that a criterion's losses ask for; None where it can."""
    return _reason(_require_learner, criterion, control)


def compiling_refusal(policy: Policy) -> str | None:
    """Why torch.compile can't take the steps of a policy; None where nothing is known to be in its way."""
    return _reason(_require_compilable, policy)


class Kept(Generic[T]):
    """What was made of a policy, until the policy is changed.

    Every rollout and its learning ask for theirs, and a walk through all modules takes as long as twenty steps.

    Args:
        policy: that it is made of.
        make: makes it, from the policy's modules and parameters alone.
    """

    def __init__(self, policy: Policy, make: Callable[[], T]) -> None:
        self.policy = policy
        self.make = make
        self._of: _Seen | None = None

    def __call__(self) -> T:
        if self._of is None or self._of.has_changed():
            self._of, self._made = _Seen(self.policy), self.make()
        return self._made


class _Seen:
    """A policy's modules and parameters, to be compared with later."""

    def __init__(self, policy: Policy) -> None:
        modules = list(policy.modules())
        # Modules write into these, and never replace them.
        self._hooks = [hooks for m in modules for hooks in _hooks_of(m)]
        self._tables = [table for m in modules for table in (m._modules, m._parameters)]
        self._parts = [part for table in self._tables for part in table.values()]
        self._parameters = list(policy.parameters())
        self._kinds = [_kind(p) for p in self._parameters]
        self._hooked = any(self._hooks)

    def has_changed(self) -> bool:
        """Whether modules, parameters or where and what these are differ from then, or there are hooks."""
        now = itertools.chain.from_iterable(map(dict.values, self._tables))
        same = len(self._parts) == sum(map(len, self._tables)) and all(map(operator.is_, self._parts, now))
        return self._hooked or any(self._hooks) or not same or self._kinds != list(map(_kind, self._parameters))


def _kind(p: nn.Parameter) -> tuple[object, ...]:
    return p.dtype, p.data_ptr(), p.requires_grad, p._backward_hooks, p._post_accumulate_grad_hooks


def _hooks_of(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def _reason(check: Callable[..., None], *arguments: object) -> str | None:
    try:
        check(*arguments)
    except UnsupportedError as reason:
        return str(reason)
    return None


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise UnsupportedError(reason)


def _require_one_of(part: object, kinds: Sequence[type]) -> None:
    _require(type(part) in kinds, f"it has no {type(part).__name__}")


def _require_actor(policy: Policy) -> None:
    _require_policy(policy)
    head = policy.action_head
    if isinstance(head, GaussianHead):
        _require_one_of(head.bounds, [Bounds, UnitBounds])
    _require_numbers(policy)


def _require_critic(policy: Policy) -> None:
    _require_network(policy)
    _require_torso(policy.network.critic)
    _require(bool(linears(policy.network.critic)), "the critic has no layers below its head")
    _require_numbers(policy)


def _require_numbers(policy: Policy) -> None:
    for reader, space in zip(policy.reader.parts, tree_leaves(space_tree(policy.observation_space)), strict=True):
        _require_one_of(reader, [Numbers])
        _require(space.dtype in (np.float32, np.float64), f"observations are of {space.dtype}")


def _require_learner(criterion: Criterion, control: KLControl | None) -> None:
    policy = criterion.policy
    _require_policy(policy)
    parameters = list(policy.parameters())
    _require(all(p.requires_grad for p in parameters), "a parameter is frozen")
    hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters)
    _require(not hooked, "a parameter has hooks")
    linears(policy.network.critic)
    _require_one_of(policy.value_head, VALUE_HEADS)
    _require_plain(policy.value_head.linear)
    _require_one_of(criterion.objective, list(OBJECTIVES))
    several = policy.value_head.output_dim > 1
    _require(not (several and criterion.standardize), "each task's advantages are standardised over minibatches")
    apart = ranks() > 1 and criterion.standardize
    _require(not apart, "advantages are standardised over the minibatches of several ranks")
    if control is not None:
        _require(control.target is None, "the divergence drives the learning rate")
        _require(control.check == "minibatch", "the divergence is checked epoch by epoch")


def _require_compilable(policy: Policy) -> None:
    _require(not policy.remembers, "recurrent kernels take nearly all of the time, and stay what they are")
    if policy.device.type == "cpu":
        # What torch looks for.
        compiler = os.environ.get("CXX", "g++")
        _require(shutil.which(compiler) is not None, f"there is no C++ compiler, {compiler}")
        headers = Path(sysconfig.get_path("include"), "Python.h")
        _require(headers.exists(), f"Python's headers are missing, {headers}")
    for p in policy.parameters():
        _require(not p._backward_hooks and not p._post_accumulate_grad_hooks, "a parameter has hooks")
    for module in policy.modules():
        _require(not module._backward_hooks and not module._backward_pre_hooks, "a module has backward hooks")


def _require_policy(policy: Policy) -> None:
    """What acting and learning have in common."""
    _require_network(policy)
    _require_torso(policy.network.actor)
    head = policy.action_head
    _require_one_of(head, ACTION_HEADS)
    if isinstance(head, GaussianHead):
        _require_one_of(head.sigma, [ScheduledSigma, IndependentSigma])
        bounded = isinstance(head.sigma, IndependentSigma) and head.sigma.bounds is not None
        _require(not bounded, "the standard deviation has bounds")
    _require_plain(output_layer(head))


def _require_network(policy: Policy) -> None:
    """What all three have in common."""
    built = "native code was not built, for want of a compiler at installation, or is out of date"
    _require(native.available(), built)
    _require(policy.device.type == "cpu", f"the policy is on {policy.device.type}")
    other = {p.dtype for p in policy.parameters()} - {torch.float32}
    _require(not other, f"parameters are {', '.join(str(dtype).removeprefix('torch.') for dtype in other)}")
    _require(not any(hooks for m in policy.modules() for hooks in _hooks_of(m)), "a module has hooks")
    _require_one_of(policy, [Policy])
    _require_one_of(policy.network, [Network])
    _require([len(shape) for shape in policy.reader.shapes.values()] == [1], "observations are not one vector")
    _require_torso(policy.network.shared)


def _require_torso(torso: Torso) -> None:
    _require(not torso.reduced, "layers compute in bfloat16")
    linears(torso)


def _require_plain(layer: nn.Linear) -> None:
    _require(type(layer) is nn.Linear and _has_bias(layer), "a head has another layer than its own")


def _has_bias(layer: nn.Linear) -> bool:
    return isinstance(getattr(layer, "bias", None), nn.Parameter)


def output_layer(head: ActionHead) -> nn.Linear:
    """The layer that answers the distribution's parameters.

    Raises:
        UnsupportedError: it is another kind of head.
    """
    if isinstance(head, CategoricalHead | MultiCategoricalHead | GaussianHead):
        return head.linear
    raise UnsupportedError(f"there is a {type(head).__name__}")


def linears(torso: Torso) -> list[Linear]:
    """The layers of a torso.

    Raises:
        UnsupportedError: there are others than linear ones, or one stands there twice.
    """
    found: list[Linear] = []
    for module in _in_order(torso):
        if type(module) is nn.Linear and _has_bias(module):
            found.append(Linear(module))
        elif type(module) in ACTIVATIONS and found and not found[-1].activation:
            if isinstance(module, nn.ELU) and module.alpha != 1.0:
                raise UnsupportedError(f"there is an ELU whose alpha is {module.alpha}")
            found[-1] = Linear(found[-1].layer, ACTIVATIONS[type(module)])
        else:
            raise UnsupportedError(f"there is a {type(module).__name__} in the network")
    if len({id(linear.layer) for linear in found}) < len(found):
        raise UnsupportedError("a layer of the network stands in two places")
    return found


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is Torso:
        for layer in module.layers:
            yield from _in_order(layer)
    elif type(module) is nn.Sequential:
        for layer in module:
            yield from _in_order(layer)
    elif type(module) is not nn.Identity:
        yield module


# -- where it is -------------------------------------------------------------------------------------------------


def layers_of(stack: Iterable[Linear], gradient: Callable[[Tensor], int] | None = None) -> ctypes.Array[Layer]:
    """Layers as native code reads them.

    Args:
        stack: from the first to the last.
        gradient: where that of a parameter is; None where nothing is learned.
    """
    stack = list(stack)
    layers = (Layer * len(stack))()
    for layer, (linear, activation) in zip(layers, stack, strict=True):
        layer.inputs, layer.outputs, layer.activation = linear.in_features, linear.out_features, activation
        layer.weight, layer.bias = linear.weight.data_ptr(), linear.bias.data_ptr()
        if gradient is not None:
            layer.weight_gradient, layer.bias_gradient = gradient(linear.weight), gradient(linear.bias)
    return layers


def reading_of(policy: Policy, layers: ctypes.Array[Layer], rows: int, dtype: torch.dtype) -> Reading:
    """How native code reads observations of a precision, so many rows at once, through layers that it takes."""
    plan = Reading(layers, len(layers), rows, dtype == torch.float64)
    (reader,) = policy.reader.parts
    if isinstance(reader, Numbers) and (normalizer := reader.normalizer) is not None:
        plan.mean, plan.std = normalizer.mean.data_ptr(), normalizer.std.data_ptr()
        plan.clip = normalizer.clip
    return plan


def log_std_of(head: GaussianHead) -> Tensor:
    """`[D]`, the same in every state."""
    assert isinstance(head.sigma, ScheduledSigma | IndependentSigma)
    return head.sigma.log_std


def distribution_of(head: ActionHead, gradient: Callable[[Tensor], int] | None = None) -> Distribution:
    """An action head's distribution as native code reads it.

    Args:
        head: one of `ACTION_HEADS`.
        gradient: where that of a parameter is; None where nothing is learned.
    """
    if isinstance(head, GaussianHead):
        log_std, learned = log_std_of(head), isinstance(head.sigma, IndependentSigma)
        slope = gradient(log_std) if learned and gradient is not None else None
        return Distribution(GAUSSIAN, None, head.code_dim, log_std.data_ptr(), slope)
    counts = head.actions if isinstance(head, MultiCategoricalHead) else (head.code_dim,)
    return Distribution(CATEGORICAL, (ctypes.c_int32 * len(counts))(*counts), len(counts))
