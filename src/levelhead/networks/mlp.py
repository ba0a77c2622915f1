"""Multi-layer perceptrons."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from levelhead.initialization import orthogonal

Activation = Literal["tanh", "relu", "elu", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def mlp(input_dim: int, hidden: Sequence[int], activation: Activation = "tanh") -> nn.Sequential:
    """`[..., input_dim] -> [..., hidden[-1]]`: a linear layer and an activation per entry of `hidden`."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise((input_dim, *hidden)):
        layers += [orthogonal(nn.Linear(width_in, width_out), math.sqrt(2)), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
