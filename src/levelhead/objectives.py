"""What the actor maximises: the rungs of the ladder from the plain policy gradient to PPO."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from levelhead.actions import Evaluation
from levelhead.losses import clip_fraction, clip_surrogate, dual_clip, log_ratio
from levelhead.rollout import Batch
from levelhead.schedules import Coefficient, Schedule
from levelhead.tree import restore


class ObjectiveLoss(NamedTuple):
    """Per-sample tensors `[B]`."""

    loss: Tensor
    """To be minimised."""
    metrics: tuple[Tensor, ...] = ()
    """In the order of `Objective.metric_names`; they carry no gradient."""


class Objective(ABC):
    """A surrogate for the policy's return.

    Attributes:
        metric_names: of what it reports beside its loss, logged as `train/<name>`.
        needs_kl: whether it reads KL(old || new), which is computed only where somebody does.
    """

    metric_names: ClassVar[tuple[str, ...]] = ()
    needs_kl: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, new: Evaluation, batch: Batch, kl: Tensor | None) -> ObjectiveLoss:
        """The loss of each sample under the policy as it is now.

        Args:
            new: what that policy says of the batch's actions.
            batch: rows of a rollout.
            kl: `[B]`, the divergence from the policy that acted to that of now, differentiable, as exact as the action
                head can tell; None unless something needs it.
        """

    def advance(self, progress: float) -> None:  # noqa: B027  # nothing to move
        """Moves schedules to `progress`, the share of training done."""

    def adapt(self, kl: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  # nothing to adapt
        """Takes note, where `needs_kl`, of the mean divergence over a rollout that was learned from, and answers
        metrics by name."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Whatever moves from rollout to rollout: tensors that are there from the beginning, and written in place."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        restore(self.state_dict(), state, type(self).__name__)


class ClipObjective(Objective):
    """PPO's clipped surrogate (PPO2), optionally with a bound for bad actions that have become likely (dual clip).

    Args:
        clip_range: how far the probability ratio may leave 1 before the gradient is cut off.
        device: of the policy.
        dual: where the advantage is negative, the ratio beyond which the gradient is cut off; above 1.
    """

    metric_names = ("clip_fraction",)

    def __init__(
        self, clip_range: Schedule, device: torch.device | str | None = None, dual: float | None = None
    ) -> None:
        self.clip_range = Coefficient(clip_range, device)
        self.dual = dual

    def advance(self, progress: float) -> None:
        self.clip_range.advance(progress)

    def __call__(self, new: Evaluation, batch: Batch, kl: Tensor | None) -> ObjectiveLoss:  # noqa: ARG002
        ratio = _ratio(new, batch)
        width = self.clip_range.tensor
        surrogate = clip_surrogate(ratio, batch.advantage, width)
        if self.dual is not None:
            surrogate = dual_clip(surrogate, batch.advantage, self.dual)
        return ObjectiveLoss(-surrogate, (clip_fraction(ratio.detach(), width),))


class KLObjective(Objective):
    """The surrogate minus a penalty on the divergence, which adapts to keep that near a target (PPO1).

    The penalty's weight starts at 1, doubles after an iteration that ends further than `TOLERANCE` times the target
    from the policy that acted, and halves after one that ends nearer than the target divided by it.

    Args:
        target: of the mean KL(old || new) after an iteration.
        device: of the policy.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", section 4.
    """

    needs_kl = True
    TOLERANCE = 1.5
    BOUNDS = (2.0**-20, 2.0**20)
    """Of the weight, so that it can come back from an iteration in which nothing moves."""

    def __init__(self, target: Schedule, device: torch.device | str | None = None) -> None:
        self.target = Coefficient(target, device)
        self.weight = torch.ones((), device=device)

    def advance(self, progress: float) -> None:
        self.target.advance(progress)

    def __call__(self, new: Evaluation, batch: Batch, kl: Tensor | None) -> ObjectiveLoss:
        return ObjectiveLoss(self.weight * _known(kl) - _ratio(new, batch) * batch.advantage)

    def adapt(self, kl: Tensor) -> dict[str, Tensor]:
        used, target = self.weight.clone(), self.target.tensor
        self.weight.mul_(1 + (kl > target * self.TOLERANCE).float() - 0.5 * (kl < target / self.TOLERANCE).float())
        self.weight.clamp_(*self.BOUNDS)
        return {"train/kl_coef": used}

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight}


class PolicyGradientObjective(Objective):
    """`log pi A`, whose gradient is the policy gradient as long as the policy is the one that acted.

    Source: Sutton et al. 2000, "Policy gradient methods for reinforcement learning with function approximation".
    """

    def __call__(self, new: Evaluation, batch: Batch, kl: Tensor | None) -> ObjectiveLoss:  # noqa: ARG002
        return ObjectiveLoss(-new.log_prob * batch.advantage)


class A2CObjective(PolicyGradientObjective):
    """Actor and critic learn together, in one pass over the rollout.

    Source: Mnih et al. 2016, "Asynchronous methods for deep reinforcement learning", without the asynchrony.
    """


class VPGObjective(PolicyGradientObjective):
    """REINFORCE: one step of the actor on the whole rollout; then the critic, its baseline, is fitted in minibatches.

    Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning".
    """


@dataclass(frozen=True)
class LineSearch:
    """How a trust-region step is looked for."""

    iterations: int = 10
    """Of conjugate gradients."""
    damping: float = 0.1
    """Multiple of the identity that is added to the Fisher matrix."""
    backtracks: int = 10
    """Lengths that are tried."""
    shrink: float = 0.8
    """Each as a share of the one before."""


class TrustRegionObjective(Objective):
    """The surrogate, maximised in one natural-gradient step within a bound on the divergence (TRPO); then the critic is
    fitted in minibatches.

    Args:
        max_kl: bound on the mean KL(old || new) of a step.
        device: of the policy.
        search: for the step.

    Source: Schulman et al. 2015, "Trust region policy optimization", appendix C.
    """

    needs_kl = True

    def __init__(
        self, max_kl: Schedule, device: torch.device | str | None = None, search: LineSearch | None = None
    ) -> None:
        self.max_kl = Coefficient(max_kl, device)
        self.search = LineSearch() if search is None else search

    def advance(self, progress: float) -> None:
        self.max_kl.advance(progress)

    def __call__(self, new: Evaluation, batch: Batch, kl: Tensor | None) -> ObjectiveLoss:  # noqa: ARG002
        return ObjectiveLoss(-_ratio(new, batch) * batch.advantage)


def _ratio(new: Evaluation, batch: Batch) -> Tensor:
    return log_ratio(new.log_prob, batch.log_prob).exp()


def _known(kl: Tensor | None) -> Tensor:
    if kl is None:
        raise ValueError("this objective needs the divergence from the policy that acted")
    return kl
