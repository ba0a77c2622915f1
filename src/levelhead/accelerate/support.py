"""What native code and torch.compile take on."""

import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from levelhead import native
from levelhead.accelerate.kept import has_hooks, hooked, modules_hooked
from levelhead.accelerate.layout import UnsupportedError, has_bias, linears, output_layer
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

Engine = Literal["auto", "torch", "native", "compile"]

# In the order of plan.h.
OBJECTIVES: dict[type[Objective], int] = {
    ClipObjective: 0,
    KLObjective: 1,
    A2CObjective: 2,
    VPGObjective: 2,
    TrustRegionObjective: 2,  # the critic's epochs alone
}
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
LONG = 50_000
"""Gradient steps that save more time than compiling them takes: half a millisecond or more each, for at most a minute
once."""


def is_worthwhile(policy: Policy) -> bool:
    """Whether native code is the faster one; where layers are wide, torch's matrix products are."""
    return all(p.numel() <= WIDE for p in policy.parameters())


def compiling_pays(policy: Policy, steps: int) -> bool:
    """Whether torch.compile makes a run of so many gradient steps faster, on a CPU.

    It saves what surrounds small products of matrices; beside wide layers or convolutions that is little.
    """
    convolved = any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in policy.modules())
    return steps >= LONG and policy.device.type == "cpu" and is_worthwhile(policy) and not convolved


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
    layers = [*linears(policy.network.shared), *linears(policy.network.critic)]
    _require(bool(layers), "the critic has no layers below its head")
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
    _require(not any(map(has_hooks, parameters)), "a parameter has hooks")
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
    _require(not hooked(policy), "a module or a parameter has hooks")


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
    _require(not modules_hooked(policy), "a module has hooks")
    _require_one_of(policy, [Policy])
    _require_one_of(policy.network, [Network])
    _require([len(shape) for shape in policy.reader.shapes.values()] == [1], "observations are not one vector")
    _require_torso(policy.network.shared)


def _require_torso(torso: Torso) -> None:
    _require(not torso.reduced, "layers compute in bfloat16")
    linears(torso)


def _require_plain(layer: nn.Linear) -> None:
    _require(type(layer) is nn.Linear and has_bias(layer), "a head has another layer than its own")
