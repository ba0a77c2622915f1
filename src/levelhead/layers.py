"""Linear and convolutional layers as they start out, stacks of them, and one-hot codes."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

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


class OneHot(nn.Module):
    """Whole numbers `[L, D]`, each from 0 to below its count, to one-hot codes side by side, bool `[L, sum(counts)]`.

    Unlike torch's function it does not read the numbers on the host.
    """

    dimension: Tensor
    choice: Tensor

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        dimension = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        choice = torch.cat([torch.arange(count) for count in counts])
        self.register_buffer("dimension", dimension, persistent=False)
        self.register_buffer("choice", choice, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        return index[..., self.dimension] == self.choice
