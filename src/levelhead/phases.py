"""The parts that learning from a rollout consists of, one after another."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from levelhead.criterion import Loss, Terms
from levelhead.divergence import KLControl
from levelhead.metrics import RunningMean
from levelhead.optimizer import Optimizer
from levelhead.rollout import Batch
from levelhead.tree import restore

Orders = Iterator[torch.Generator]
"""Of permutations, one for each epoch."""
Refresh = Callable[[Batch], Batch]
"""The same batch, with advantages and targets for policy and critic as they are by now."""


class Phase(ABC):
    """One way of learning from a rollout."""

    @abstractmethod
    def __call__(
        self, batch: Batch, valid: Tensor, orders: Orders, refresh: Refresh | None = None
    ) -> dict[str, Tensor]:
        """Learns from `batch`, and answers metrics by name, 0-d.

        Args:
            batch: C columns of S steps.
            valid: `[S, C]` bool; other rows weigh nothing.
            orders: seeded for this iteration.
            refresh: estimates returns anew before each epoch; None where they stay.
        """

    def advance(self, progress: float) -> None:  # noqa: B027  # most have none
        """Moves schedules of its own to `progress`, the share of training done."""

    def forget(self) -> None:  # noqa: B027  # most keep nothing
        """Drops what it keeps of earlier rollouts: new episodes begin, and a resumed run would have none of it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Whatever of its own changes during training."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies `state` back, in place."""
        restore(self.state_dict(), state, type(self).__name__)


@dataclass(frozen=True)
class Split:
    """How often a rollout is gone through, and in how many parts each time."""

    epochs: int
    minibatches: int


class Epochs(Phase):
    """Epochs of minibatches, with one gradient step for each.

    Args:
        loss: of a minibatch.
        optimizer: takes the steps.
        split: of the rollout.
        control: ends the steps and adapts their length; None leaves them alone.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: Optimizer,
        split: Split,
        control: KLControl | None = None,
    ) -> None:
        self.loss = loss
        self.groups = tuple(name for name in loss.groups if name in optimizer.flat)
        self.optimizer = optimizer
        self.split = split
        self.control = control
        device = next(iter(optimizer.flat.values())).parameter.device
        self._means = RunningMean((*loss.names, *optimizer.names(self.groups)), device)

    def __call__(
        self, batch: Batch, valid: Tensor, orders: Orders, refresh: Refresh | None = None
    ) -> dict[str, Tensor]:
        for order in list(itertools.islice(orders, self.split.epochs)):  # all of them, wherever the steps end
            if refresh is not None:
                batch = refresh(batch)
            for index, weight in zip(*minibatches(valid, self.split.minibatches, order), strict=True):
                self._learn(batch, index, weight)
                if self._over:
                    break
            if self.control is not None:
                self.control.end_epoch(self.split.minibatches)
            if self._over:
                break
        return self._means.take()

    def _learn(self, batch: Batch, index: Tensor, weight: Tensor) -> None:
        """One gradient step on the columns that `index` names."""
        self._move(self.loss.of(batch.take(index), weight))

    def _move(self, terms: Terms) -> None:
        control = self.control
        if control is None or terms.kl is None:
            self._means.add(torch.cat((terms.means, self._descend(terms.loss))))
            return
        kl = terms.kl.detach()
        control.watch(kl)
        self.optimizer.adapt(control.rate(kl, self.optimizer.learning_rates["actor"].tensor))
        checked = self._descend(terms.loss, control.stopped)
        self._means.add(torch.cat((terms.means, checked)), 1 - control.stopped)

    def _descend(self, loss: Tensor, stopped: Tensor | None = None) -> Tensor:
        """One step down the gradient of a minibatch's loss, as `Optimizer.step` takes it."""
        return self.optimizer.step(loss, self.groups, stopped)

    @property
    def _over(self) -> bool:
        """Whether no more steps will be taken, where that is known without waiting for the device."""
        stopped = None if self.control is None else self.control.stopped
        return stopped is not None and stopped.device.type == "cpu" and bool(stopped)


def minibatches(valid: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of columns, and the weights of their rows in the mean; every column once, in minibatches of one size.

    Where the columns don't divide evenly, some minibatches end with a filler that weighs nothing.

    Args:
        valid: `[S, C]` bool.
        count: of minibatches.
        generator: on the CPU, for the permutation.

    Returns:
        `[count, size]` int64 and `[count, S * size]`, a row for each minibatch.
    """
    columns = valid.shape[1]
    size = -(-columns // count)
    full = columns - count * (size - 1)
    order = torch.randperm(columns, generator=generator)
    whole, short = order[: full * size].view(full, size), order[full * size :].view(count - full, size - 1)
    index = torch.cat((whole, pad(short, (0, 1)))).to(valid.device)
    weight = valid[:, index].float()
    weight[:, full:, -1] = 0.0
    weight = weight / weight.sum((0, 2), keepdim=True).clamp(min=1.0)
    return index, weight.transpose(0, 1).flatten(1)
