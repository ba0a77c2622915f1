"""Value heads: drop-in last layers for a value network, levelled against the scale of the targets.

This package depends on torch, `levelhead.numerics` and `levelhead.schedules` alone, so it serves any PyTorch code.
"""

from levelhead.numerics import local
from levelhead.values.head import ValueHead
from levelhead.values.linear import LinearValueHead
from levelhead.values.loss import value_loss
from levelhead.values.popart import PopArtValueHead
from levelhead.values.runningnorm import RunningNormHead
from levelhead.values.statistics import ValueNormalizer
from levelhead.values.valuenorm import ValueNormHead

__all__ = [
    "LinearValueHead",
    "PopArtValueHead",
    "RunningNormHead",
    "ValueHead",
    "ValueNormHead",
    "ValueNormalizer",
    "local",
    "value_loss",
]
