"""What the actor maximises."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from levelhead.actions import Evaluation
from levelhead.losses import approximate_kl, clip_fraction, clip_surrogate
from levelhead.rollout import Batch
from levelhead.schedules import Coefficient, Schedule


class ObjectiveLoss(NamedTuple):
    """Per-sample tensors `[B]`."""

    loss: Tensor
    """To be minimised."""
    approx_kl: Tensor
    """An estimate of KL(old || new); carries no gradient."""
    clip_fraction: Tensor
    """1 where the probability ratio has left the clip range; carries no gradient."""


class Objective(ABC):
    """A surrogate for the policy's return."""

    @abstractmethod
    def advance(self, progress: float) -> None:
        """Moves schedules to `progress`, the share of training done."""

    @abstractmethod
    def __call__(self, new: Evaluation, batch: Batch) -> ObjectiveLoss:
        """The loss of each sample under the policy as it is now."""


class ClipObjective(Objective):
    """PPO's clipped surrogate.

    Args:
        clip_range: how far the probability ratio may leave 1 before the gradient is cut off.
        device: of the policy.
    """

    def __init__(self, clip_range: Schedule, device: torch.device | str | None = None) -> None:
        self.clip_range = Coefficient(clip_range, device)

    def advance(self, progress: float) -> None:
        self.clip_range.advance(progress)

    def __call__(self, new: Evaluation, batch: Batch) -> ObjectiveLoss:
        log_ratio = new.log_prob - batch.log_prob
        ratio = log_ratio.exp()
        width = self.clip_range.tensor
        loss = -clip_surrogate(ratio, batch.advantage, width)
        return ObjectiveLoss(loss, approximate_kl(log_ratio.detach()), clip_fraction(ratio.detach(), width))
