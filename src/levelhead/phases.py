"""The parts that learning from a rollout consists of, one after another."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from levelhead.criterion import Loss, Terms
from levelhead.distributed import total
from levelhead.divergence import KLControl
from levelhead.metrics import RunningMean
from levelhead.optimizer import Optimizer
from levelhead.rollout import Batch
from levelhead.tree import restore


@dataclass(frozen=True)
class Order:
    """Where an iteration's permutations come from, one after another."""

    shards: Sequence[torch.Generator]
    """One for each shard of this process: its environments are split into minibatches by themselves."""
    common: Callable[[], torch.Generator]
    """Answers one that is the same on all ranks."""
    environments: int
    """Of all shards together; columns are in their order, again and again."""


Refresh = Callable[[Batch], Batch]
"""The same batch, with advantages and targets for policy and critic as they are by now."""


class Phase(ABC):
    """One way of learning from a rollout."""

    @abstractmethod
    def __call__(self, batch: Batch, valid: Tensor, order: Order, refresh: Refresh | None = None) -> dict[str, Tensor]:
        """Learns from `batch`, and answers metrics by name, 0-d.

        Args:
            batch: C columns of S steps.
            valid: `[S, C]` bool; other rows weigh nothing.
            order: seeded for this iteration; phases that follow go on with it.
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

    def __call__(self, batch: Batch, valid: Tensor, order: Order, refresh: Refresh | None = None) -> dict[str, Tensor]:
        split = minibatches(valid, self.split, order, batch.advantage.dtype)  # all of them, wherever the steps end
        for epoch in zip(*split, strict=True):
            if refresh is not None:
                batch = refresh(batch)
            for index, weight in zip(*epoch, strict=True):
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
        self._move(self._differentiated(self.loss.of(batch.take(index), weight)))

    def _differentiated(self, terms: Terms) -> Terms:
        """The terms over all ranks, whose gradient is with the parameters then."""
        self.optimizer.backward(terms.loss)
        return self._total(terms)

    def _total(self, terms: Terms) -> Terms:
        """The terms over all ranks, and the gradients that are with the parameters too."""
        kl = () if terms.kl is None else (terms.kl.detach().unsqueeze(0),)
        numbers = torch.cat((terms.loss.detach().unsqueeze(0), terms.means, *kl))
        self.optimizer.total_(self.groups, numbers)
        return Terms(numbers[0], numbers[1 : 1 + len(terms.means)], numbers[-1] if kl else None)

    def _move(self, terms: Terms) -> None:
        """One step along the gradient that is with the parameters."""
        control = self.control
        if control is None or terms.kl is None:
            checked = self.optimizer.follow(terms.loss, self.groups)
            self._means.add(torch.cat((terms.means, checked)))
            return
        control.watch(terms.kl)
        self.optimizer.adapt(control.rate(terms.kl, self.optimizer.learning_rates["actor"].tensor))
        checked = self.optimizer.follow(terms.loss, self.groups, control.stopped)
        self._means.add(torch.cat((terms.means, checked)), 1 - control.stopped)

    @property
    def _over(self) -> bool:
        """Whether no more steps will be taken, where that is known without waiting for the device."""
        stopped = None if self.control is None else self.control.stopped
        return stopped is not None and stopped.device.type == "cpu" and bool(stopped)


def minibatches(valid: Tensor, split: Split, order: Order, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Indices of columns, and the weights of their rows in the mean; in each epoch every column once, in minibatches of
    one size.

    A minibatch is made of an equal slice from each shard, here and on other ranks: its weights add up to 1 over all of
    them. Where a shard's columns don't divide evenly, some of its slices end with a filler that weighs nothing.

    Args:
        valid: `[S, C]` bool.
        split: into so many, in each of E epochs.
        order: of the permutations; its generators are on the CPU.
        dtype: of the weights.

    Returns:
        `[E, minibatches, size]` int64 and `[E, minibatches, S * size]`, a row for each minibatch.
    """
    steps, shards, count = len(valid), len(order.shards), split.minibatches
    each = valid.shape[1] // shards
    size = -(-each // count)
    full = each - count * (size - 1)
    mixed = torch.stack([torch.randperm(each, generator=own) for _ in range(split.epochs) for own in order.shards])
    if shards > 1:  # whose environments lie side by side, once for each chunk
        columns = torch.arange(valid.shape[1]).view(-1, shards, order.environments // shards).transpose(0, 1)
        mixed = columns.reshape(shards, each).repeat(split.epochs, 1).gather(1, mixed)
    slices = mixed[:, : full * size].reshape(-1, full, size)
    if full < count:
        short = mixed[:, full * size :].reshape(len(mixed), count - full, size - 1)
        slices = torch.cat((slices, pad(short, (0, 1))), 1)
    index = slices.view(split.epochs, shards, count, size).transpose(1, 2).flatten(2).to(valid.device)
    weight = valid.to(dtype).index_select(1, index.flatten()).view(steps, *index.shape)
    if full < count:
        weight[:, :, full:, size - 1 :: size] = 0.0
    weight = weight / total(weight.sum((0, 3))).clamp(min=1.0).unsqueeze(-1)
    return index, weight.permute(1, 2, 0, 3).flatten(2)
