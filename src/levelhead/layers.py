"""Linear and convolutional layers as they start out, and stacks of them."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
Activation = Literal["tanh", "relu", "elu", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def orthogonal(layer: Layer, gain: float) -> Layer:
    """`layer` with an orthogonal weight of the given gain and a zero bias, if it has one; returned for chaining.

    Source: detail 2 of "The 37 implementation details of PPO" (Huang et al. 2022).
    """
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(input_dim: int, hidden: Sequence[int], activation: Activation = "tanh") -> nn.Sequential:
    """`[..., input_dim] -> [..., hidden[-1]]`: a linear layer and an activation per entry of `hidden`."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise((input_dim, *hidden)):
        layers += [orthogonal(nn.Linear(width_in, width_out), math.sqrt(2)), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
