"""PopArt: normalise the targets adaptively, rewrite the layer so that outputs are preserved."""

import torch
from torch import Tensor

from levelhead.values.head import ValueHead


class PopArtValueHead(ValueHead):
    """The layer predicts normalised values; whenever statistics move, its outputs in reward units stay the same.

    When (mean, std) go from (m, s) to (m', s'):  `W' = W s / s'`,  `b' = (s b + m - m') / s'`.

    Source: van Hasselt et al. 2016, "Learning values across many orders of magnitude", proposition 1; Hessel et al.
    2019, "Multi-task deep reinforcement learning with PopArt", for several outputs.
    """

    predicts_normalized = True
    preserves = True

    def forward_normalized(self, features: Tensor) -> Tensor:
        return self.linear(features)

    @torch.no_grad()
    def _rewrite(self, mean: Tensor, std: Tensor, preserve: Tensor) -> None:
        scale = torch.where(preserve, std / self.std, 1.0)
        shift = torch.where(preserve, (mean - self.mean) / self.std, 0.0)
        weight, bias = self.linear.weight, self.linear.bias
        scale, shift = scale.to(weight.device), shift.to(weight.device)
        weight.mul_(scale.unsqueeze(1))  # in float64, as `scale` is
        bias.copy_(bias * scale + shift)
        self._rescale_moments(scale)
