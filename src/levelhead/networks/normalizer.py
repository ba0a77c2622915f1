"""Observations brought to mean 0 and std 1."""

import torch
from torch import Tensor, nn

from levelhead.numerics import ROUNDING, Moments


class ObservationNormalizer(nn.Module):
    """Running mean and std of every entry of the observation, over all samples ever seen.

    Frozen except in `update`, which a trainer calls once per rollout; the statistics are float64 buffers, so they are
    saved with the policy and stay put in evaluation.

    Args:
        dim: number of entries of a flattened observation.
        clip: normalised entries are clipped to +-clip.
    """

    count: Tensor
    mean: Tensor
    var: Tensor
    std: Tensor

    def __init__(self, dim: int, clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("std", torch.ones(dim, dtype=torch.float64))

    def forward(self, observation: Tensor) -> Tensor:
        """`[..., dim] -> [..., dim]`, in the observation's dtype."""
        z = (observation - self.mean) / self.std
        return z.clamp_(-self.clip, self.clip).to(observation.dtype)

    def update(self, batch: Moments, apply: Tensor) -> None:
        """Merges the moments of more observations where `apply` (0-d bool)."""
        weight = batch.weight.max()
        total, mean, var = Moments(self.count, self.mean, self.var).merged(batch._replace(weight=weight))
        spread = var.sqrt()
        # An entry that doesn't vary carries nothing; dividing by its rounding noise would invent something.
        std = torch.where(spread > ROUNDING * mean.abs(), spread, 1.0)
        for buffer, new in ((self.mean, mean), (self.var, var), (self.std, std), (self.count, total)):
            buffer.copy_(torch.where(apply, new, buffer))
