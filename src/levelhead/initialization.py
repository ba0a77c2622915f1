"""How layers start out."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def orthogonal(layer: Layer, gain: float) -> Layer:
    """`layer` with an orthogonal weight of the given gain and a zero bias, if it has one; returned for chaining.

    Source: detail 2 of "The 37 implementation details of PPO" (Huang et al. 2022).
    """
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
