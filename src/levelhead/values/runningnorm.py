"""Normalised outputs without the rewrite (the "value normalisation" of MAPPO)."""

from torch import Tensor

from levelhead.values.head import ValueHead


class RunningNormHead(ValueHead):
    """The layer predicts normalised values, denormalised on the way out; outputs jump when statistics move.

    Source: Yu et al. 2022, "The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games", section 5.1.
    """

    predicts_normalized = True

    def forward_normalized(self, features: Tensor) -> Tensor:
        return self.linear(features)
