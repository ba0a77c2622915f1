"""What the divergence of the policy from the one that acted decides: when its steps end, and how long they are."""

from typing import Literal

import torch
from torch import Tensor

from levelhead.schedules import Coefficient, Schedule

Check = Literal["minibatch", "epoch"]


class KLControl:
    """Ends an iteration's steps of the policy where KL(old || new) has grown over a limit, and adapts learning rates.

    Args:
        limit: on the mean divergence; None for none.
        check: whether a minibatch's mean is compared with it, before its step, or an epoch's.
        target: of a minibatch's mean. Where it is more than twice that, the learning rates of what decides the actions
            are divided by 1.5, and where it is less than half, multiplied. None leaves them to their schedules.
        device: of the policy.

    Source: of the adaptive learning rate, Schwarke et al. 2025, "RSL-RL: a learning library for robotics research".
    """

    RATE_STEP = 1.5
    RATES = (1e-5, 1e-2)
    """Between which learning rates are adapted."""

    def __init__(
        self, limit: Schedule | None, check: Check, target: Schedule | None, device: torch.device | str | None = None
    ) -> None:
        self.limit = None if limit is None else Coefficient(limit, device)
        self.target = None if target is None else Coefficient(target, device)
        self.check = check
        self.stopped = torch.zeros((), device=device)
        """0-d float: 1 where no more steps of the policy are taken in this iteration."""
        self._sum = torch.zeros((), device=device)

    @property
    def needs_kl(self) -> bool:
        """Whether there is anything to decide."""
        return self.limit is not None or self.target is not None

    def advance(self, progress: float) -> None:
        """Moves schedules to `progress`, the share of training done."""
        for coefficient in (self.limit, self.target):
            if coefficient is not None:
                coefficient.advance(progress)

    def begin(self) -> None:
        """Starts an iteration."""
        self.stopped.zero_()
        self._sum.zero_()

    def watch(self, kl: Tensor) -> None:
        """Takes note of a minibatch's mean divergence, before its step."""
        self._sum += kl
        if self.limit is not None and self.check == "minibatch":
            self.stopped.logical_or_(kl > self.limit.tensor)

    def end_epoch(self, minibatches: int) -> None:
        """Takes note that an epoch is over."""
        if self.limit is not None and self.check == "epoch":
            self.stopped.logical_or_(self._sum / minibatches > self.limit.tensor)
        self._sum.zero_()

    def rate(self, kl: Tensor, rate: Tensor) -> Tensor:
        """What to multiply a learning rate by after a minibatch, 0-d."""
        if self.target is None:
            return torch.ones_like(kl)
        target = self.target.tensor
        low, high = self.RATES
        wanted = torch.where(kl > 2 * target, (rate / self.RATE_STEP).clamp(min=low), rate)
        wanted = torch.where((kl < target / 2) & (kl > 0), (rate * self.RATE_STEP).clamp(max=high), wanted)
        return torch.where(self.stopped > 0, 1.0, wanted / rate)
