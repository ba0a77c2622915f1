"""Gradient steps in native code."""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from levelhead import native
from levelhead.accelerate.kept import Kept
from levelhead.accelerate.layout import Linear, distribution_of, layers_of, linears, output_layer, require_chain
from levelhead.accelerate.support import OBJECTIVES, learning_refusal
from levelhead.actions import CategoricalHead, GaussianHead, MultiCategoricalHead
from levelhead.criterion import Criterion, Loss
from levelhead.distributed import ranks
from levelhead.divergence import KLControl
from levelhead.native.plan import MEANS, REDUCE, Group, Layer, Plan
from levelhead.networks import Policy
from levelhead.objectives import ClipObjective, KLObjective
from levelhead.optimizer import GROUPS, Optimizer
from levelhead.phases import Epochs, Order, Refresh, Split, minibatches
from levelhead.rollout import Batch
from levelhead.values import ValueNormHead


class NativeEpochs(Epochs):
    """`Epochs` in one call of native code; torch takes over whenever `learning_refusal` has something against it.

    Args:
        loss, optimizer, split, control: as `Epochs` has them.
        criterion: whose loss it is.
        threads: from two on, actor and critic learn side by side; what comes of it is the same.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: Optimizer,
        split: Split,
        criterion: Criterion,
        control: KLControl | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(loss, optimizer, split, control)
        self.criterion = criterion
        self.threads = threads
        self._addresses = Kept(criterion.policy, self._find, self._asked_of)
        self._names = [name for name in GROUPS if name in optimizer.flat]
        told = (*MEANS, *(f"grad/{name}_norm" for name in self._names))
        self._asked = torch.tensor([told.index(name) for name in self._means.names])
        """Places of the means that are reported among those that native code tells."""
        self._checked = ("loss", *(f"{name} gradient" for name in self.groups))
        self._faults = torch.tensor([0, *(1 + self._names.index(name) for name in self.groups)])
        """Places of these among the faults that it tells."""

    def __call__(self, batch: Batch, valid: Tensor, order: Order, refresh: Refresh | None = None) -> dict[str, Tensor]:
        addresses = self._addresses()
        if addresses is None:  # a frozen layer, for example, since it was built
            return super().__call__(batch, valid, order, refresh)
        index, weight = minibatches(valid, self.split, order)
        if refresh is None:  # then nothing happens between epochs
            self._run(addresses, batch, index.flatten(0, 1), weight.flatten(0, 1))
            return self._means.take()
        for epoch in zip(index, weight, strict=True):
            batch = refresh(batch)
            self._run(addresses, batch, *epoch)
            if self._over:
                break
        return self._means.take()

    def _asked_of(self) -> tuple[object, ...]:
        """What `learning_refusal` reads, beside the policy."""
        criterion, control = self.criterion, self.control
        asked = None if control is None else (control.target is None, control.check)
        return type(criterion.objective), criterion.standardize, asked

    def _find(self) -> "_Addresses | None":
        if learning_refusal(self.criterion, self.control) is not None:
            return None
        return _Addresses(self._build_stacks(), self._build_groups())

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
        stacks = {
            "shared": linears(network.shared),
            "actor": [*linears(network.actor), Linear(output_layer(policy.action_head))],
            "critic": [*linears(network.critic), Linear(policy.value_head.linear)],
        }
        for name in ("actor", "critic"):
            require_chain([*stacks["shared"], *stacks[name]])
        return {name: layers_of(stack, partial(self._gradient, name)) for name, stack in stacks.items()}

    def _gradient(self, group: str, parameter: Tensor) -> int:
        """The address of a parameter's gradient, which lies in its group's as it does among the parameters."""
        flat = self.optimizer.flat[group]
        return flat.gradient.data_ptr() + parameter.data_ptr() - flat.parameter.data_ptr()

    def _run(self, addresses: "_Addresses", batch: Batch, index: Tensor, weight: Tensor) -> None:
        """Steps on minibatches, given as rows of indices and weights."""
        plan = Plan()
        kept: list[Tensor] = []
        _require_rows(batch, self.criterion.policy)

        def at(x: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
            """The address of `x`, which stays until the call is over."""
            if x is None:
                return None
            kept.append(x.to(dtype).contiguous())
            return kept[-1].data_ptr()

        for name, layers in addresses.stacks.items():
            setattr(plan, name, layers)
            setattr(plan, f"n_{name}", len(layers))
        plan.groups, plan.n_groups = addresses.groups, len(self._names)
        for name in ("observation", "log_prob", "advantage", "target", "old_value"):
            setattr(plan.batch, name, at(getattr(batch, name)))
        plan.batch.task = at(batch.task, torch.int64)
        plan.index, plan.weight = at(index, torch.int64), at(weight)
        plan.minibatches, plan.size = index.shape
        plan.threads = self.threads
        self._write_distribution(plan, batch, at)
        self._write_losses(plan, at)
        self._write_optimizer(plan)

        means = torch.zeros(len(MEANS) + len(self._names))
        broken = torch.zeros(1 + len(self._names), dtype=torch.bool)
        counted = torch.zeros((), dtype=torch.int64)
        plan.means, plan.broken, plan.counted = means.data_ptr(), broken.data_ptr(), counted.data_ptr()
        total = _Total(self.optimizer, self.groups)
        if ranks() > 1:
            plan.reduce = total.callback
        native.run_epochs(plan)
        if total.error is not None:
            raise total.error
        self._report(means, broken, int(counted), len(index))

    def _write_distribution(self, plan: Plan, batch: Batch, at: Callable[..., int | None]) -> None:
        head = self.criterion.policy.action_head
        plan.distribution = distribution_of(head, partial(self._gradient, "actor"))
        old = batch.parameters if self.criterion.kl else None
        if isinstance(head, GaussianHead):
            plan.batch.action = at(batch.action)
            if old is not None:
                plan.batch.old_parameters, plan.batch.old_log_std = at(old.mean), at(old.log_std)
            return
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
        if counted:
            self._means.add(means.index_select(0, self._asked) / counted, counted)
        self.optimizer.report(self._checked, broken.index_select(0, self._faults))


class _Addresses(NamedTuple):
    """Where parameters, gradients and moments are."""

    stacks: dict[str, ctypes.Array[Layer]]
    """By torso."""
    groups: ctypes.Array[Group]


class _Total:
    """What native code calls for each minibatch, so that ranks take one step together.

    Args:
        optimizer: whose gradients are summed.
        groups: of these.
    """

    def __init__(self, optimizer: Optimizer, groups: tuple[str, ...]) -> None:
        self.optimizer = optimizer
        self.groups = groups
        self.error: BaseException | None = None
        """What went wrong: it can't be raised through native code."""
        self.callback = REDUCE(self._sum)

    def _sum(self, means: Any) -> int:
        try:
            means = torch.from_numpy(np.ctypeslib.as_array(means, (len(MEANS),)))
            numbers = means.flip(0).float()  # the loss first
            self.optimizer.total_(self.groups, numbers)
            means.copy_(numbers.flip(0))
        except BaseException as error:  # raised again once native code has returned
            self.error = error
        return self.error is not None


def _require_rows(batch: Batch, policy: Policy) -> None:
    """Refuses numbers that native code would take for addresses, with ValueError."""
    head, tasks = policy.action_head, policy.value_head.output_dim
    if batch.begins.shape[0] != 1:
        raise ValueError(f"columns of {batch.begins.shape[0]} steps; expected rows, which are columns of one")
    if batch.observation.shape[-1:] != next(iter(policy.reader.shapes.values())):
        raise ValueError(f"observations of shape {tuple(batch.observation.shape)}; expected {policy.reader.shapes}")
    if isinstance(head, CategoricalHead | MultiCategoricalHead):
        counts = head.actions if isinstance(head, MultiCategoricalHead) else head.code_dim
        if not batch.action.equal(batch.action.clamp(min=0).minimum(torch.tensor(counts) - 1)):
            raise ValueError(f"an action is not among the {counts} choices")
    known = tasks == 1 if batch.task is None else bool(((batch.task >= 0) & (batch.task < tasks)).all())
    if not known:
        raise ValueError(f"rows don't say which of {tasks} tasks they belong to")
