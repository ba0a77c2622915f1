"""Which code takes the gradient steps: torch, which defines them, or native code, which agrees with it to rounding."""

import ctypes
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from levelhead import native
from levelhead.actions import (
    ActionHead,
    CategoricalHead,
    GaussianHead,
    IndependentSigma,
    MultiCategoricalHead,
    ScheduledSigma,
)
from levelhead.criterion import Criterion, Loss
from levelhead.divergence import KLControl
from levelhead.native.plan import MEANS, Group, Layer, Plan
from levelhead.networks import Network, Policy, Torso
from levelhead.objectives import A2CObjective, ClipObjective, KLObjective, Objective, TrustRegionObjective, VPGObjective
from levelhead.optimizer import GROUPS, Optimizer
from levelhead.phases import Epochs, Orders, Refresh, Split, minibatches
from levelhead.rollout import Batch
from levelhead.values import (
    LinearValueHead,
    PopArtValueHead,
    RunningNormHead,
    TransformValueHead,
    ValueHead,
    ValueNormHead,
)

Engine = Literal["auto", "torch", "native"]

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


def refusal(criterion: Criterion, control: KLControl | None) -> str | None:
    """Why native code can't take the steps that a criterion's losses ask for; None where it can."""
    try:
        _require_support(criterion, control)
    except UnsupportedError as reason:
        return str(reason)
    return None


def _require_support(criterion: Criterion, control: KLControl | None) -> None:
    policy = criterion.policy

    def require(holds: bool, reason: str) -> None:
        if not holds:
            raise UnsupportedError(reason)

    def one_of(part: object, kinds: Sequence[type]) -> None:
        require(type(part) in kinds, f"there is a {type(part).__name__}")

    require(native.available(), "native code was not built, for want of a compiler at installation, or is out of date")
    require(policy.device.type == "cpu", f"the policy is on {policy.device.type}")
    for p in policy.parameters():
        require(p.dtype == torch.float32, f"a parameter is of {p.dtype}")
        require(p.requires_grad, "a parameter is frozen")
        require(not p._backward_hooks and not p._post_accumulate_grad_hooks, "a parameter has hooks")
    for module in policy.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        require(not any(hooks), "a module has hooks")
    one_of(policy, [Policy])
    one_of(policy.network, [Network])
    require([len(shape) for shape in policy.reader.shapes.values()] == [1], "observations are not one vector")
    for torso in (policy.network.shared, policy.network.actor, policy.network.critic):
        _linears(torso)
    one_of(policy.action_head, ACTION_HEADS)
    if isinstance(policy.action_head, GaussianHead):
        sigma = policy.action_head.sigma
        one_of(sigma, [ScheduledSigma, IndependentSigma])
        require(not isinstance(sigma, IndependentSigma) or sigma.bounds is None, "the standard deviation has bounds")
    one_of(policy.value_head, VALUE_HEADS)
    for layer in (policy.action_head.linear, policy.value_head.linear):
        require(type(layer) is nn.Linear and _has_bias(layer), "a head has another layer than its own")
    one_of(criterion.objective, list(OBJECTIVES))
    several = policy.value_head.output_dim > 1
    require(not (several and criterion.standardize), "each task's advantages are standardised over minibatches")
    if control is not None:
        require(control.target is None, "the divergence drives the learning rate")
        require(control.check == "minibatch", "the divergence is checked epoch by epoch")


def _linears(torso: Torso) -> list[Linear]:
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


def _has_bias(layer: nn.Linear) -> bool:
    return isinstance(getattr(layer, "bias", None), nn.Parameter)


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is Torso:
        for layer in module.layers:
            yield from _in_order(layer)
    elif type(module) is nn.Sequential:
        for layer in module:
            yield from _in_order(layer)
    elif type(module) is not nn.Identity:
        yield module


def is_worthwhile(policy: Policy) -> bool:
    """Whether native code is the faster one; where layers are wide, torch's matrix products are."""
    return all(p.numel() <= WIDE for p in policy.parameters())


class NativeEpochs(Epochs):
    """`Epochs` in one call of native code; torch takes over whenever `refusal` has something against it.

    Args:
        loss, optimizer, split, control: as `Epochs` has them.
        criterion: whose loss it is.
    """

    def __init__(
        self, loss: Loss, optimizer: Optimizer, split: Split, criterion: Criterion, control: KLControl | None = None
    ) -> None:
        super().__init__(loss, optimizer, split, control)
        self.criterion = criterion
        self._names = [name for name in GROUPS if name in optimizer.flat]

    def __call__(
        self, batch: Batch, valid: Tensor, orders: Orders, refresh: Refresh | None = None
    ) -> dict[str, Tensor]:
        if refusal(self.criterion, self.control) is not None:  # a frozen layer, for example, since it was built
            return super().__call__(batch, valid, orders, refresh)
        drawn = list(itertools.islice(orders, self.split.epochs))
        epochs = [list(minibatches(valid, self.split.minibatches, order)) for order in drawn]
        if refresh is None:  # then nothing happens between epochs
            epochs = [list(itertools.chain.from_iterable(epochs))]
        for parts in epochs:
            if refresh is not None:
                batch = refresh(batch)
            self._run(batch, parts)
            if self._over:
                break
        return self._means.take()

    def _build_groups(self) -> ctypes.Array[Group]:
        """Where parameters and moments are."""
        optimizer, groups = self.optimizer, (Group * len(self._names))()
        for group, name in zip(groups, self._names, strict=True):
            flat, settings = optimizer.flat[name], optimizer.settings.groups[name]
            state = optimizer.adam.state[flat.parameter]
            group.parameter, group.gradient = flat.parameter.data_ptr(), flat.gradient.data_ptr()
            group.exp_avg, group.exp_avg_sq = state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()
            group.step, group.learning_rate = state["step"].data_ptr(), optimizer.learning_rates[name].tensor.data_ptr()
            group.decay = optimizer.decay[name].data_ptr() if name in optimizer.decay else None
            group.size, group.eps, group.max_norm = flat.parameter.numel(), settings.eps, settings.max_grad_norm
            group.moves = name in self.groups
        return groups

    def _build_stacks(self) -> dict[str, ctypes.Array[Layer]]:
        """The layers of each torso, the head's last."""
        policy = self.criterion.policy
        network = policy.network
        linears = {
            "shared": _linears(network.shared),
            "actor": [*_linears(network.actor), Linear(_output_layer(policy.action_head))],
            "critic": [*_linears(network.critic), Linear(policy.value_head.linear)],
        }
        stacks: dict[str, ctypes.Array[Layer]] = {}
        for name, stack in linears.items():
            layers = (Layer * len(stack))()
            for layer, (linear, activation) in zip(layers, stack, strict=True):
                layer.inputs, layer.outputs = linear.in_features, linear.out_features
                layer.activation, layer.group = activation, self._names.index(name)
                layer.weight, layer.bias = (self._offset(name, x) for x in (linear.weight, linear.bias))
            stacks[name] = layers
        return stacks

    def _offset(self, group: str, parameter: Tensor) -> int:
        """Where a parameter begins in its group's flat one."""
        return (parameter.data_ptr() - self.optimizer.flat[group].parameter.data_ptr()) // parameter.element_size()

    def _run(self, batch: Batch, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Steps on minibatches, given as indices of columns and weights."""
        plan = Plan()
        kept: list[Tensor] = []
        _require_rows(batch, self.criterion.policy)

        def at(x: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
            """The address of `x`, which stays until the call is over."""
            if x is None:
                return None
            kept.append(x.detach().to(dtype).contiguous())
            return kept[-1].data_ptr()

        for name, layers in self._build_stacks().items():
            setattr(plan, name, layers)
            setattr(plan, f"n_{name}", len(layers))
        plan.groups, plan.n_groups = self._build_groups(), len(self._names)
        for name in ("observation", "log_prob", "advantage", "target", "old_value"):
            setattr(plan.batch, name, at(getattr(batch, name)))
        plan.batch.task = at(batch.task, torch.int64)
        plan.index = at(torch.stack([index for index, _ in parts]), torch.int64)
        plan.weight = at(torch.stack([weight for _, weight in parts]))
        plan.minibatches, plan.size = len(parts), len(parts[0][0])
        self._write_distribution(plan, batch, at)
        self._write_losses(plan, at)
        self._write_optimizer(plan)

        means = torch.zeros(len(MEANS) + len(self._names))
        broken = torch.zeros(1 + len(self._names), dtype=torch.uint8)
        counted = torch.zeros((), dtype=torch.int64)
        plan.means, plan.broken, plan.counted = means.data_ptr(), broken.data_ptr(), counted.data_ptr()
        native.run_epochs(plan)
        self._report(means, broken, int(counted), len(parts))

    def _write_distribution(self, plan: Plan, batch: Batch, at: Callable[..., int | None]) -> None:
        head = self.criterion.policy.action_head
        plan.actor_group, plan.log_std_offset = self._names.index("actor"), -1
        old = batch.parameters if self.criterion.kl else None
        if isinstance(head, GaussianHead):
            plan.distribution, plan.dims = GAUSSIAN, head.code_dim
            sigma = head.sigma
            if isinstance(sigma, IndependentSigma):
                plan.log_std, plan.log_std_offset = sigma.log_std.data_ptr(), self._offset("actor", sigma.log_std)
            elif isinstance(sigma, ScheduledSigma):
                plan.log_std = sigma.log_std.data_ptr()
            plan.batch.action = at(batch.action)
            if old is not None:
                plan.batch.old_parameters, plan.batch.old_log_std = at(old.mean), at(old.log_std)
            return
        counts = head.actions if isinstance(head, MultiCategoricalHead) else (head.code_dim,)
        plan.distribution, plan.dims = CATEGORICAL, len(counts)
        plan.choices = at(torch.tensor(counts), torch.int32)
        plan.batch.choice = at(batch.action, torch.int64)
        plan.batch.legal = at(batch.action_mask, torch.uint8)
        plan.batch.old_parameters = at(old)

    def _write_losses(self, plan: Plan, at: Callable[..., int | None]) -> None:
        criterion, objective = self.criterion, self.criterion.objective
        plan.learn_actor, plan.learn_critic = "actor" in self.loss.groups, "critic" in self.loss.groups
        plan.objective = OBJECTIVES[type(objective)]
        if isinstance(objective, ClipObjective):
            plan.clip_range, plan.dual_clip = objective.clip_range.tensor.item(), objective.dual or 0.0
        elif isinstance(objective, KLObjective):
            plan.penalty = objective.weight.item()
        plan.standardize = criterion.standardize
        plan.entropy_coef, plan.value_coef = criterion.entropy_coef.tensor.item(), criterion.value_coef.tensor.item()
        plan.value_clip = 0.0 if criterion.value_clip is None else criterion.value_clip.tensor.item()
        plan.value_huber = 0.0 if criterion.value_huber is None else criterion.value_huber.tensor.item()
        head = criterion.policy.value_head
        if isinstance(head, ValueNormHead):  # its layer answers raw values
            plan.value_shift, plan.value_scale = at(head.mean), at(1 / head.std)

    def _write_optimizer(self, plan: Plan) -> None:
        plan.max_norm = self.optimizer.settings.max_grad_norm or 0.0
        plan.beta1, plan.beta2 = self.optimizer.adam.betas
        plan.blocked = self.optimizer.blocked.data_ptr()
        if self.control is not None and self.control.limit is not None:
            plan.kl_limit = self.control.limit.tensor.item()

    def _report(self, means: Tensor, broken: Tensor, counted: int, planned: int) -> None:
        """Hands on what came of it, as steps in torch would."""
        if self.control is not None and counted < planned:
            self.control.stopped.fill_(1.0)
        sums = dict(zip((*MEANS, *(f"grad/{name}_norm" for name in self._names)), means.unbind(), strict=True))
        if counted:
            self._means.add(torch.stack([sums[name] for name in self._means.names]) / counted, counted)
        faults = dict(zip(("loss", *(f"{name} gradient" for name in self._names)), broken.unbind(), strict=True))
        names = ("loss", *(f"{name} gradient" for name in self.groups))
        self.optimizer.check(names, torch.stack([torch.where(faults[name] > 0, torch.nan, 0.0) for name in names]))


def _require_rows(batch: Batch, policy: Policy) -> None:
    """Refuses numbers that native code would take for addresses, with ValueError."""
    head, tasks = policy.action_head, policy.value_head.output_dim
    if batch.begins.shape[0] != 1:
        raise ValueError(f"columns of {batch.begins.shape[0]} steps; expected rows, which are columns of one")
    if isinstance(head, CategoricalHead | MultiCategoricalHead):
        counts = torch.tensor(head.actions if isinstance(head, MultiCategoricalHead) else head.code_dim)
        if bool(((batch.action < 0) | (batch.action >= counts)).any()):
            raise ValueError(f"an action is not among the {counts.tolist()} choices")
    known = tasks == 1 if batch.task is None else bool(((batch.task >= 0) & (batch.task < tasks)).all())
    if not known:
        raise ValueError(f"rows don't say which of {tasks} tasks they belong to")


def _output_layer(head: ActionHead) -> nn.Linear:
    if isinstance(head, CategoricalHead | MultiCategoricalHead | GaussianHead):
        return head.linear
    raise UnsupportedError(f"there is a {type(head).__name__}")
