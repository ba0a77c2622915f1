"""Raw outputs, standardised loss."""

import torch
from torch import Tensor

from levelhead.values.head import ValueHead


class ValueNormHead(ValueHead):
    """The layer predicts raw values; prediction and target are both standardised inside the loss.

    Outputs never jump, but what the layer must learn keeps its scale, and gradients with respect to its weights scale
    with `1 / std^2` against those of a raw loss (which PopArt shares for the trunk, not for the layer).
    """

    def forward_normalized(self, features: Tensor) -> Tensor:
        return self.normalize(self._raw(features))

    def forward(self, features: Tensor) -> Tensor:
        return self._raw(features)

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        raw = self._raw(features)
        return raw.detach(), self.normalize(raw)

    def _raw(self, features: Tensor) -> Tensor:
        raw = self.linear(features)
        return raw.to(torch.promote_types(raw.dtype, torch.float32))
