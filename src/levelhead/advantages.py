"""How advantages are brought to a common scale before they enter the policy's loss, each task by itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from levelhead.distributed import gathered, largest, total
from levelhead.numerics import ROUNDING, Moments, moments, standardize
from levelhead.tree import restore


class Measured(NamedTuple):
    """Moments by task, `[K]`, over all ranks' valid samples."""

    advantage: Moments
    target: Moments
    residual: Moments
    """Of what values lack to the targets."""
    finite: Tensor
    """0-d bool: whether all of these samples were."""


def measured(advantage: Tensor, target: Tensor, value: Tensor, masks: Sequence[Tensor]) -> Measured:
    """All three at once.

    Args:
        advantage, target, value: raw, of one shape.
        masks: per task, bool in that shape: its valid samples.
    """
    columns = torch.stack((advantage, target, target - value)).flatten(1).t()
    tasks = [moments(columns, mask.reshape(-1, 1), total) for mask in masks]
    of = Moments(*(torch.stack(x, 1) for x in zip(*tasks, strict=True)))
    kinds = zip(*(x.unbind() for x in of), strict=True)
    return Measured(*(Moments(*kind) for kind in kinds), finite=of.finite.all())


@dataclass(frozen=True)
class Share:
    """One task's share of a rollout."""

    task: int
    mask: Tensor
    """bool: the valid samples of the task."""
    target: Tensor
    """Raw value targets, of all tasks."""
    measured: Measured
    """Of all tasks."""
    std: Tensor
    """0-d, the value head's for this task."""
    again: bool = False
    """Whether it is the same rollout once more, that averages have seen already."""


class AdvantageScaling(ABC):
    """One way of scaling advantages."""

    scale_free: ClassVar[bool] = True
    """Whether rewards times a power of two leave the result as it is, bit for bit."""
    needs_statistics: ClassVar[bool] = False
    """Whether it reads the value head's std."""

    def __call__(
        self,
        advantage: Tensor,
        target: Tensor,
        masks: Sequence[Tensor],
        measured: Measured,
        std: Tensor,
        again: bool = False,
    ) -> Tensor:
        """Advantages as they enter the loss; 0 where they belong to no task.

        Args:
            advantage: raw, any shape.
            target: raw value targets, `advantage`'s shape.
            masks: per task, bool in `advantage`'s shape: the valid samples of that task; no two have one in common.
            measured: their moments.
            std: `[K]`, of the value head.
            again: whether it is the same rollout once more, estimated anew.
        """
        scaled = torch.zeros_like(advantage)
        for k, mask in enumerate(masks):
            share = Share(k, mask, target, measured, std[k], again)
            scaled = torch.where(mask, self._scaled(advantage, share), scaled)
        return scaled

    @abstractmethod
    def _scaled(self, advantage: Tensor, share: Share) -> Tensor:
        """The advantages of one task; what stands outside its mask doesn't matter."""

    def state_dict(self) -> dict[str, Tensor]:
        """Whatever moves from rollout to rollout."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        restore(self.state_dict(), state, type(self).__name__)


class RawAdvantage(AdvantageScaling):
    """As they are."""

    scale_free = False

    def _scaled(self, advantage: Tensor, share: Share) -> Tensor:  # noqa: ARG002  # nothing to scale by
        return advantage


class StandardizedAdvantage(AdvantageScaling):
    """Mean 0 and standard deviation 1 over each task's share of all ranks' rollouts; all 0 where the spread is but
    rounding noise beside the largest target."""

    def _scaled(self, advantage: Tensor, share: Share) -> Tensor:
        scale = largest(torch.where(share.mask, share.target, 0.0).abs().max())
        return standardize(advantage, share.mask, share.measured.advantage.take(share.task), scale)


class HeadScaledAdvantage(AdvantageScaling):
    """Divided by the value head's std: on the scale of the returns so far, and not centred."""

    needs_statistics = True

    def _scaled(self, advantage: Tensor, share: Share) -> Tensor:
        return (advantage / share.std).to(advantage.dtype)


class PercentileAdvantage(AdvantageScaling):
    """Divided by a moving average of the range of returns, from their 5th to their 95th percentile; not centred.

    DreamerV3 never divides by less than 1, so that small noise isn't blown up where rewards are sparse; that ties it
    to the unit of the reward. Here a range of no spread, as where fewer than one return in twenty differs, gives way
    to that from the smallest return to the largest; a rollout in which all are alike moves nothing.

    Source: Hafner et al. 2025, "Mastering diverse control tasks through world models", equation 7.

    Args:
        tasks: K, each with a range of its own.
        device: of the rollouts.
    """

    MARKS = (0.0, 0.05, 0.95, 1.0)
    RETENTION = 0.99

    def __init__(self, tasks: int, device: torch.device | str | None = None) -> None:
        self._marks = torch.tensor(self.MARKS, device=device)
        self._range = torch.zeros(tasks, dtype=torch.float64, device=device)
        # The product of the retentions so far, which debiases the average.
        self._retained = torch.ones(tasks, dtype=torch.float64, device=device)

    def _scaled(self, advantage: Tensor, share: Share) -> Tensor:
        target = gathered(torch.where(share.mask, share.target, torch.nan)).flatten()
        least, low, high, most = torch.nanquantile(target, self._marks.to(target.dtype)).unbind()
        inner, outer = _spread(low, high), _spread(least, most)
        width = torch.where(inner > 0, inner, outer)
        self._absorb(share.task, width.double(), reached=(width > 0) & (not share.again))
        average = self._range[share.task]
        return torch.where(average > 0, advantage / average, 0.0).to(advantage.dtype)

    def _absorb(self, task: int, width: Tensor, reached: Tensor) -> None:
        """Moves the average of one task; a rollout without samples or spread leaves it alone."""
        retained = self._retained[task] * self.RETENTION
        average = self._range[task] + (1 - self.RETENTION) / (1 - retained) * (width - self._range[task])
        for buffer, new in ((self._range, average), (self._retained, retained)):
            buffer[task] = torch.where(reached, new, buffer[task])

    def state_dict(self) -> dict[str, Tensor]:
        return {"range": self._range, "retained": self._retained}


def _spread(low: Tensor, high: Tensor) -> Tensor:
    """`high - low`; 0 where that is no more than rounding."""
    width = high - low
    return torch.where(width > ROUNDING * torch.maximum(low.abs(), high.abs()), width, 0.0)
