"""Advantages and value targets from a rollout."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from levelhead.distributed import total
from levelhead.returns import earlier_rewards, gae, mean_of_others, n_step, v_trace
from levelhead.rollout import Rollout

Baseline = Literal["none", "mean", "value"]
Credit = Literal["episode", "to-go"]


@dataclass(frozen=True)
class Estimator(ABC):
    """One way of estimating returns; the advantage is what they exceed a baseline by."""

    gamma: float
    """Discount."""
    baseline: Baseline = "value"
    """What is subtracted: nothing, the mean return of the other environments, or the critic's value."""
    credit: Credit = "to-go"
    """What an action is credited with: what follows it, or what its episode gave before it too, as far as the rollout
    goes back. That adds nothing to the gradient but noise."""

    refreshed: ClassVar[bool] = False
    """Whether it is asked anew before every epoch, with that moment's policy and critic."""

    def __call__(self, rollout: Rollout, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Advantages and targets, `[T, N]`, both raw.

        Args:
            rollout: with the values that are to be bootstrapped from.
            masks: per task, bool `[T, N]`: its valid samples.
        """
        advantage, target = self._estimate(rollout)
        return self._credited(rollout, masks, advantage, target), target

    @abstractmethod
    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantages over the critic's values, and targets."""

    def _credited(self, rollout: Rollout, masks: Sequence[Tensor], advantage: Tensor, target: Tensor) -> Tensor:
        if self.credit == "episode":
            earlier = earlier_rewards(rollout.reward, rollout.terminated | rollout.truncated, rollout.valid)
            advantage, target = advantage + earlier, target + earlier
        match self.baseline:
            case "value":
                return advantage
            case "mean":
                return target - mean_of_others(target, masks, total)
            case "none":
                return target


@dataclass(frozen=True)
class GAE(Estimator):
    """Generalised advantage estimation; Monte-Carlo returns where lambda is 1."""

    lam: float = 0.95
    """1 is Monte-Carlo, 0 one-step TD."""

    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return gae(*_transitions(rollout), self.gamma, self.lam, rollout.valid)


@dataclass(frozen=True)
class NStep(Estimator):
    """Returns of n rewards and a value."""

    n: int = 5

    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return n_step(*_transitions(rollout), self.gamma, self.n, rollout.valid)


@dataclass(frozen=True)
class VTrace(Estimator):
    """Estimated anew before every epoch, for the policy as it has become, by clipped importance weights."""

    lam: float = 0.95
    """As in `GAE`."""

    refreshed = True

    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        ratio = torch.ones_like(rollout.value) if rollout.ratio is None else rollout.ratio
        return v_trace(*_transitions(rollout), ratio, self.gamma, self.lam, valid=rollout.valid)


@dataclass(frozen=True)
class LateGAE(VTrace):
    """GAE of what an earlier policy played: the same weights, but estimated once."""

    refreshed = False


def _transitions(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return rollout.reward, rollout.value, rollout.next_value, rollout.terminated, rollout.truncated
