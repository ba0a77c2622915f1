"""What the actor's layers learn from values, now and then, while the policy stays as it is."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from levelhead.criterion import Criterion, Loss, Terms
from levelhead.numerics import pick
from levelhead.optimizer import AUXILIARY, GROUPS, Optimizer
from levelhead.phases import Epochs, Order, Refresh, Split, minibatches
from levelhead.rollout import Batch
from levelhead.schedules import Coefficient


@dataclass(frozen=True)
class _Kept:
    """A rollout that waits for the phase."""

    batch: Batch
    valid: Tensor
    target: Tensor
    """In reward units, as the axis moves while it waits."""


class Auxiliary(Epochs):
    """Every few iterations, epochs over all rollouts since the last time.

    A linear layer on the actor's features learns to predict value targets, and what is below it learns with it, as far
    as the divergence from the policy before the phase lets it; the critic learns once more beside. Unlike the paper's,
    a minibatch is of one rollout, Adam's moments are those of the other phases, and where the targets' axis has moved,
    the layer has the way to go.

    Args:
        criterion: of the critic, and of the policy.
        layer: `[..., actor_dim] -> [..., K]`; the optimizer has its parameters as a group.
        optimizer: takes the steps.
        split: of each rollout.
        every: iterations from one phase to the next.
        clone_coef: weight of the divergence.

    Source: Cobbe et al. 2020, "Phasic policy gradient", equations 1 and 2 and algorithm 1.
    """

    NAMES = ("train/auxiliary_loss", "train/clone_kl")

    def __init__(
        self,
        criterion: Criterion,
        layer: nn.Linear,
        optimizer: Optimizer,
        split: Split,
        every: int,
        clone_coef: Coefficient,
    ) -> None:
        super().__init__(Loss(self._loss, self.NAMES, (*GROUPS, AUXILIARY)), optimizer, split)
        self.criterion = criterion
        self.layer = layer
        self.every = every
        self.clone_coef = clone_coef
        self._kept: list[_Kept] = []

    def advance(self, progress: float) -> None:
        self.clone_coef.advance(progress)

    def __call__(
        self,
        batch: Batch,
        valid: Tensor,
        order: Order,
        refresh: Refresh | None = None,  # noqa: ARG002  # targets are those of their iterations
    ) -> dict[str, Tensor]:
        target = self.criterion.policy.value_head.denormalize(batch.target, task=batch.task)
        self._kept.append(_Kept(batch, valid.clone(), target))  # the collector writes over its own
        if len(self._kept) < self.every:
            return {}
        rollouts = [(self._relabelled(kept), kept.valid) for kept in self._kept]
        self.forget()
        splits = [minibatches(valid, self.split, order, batch.advantage.dtype) for batch, valid in rollouts]
        for epoch in range(self.split.epochs):
            parts = [
                (batch, *part)
                for (batch, _), (index, weight) in zip(rollouts, splits, strict=True)
                for part in zip(index[epoch], weight[epoch], strict=True)
            ]
            for i in torch.randperm(len(parts), generator=order.common()).tolist():
                self._learn(*parts[i])
        means = self._means.take()
        return {name: means[name] for name in self.NAMES}

    def _relabelled(self, kept: _Kept) -> Batch:
        """With what policy and critic say now, on the axis of now."""
        opinion = self.criterion.opinion(kept.batch)
        target = self.criterion.policy.value_head.normalize(kept.target, task=kept.batch.task)
        now = replace(kept.batch, target=target, old_value=opinion.value, parameters=opinion.parameters)
        return now.only(kept.valid)

    def _loss(self, batch: Batch, weight: Tensor) -> Terms:
        policy = self.criterion.policy
        features, _ = policy.actor_features(batch.observation, self.criterion.state(batch), batch.begins)
        new = policy.action_head.evaluate(features, batch.action, batch.action_mask)
        kl = policy.action_head.kl(batch.parameters, new.parameters)
        error = (pick(self.layer(features), batch.task) - batch.target).square() / 2
        means = torch.stack((error, kl)) @ weight
        loss = means[0] + self.clone_coef.tensor * means[1] + self.criterion.critic.of(batch, weight).loss
        return Terms(loss, means.detach())

    def forget(self) -> None:
        self._kept = []

    def state_dict(self) -> dict[str, Tensor]:
        return self.layer.state_dict()
