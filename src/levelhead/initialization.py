"""How layers start out."""

from torch import nn


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """`layer` with an orthogonal weight of the given gain and a zero bias; returned for chaining.

    Source: detail 2 of "The 37 implementation details of PPO" (Huang et al. 2022).
    """
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
