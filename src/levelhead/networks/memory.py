"""Memory: layers whose output depends on what came before, within an episode."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from levelhead.tree import Tree, tree_map


class Memory(nn.Module, ABC):
    """`(x [T, N, D], state, reset [T, N]) -> (y [T, N, H], state)`: T steps of N sequences.

    Where `reset` is True, a new episode begins at that step: the state is zero before it. Acting is the case T = 1.
    """

    @abstractmethod
    def initial_state(self, n: int) -> Tree:
        """Zeros, leaves `[n, ...]`."""

    @abstractmethod
    def forward(self, x: Tensor, state: Tree, reset: Tensor) -> tuple[Tensor, Tree]:
        """All T steps, and the state after the last."""


class RecurrentMemory(Memory):
    """One layer of a recurrent network, whose kernel runs all the steps between two resets in one call.

    A batch costs as many calls as there are steps at which an episode begins in any of its columns.

    Args:
        cell: one layer, time first.
    """

    def __init__(self, cell: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.cell = cell
        for name, parameter in cell.named_parameters():
            if name.startswith("weight"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)

    def zeros(self, n: int) -> Tensor:
        """`[n, H]`."""
        return next(self.cell.parameters()).new_zeros(n, self.cell.hidden_size)

    def forward(self, x: Tensor, state: Tree, reset: Tensor) -> tuple[Tensor, Tree]:
        outputs: list[Tensor] = []
        for start, stop in _stretches(reset):
            keep = ~reset[start].unsqueeze(-1)
            before = tree_map(lambda s, keep=keep: torch.where(keep, s, 0.0).unsqueeze(0), state)
            y, after = self.cell(x[start:stop], before)
            state = tree_map(lambda s: s.squeeze(0), after)
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), state


class LSTM(RecurrentMemory):
    """Long short-term memory; its state is `(hidden, cell)`, each `[n, H]`.

    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """

    def __init__(self, input_dim: int, size: int) -> None:
        super().__init__(nn.LSTM(input_dim, size))

    def initial_state(self, n: int) -> Tree:
        return self.zeros(n), self.zeros(n)


class GRU(RecurrentMemory):
    """Gated recurrent unit; its state is `[n, H]`.

    Source: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder".
    """

    def __init__(self, input_dim: int, size: int) -> None:
        super().__init__(nn.GRU(input_dim, size))

    def initial_state(self, n: int) -> Tree:
        return self.zeros(n)


def _stretches(reset: Tensor) -> Iterator[tuple[int, int]]:
    """Starts and ends of the steps within which no episode begins but at the first."""
    begins = reset[1:].any(1).nonzero().flatten().tolist() if len(reset) > 1 else []
    return itertools.pairwise((0, *(b + 1 for b in begins), len(reset)))
