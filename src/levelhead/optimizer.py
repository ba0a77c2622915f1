"""Gradient steps on the groups of a policy's parameters: learning rates, clipping, Adam, and what stops a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from levelhead.distributed import rank, ranks, total_
from levelhead.flat import AdamGroup, FlatAdam, clip_, flatten
from levelhead.networks import Policy
from levelhead.schedules import Coefficient, Schedule
from levelhead.tree import restore

Clipping = Literal["separate", "global"]
ACTING = ("shared", "actor")
"""The groups that decide what the policy does."""
GROUPS = (*ACTING, "critic")
"""All of a policy's groups, by the names of `Policy.groups`."""
AUXILIARY = "auxiliary"
"""The group that helps others to learn."""


@dataclass(frozen=True)
class GroupSettings:
    """How one group of parameters is optimised."""

    learning_rate: Schedule
    eps: float
    """Adam's denominator offset."""
    max_grad_norm: float
    """The group's gradient is scaled down to this norm."""


@dataclass(frozen=True)
class OptimizerSettings:
    """How parameters follow their gradients."""

    groups: Mapping[str, GroupSettings]
    """By the names of `Policy.groups`, and `AUXILIARY`."""
    max_grad_norm: float | None = None
    """The norm that the gradient of all groups together is scaled down to; None leaves each group to its own."""
    weight_decay: float = 0.0
    """Share of every weight, times the learning rate, that a step takes away; biases and the like keep theirs."""
    warmup: int = 0
    """Iterations over which learning rates rise to their schedules."""


class Optimizer:
    """Adam over flat parameter groups, with decoupled weight decay.

    Every step is a function of tensors that are written in place, and nothing waits for the device: a step whose loss
    or gradient is not finite is skipped, with all that follow in the iteration, and reported.

    Args:
        policy: its parameters become views of one flat tensor per group.
        settings: as they say.
        auxiliary: parameters beside the policy's.

    Source: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2, for AdamW.
    """

    def __init__(self, policy: Policy, settings: OptimizerSettings, auxiliary: Sequence[nn.Parameter] = ()) -> None:
        device = policy.device
        self.settings = settings
        parameters = {**policy.groups(), **({AUXILIARY: list(auxiliary)} if auxiliary else {})}
        self.flat = {name: flatten(group) for name, group in parameters.items()}
        self.learning_rates = {name: Coefficient(settings.groups[name].learning_rate, device) for name in self.flat}
        self.rate_factor = torch.ones((), device=device)
        """Of the acting groups' learning rates, for whoever adapts them."""
        self.blocked = torch.zeros((), device=device)
        self._skip = torch.zeros((), device=device)
        self.adam = FlatAdam(
            {
                name: AdamGroup(flat, self.learning_rates[name].tensor, settings.groups[name].eps)
                for name, flat in self.flat.items()
            },
            skip=self._skip,
        )
        policy.value_head.track(self.adam)
        # What decays, which is matrices: a bias has no reason to be small, least of all that of the values' mean.
        self.decay = {
            name: torch.cat([torch.full((p.numel(),), settings.weight_decay * (p.ndim > 1)) for p in group]).to(device)
            for name, group in parameters.items()
            if settings.weight_decay
        }
        self._broken: dict[tuple[str, ...], Tensor] = {}
        self._suspected = torch.zeros(ranks(), dtype=torch.bool, device=device)

    def advance(self, progress: float, iteration: int) -> None:
        """Moves learning rates to `progress`, the share of training done before this iteration, counted from 0."""
        warm = min(1.0, (iteration + 1) / (self.settings.warmup + 1))
        for name, rate in self.learning_rates.items():
            rate.advance(progress, warm)
            if name in ACTING:
                rate.tensor.mul_(self.rate_factor)

    def adapt(self, factor: Tensor) -> None:
        """Multiplies the learning rates of the acting groups, from now on, by a 0-d tensor."""
        self.rate_factor.mul_(factor)
        for name in ACTING:
            if name in self.learning_rates:
                self.learning_rates[name].tensor.mul_(factor)

    def begin(self, healthy: Tensor) -> None:
        """Starts an iteration; where `healthy`, 0-d bool, is False, no step is taken in it."""
        self.blocked.copy_(~healthy)
        self._suspected.zero_()
        for flags in self._broken.values():
            flags.zero_()

    def suspects(self) -> list[int]:
        """The ranks whose own part of a loss or a gradient was not finite since `begin`; known where there are several
        ranks. Waits for the device."""
        return self._suspected.nonzero().flatten().tolist()

    def names(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Names of the numbers that `follow` answers for these groups."""
        return ("train/loss", *(f"grad/{name}_norm" for name in groups))

    def backward(self, loss: Tensor) -> None:
        """Puts the gradient of a loss into the flat tensors."""
        for flat in self.flat.values():
            flat.gradient.zero_()
        loss.backward()

    def total_(self, groups: tuple[str, ...], numbers: Tensor) -> None:
        """Sums the flat gradients of groups over ranks, in place and in one collective; and numbers, of which the first
        is the loss, along with them."""
        if ranks() == 1:
            return
        gradients = [self.flat[name].gradient for name in groups]
        broken = numbers.new_zeros(ranks())
        broken[rank()] = ~torch.stack([numbers[0], *(gradient.sum() for gradient in gradients)]).isfinite().all()
        total_([*gradients, numbers, broken])
        self._suspected.logical_or_(broken > 0)

    @torch.no_grad()
    def follow(self, loss: Tensor, groups: tuple[str, ...], stopped: Tensor | None = None) -> Tensor:
        """One step down the gradients that the flat tensors of these groups hold.

        Args:
            loss: 0-d, whose gradients they are.
            groups: those that move; the others stay as they are, moments included.
            stopped: 0-d float; where 1, nothing moves.

        Returns:
            The loss and the norms of the groups' gradients from before clipping, as one vector.
        """
        checked = torch.stack((loss, *self._clip(groups)))
        self.check(("loss", *(f"{name} gradient" for name in groups)), checked)
        self._skip.copy_(self.blocked if stopped is None else torch.maximum(self.blocked, stopped))
        for name in groups if self.decay else ():
            rate = self.learning_rates[name].tensor * (1 - self._skip)
            self.flat[name].parameter.mul_(1 - rate * self.decay[name])
        self.adam.step(groups)
        return checked

    def _clip(self, groups: tuple[str, ...]) -> list[Tensor]:
        """Scales gradients down; their norms from before."""
        gradients = [self.flat[name].gradient for name in groups]
        if self.settings.max_grad_norm is None:
            limits = [self.settings.groups[name].max_grad_norm for name in groups]
            return [clip_(gradient, limit) for gradient, limit in zip(gradients, limits, strict=True)]
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        scale = torch.linalg.vector_norm(torch.stack(norms)).reciprocal().mul_(self.settings.max_grad_norm)
        for gradient in gradients:
            gradient.mul_(scale.clamp(max=1.0))
        return norms

    def check(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        """Reports what is not finite in `x`, one number per name, and takes no step any more; 0-d bool, whether steps
        are taken."""
        self.report(names, ~x.isfinite())
        return self.blocked == 0

    def report(self, names: tuple[str, ...], broken: Tensor) -> None:
        """Notes what is broken, bool by name; if anything is, no step is taken any more."""
        if names not in self._broken:
            self._broken[names] = torch.zeros_like(broken)
        self._broken[names].logical_or_(broken)
        self.blocked.copy_(torch.maximum(self.blocked, self._broken[names].any()))

    def faults(self) -> dict[str, Tensor]:
        """0-d bool by name: the losses and gradients that were not finite since `begin`."""
        faults: dict[str, Tensor] = {}
        for names, flags in self._broken.items():
            for name, flag in zip(names, flags.unbind(), strict=True):
                faults[name] = faults[name] | flag if name in faults else flag
        return faults

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's state, one entry per group and moment, and what the learning rates were adapted by."""
        return {**self.adam.moments(), "rate_factor": self.rate_factor}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        restore(self.state_dict(), state, "the optimiser")
