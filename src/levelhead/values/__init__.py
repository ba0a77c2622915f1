"""Value heads: drop-in last layers for a value network, levelled against the scale of the targets.

This package depends on torch and `levelhead.numerics` alone, so it serves any PyTorch code.
"""

from levelhead.numerics import local
from levelhead.values.fixed import LinearValueHead, TransformValueHead
from levelhead.values.head import ValueHead
from levelhead.values.histogram import HLGaussValueHead, TwoHotValueHead
from levelhead.values.loss import value_loss
from levelhead.values.popart import PopArtValueHead
from levelhead.values.runningnorm import RunningNormHead
from levelhead.values.statistics import ValueNormalizer
from levelhead.values.transforms import SIGNED_SQRT, SYMLOG, Transform
from levelhead.values.valuenorm import ValueNormHead

__all__ = [
    "SIGNED_SQRT",
    "SYMLOG",
    "HLGaussValueHead",
    "LinearValueHead",
    "PopArtValueHead",
    "RunningNormHead",
    "Transform",
    "TransformValueHead",
    "TwoHotValueHead",
    "ValueHead",
    "ValueNormHead",
    "ValueNormalizer",
    "local",
    "value_loss",
]
