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


CALL = 25
"""What a call of a recurrent kernel costs beside its steps, in steps, forward and backward; measured."""


class RecurrentMemory(Memory):
    """One layer of a recurrent network, whose kernel runs all the steps between two resets in one call.

    Either the steps are gone through in order, with a call for each stretch in which no episode begins in any column.
    Or, where that is shorter, all episodes that end within the batch are laid side by side, padded to the longest, in
    one call, and what has begun by the end follows in order.

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
        state = _cleared(state, reset[0])
        if len(reset) == 1:
            return self._in_order(x, state, reset)
        episodes = Episodes(reset)
        if episodes.in_order <= episodes.side_by_side:
            return self._in_order(x, state, episodes.begins)
        columns, start = episodes.columns.to(x.device), episodes.start
        whole = x.flatten(0, 1)[episodes.rows.to(x.device)]
        before = _cleared(tree_map(lambda s: s[columns], state), episodes.inner.to(x.device))
        ended = self.cell(whole, tree_map(lambda s: s.unsqueeze(0), before))[0]
        # Columns that have not begun by then are gone through as well, and cleared where they begin.
        first = state if start == 0 else self.initial_state(x.shape[1])
        going_on, state = self._in_order(x[start:], first, episodes.tail)
        both = torch.cat((ended.flatten(0, 1), going_on.flatten(0, 1)))
        return both[episodes.places.to(x.device)], state

    def _in_order(self, x: Tensor, state: Tree, begins: Tensor) -> tuple[Tensor, Tree]:
        """Step by step, with `begins`, bool `[T, N]` on the CPU, saying where states are cleared, but for the first."""
        outputs: list[Tensor] = []
        for start, stop in _stretches(begins):
            if start:
                state = _cleared(state, begins[start].to(x.device))
            y, after = self.cell(x[start:stop], tree_map(lambda s: s.unsqueeze(0), state))
            state = tree_map(lambda s: s.squeeze(0), after)
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), state


class Episodes:
    """Where the episodes in a batch of sequences lie; read on the host.

    Args:
        reset: bool `[T, N]`, True where one begins.

    Attributes:
        begins: `reset` on the CPU.
        in_order, side_by_side: what either way of going through them costs, in steps.
        rows: `[L, P]`, those of the P episodes that end before the batch does, in `[T * N]`; padded with others.
        columns: `[P]`, the column of each.
        inner: bool `[P]`, whether it begins within the batch.
        start: the row at which the first of the episodes begins that don't end.
        tail: bool `[T - start, N]`, where these begin.
        places: `[T, N]`, where each step is, first among `rows`, then among the rest from `start` on.
    """

    def __init__(self, reset: Tensor) -> None:
        self.begins = reset.cpu()
        steps, n = self.begins.shape
        inside = self.begins.clone()
        inside[0] = False
        self.in_order = steps + CALL * (1 + int(inside.any(1).sum()))
        self.side_by_side = self.in_order
        step = torch.arange(steps).unsqueeze(1)
        # Column by column, each step's episode begins at the last reset so far.
        began = torch.where(inside, step, 0).cummax(0).values
        last = began[-1]
        if not bool(last.any()):
            return
        self.start = int(last.min())
        self.tail = (step == last)[self.start :]
        ends = torch.zeros_like(inside)
        ends[:-1] = inside[1:]
        column, end = ends.T.nonzero().T
        begin = began[end, column]
        length = end - begin + 1
        self.columns, self.inner = column, begin > 0
        longest = int(length.max())
        calls = 2 + int(self.tail[1:].any(1).sum())
        self.side_by_side = longest + steps - self.start + CALL * calls
        offset = torch.arange(longest).unsqueeze(1)
        self.rows = (begin + offset).clamp(max=steps - 1) * n + column
        places = (step - self.start) * n + torch.arange(n) + longest * len(column)
        for k, (c, b, e) in enumerate(zip(column.tolist(), begin.tolist(), end.tolist(), strict=True)):
            places[b : e + 1, c] = torch.arange(e - b + 1) * len(column) + k
        self.places = places


def _cleared(state: Tree, where: Tensor) -> Tree:
    """Zeros in the rows that `where`, bool `[N]`, names."""
    return tree_map(lambda s: torch.where(where.unsqueeze(-1), 0.0, s), state)


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


def _stretches(begins: Tensor) -> Iterator[tuple[int, int]]:
    """Starts and ends of the steps within which no episode begins but at the first."""
    inside = begins[1:].any(1).nonzero().flatten().tolist() if len(begins) > 1 else []
    return itertools.pairwise((0, *(b + 1 for b in inside), len(begins)))
