"""The batch that a collector hands to the rest, and its arrangement for learning."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from levelhead.networks import State
from levelhead.tree import Tree, tree_map


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments, time-major; every field is `[T, N, ...]` where nothing else is said."""

    observation: Tree
    """What the policy saw, as the environment gave it."""
    action: Tree
    """As drawn from the policy, not clipped to any bounds."""
    action_mask: Tree | None
    """bool: what was legal; None where everything was."""
    parameters: Tree
    """Of the distribution that the action was drawn from."""
    log_prob: Tensor
    reward: Tensor
    """After `reward_scale`."""
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """bool: False for rows that hold no real transition, such as those of an environment that is just being reset."""
    begins: Tensor
    """bool: whether the observation is the first of an episode."""
    state: State
    """What the network remembered before the first row of each chunk, or of its burn-in, leaves `[chunks, N, ...]`."""
    value: Tensor
    """Of the observation, raw."""
    next_value: Tensor
    """Of the true successor, raw: where an episode was truncated, that of its final observation. Without meaning where
    it terminated, as nothing follows."""
    last_features: Tensor
    """What the value head read in the last row, `[N, D]`."""
    task: Tensor | None = None
    """int64: which task was played; None where there is one alone."""
    ratio: Tensor | None = None
    """Probability of the action by now over that when it was drawn; None while the policy is the one that acted."""

    def clone(self) -> "Rollout":
        """One that nobody writes over."""
        copies: dict[str, Any] = {
            part.name: tree_map(torch.clone, x) for part in fields(self) if (x := getattr(self, part.name)) is not None
        }
        return replace(self, **copies)

    def masks(self, tasks: int) -> list[Tensor]:
        """The valid samples of each task, bool `[T, N]`."""
        return by_task(self.valid, self.task, tasks)


@dataclass(frozen=True)
class BurnIn:
    """Steps before each column that bring its state up to date with today's network, `[B, C, ...]`."""

    observation: Tree
    """As networks read it."""
    begins: Tensor
    """bool, whether an episode begins."""
    skipped: Tensor
    """bool `[C]`: columns at the rollout's beginning, whose state is that before their own first step."""

    def take(self, index: Tensor) -> "BurnIn":
        """The columns that `index` names; observations in rows, `[B * len(index), ...]`."""
        rows = tree_map(lambda x: x.index_select(1, index).flatten(0, 1), self.observation)
        return BurnIn(rows, self.begins.index_select(1, index), self.skipped.index_select(0, index))


@dataclass(frozen=True)
class Batch:
    """What the learner sees of a rollout: C columns of S steps in order, `[S, C, ...]`, or after `take` rows of these.

    Without memory the order of steps is of no account, and every row is a column of its own.
    """

    observation: Tree
    """As networks read it."""
    action: Tree
    action_mask: Tree | None
    log_prob: Tensor
    """Of the policy that acted."""
    advantage: Tensor
    """As it enters the loss."""
    target: Tensor
    """Normalised by the value head."""
    old_value: Tensor
    """The critic's value from before the update, normalised by today's statistics."""
    begins: Tensor
    """bool `[S, C]`, whether an episode begins."""
    state: State
    """Before the first step, burn-in included, leaves `[C, ...]`."""
    parameters: Tree | None = None
    """Of the distribution that acted; None where nothing asks how far the policy has moved from it."""
    task: Tensor | None = None
    """int64: the output of the value head that each row belongs to; None where there is one alone."""
    burn_in: BurnIn | None = None

    def only(self, valid: Tensor) -> "Batch":
        """The same rows, with zeros in those that are not valid: whatever stood there, it cannot spread.

        Args:
            valid: bool `[S, C]`.
        """

        def filled(x: Tensor, filler: float) -> Tensor:
            rows = valid if x.ndim == valid.ndim else valid.view(*valid.shape, *(1,) * (x.ndim - 2))
            return torch.where(rows, x, bool(filler) if x.dtype == torch.bool else filler)

        # A mask without any legal choice would be worse than one in which all are.
        kept = self._map(lambda x: filled(x, x.dtype == torch.bool), self.begins, self.state, self.burn_in)
        # Every head has a distribution whose parameters are all 1; not so with 0.
        parameters = None if self.parameters is None else tree_map(lambda x: filled(x, 1), self.parameters)
        return replace(kept, parameters=parameters)

    def take(self, index: Tensor) -> "Batch":
        """The columns that `index` names, `[S * len(index), ...]`; `begins` stays `[S, len(index)]`."""
        state = tree_map(lambda x: x.index_select(0, index), self.state)
        burn_in = None if self.burn_in is None else self.burn_in.take(index)
        begins = self.begins.index_select(1, index)
        return self._map(lambda x: x.index_select(1, index).flatten(0, 1), begins, state, burn_in)

    def rows(self) -> "Batch":
        """All columns, in order, as `take` gives them."""
        everything = torch.arange(self.begins.shape[1], device=self.begins.device)
        burn_in = None if self.burn_in is None else self.burn_in.take(everything)
        return self._map(lambda x: x.flatten(0, 1), self.begins, self.state, burn_in)

    def _map(
        self, function: Callable[[Tensor], Tensor], begins: Tensor, state: State, burn_in: BurnIn | None
    ) -> "Batch":
        return Batch(
            observation=tree_map(function, self.observation),
            action=tree_map(function, self.action),
            action_mask=None if self.action_mask is None else tree_map(function, self.action_mask),
            log_prob=function(self.log_prob),
            advantage=function(self.advantage),
            target=function(self.target),
            old_value=function(self.old_value),
            begins=begins,
            state=state,
            parameters=None if self.parameters is None else tree_map(function, self.parameters),
            task=None if self.task is None else function(self.task),
            burn_in=burn_in,
        )


def by_task(valid: Tensor, task: Tensor | None, tasks: int) -> list[Tensor]:
    """The valid rows of each task, bool in `valid`'s shape."""
    return [valid] if task is None else [valid & (task == k) for k in range(tasks)]


def before_chunks(x: Tensor, length: int, steps: int) -> Tensor:
    """The rows before each chunk, `[T, N, ...] -> [steps, T / length * N, ...]`; before the first, any."""
    starts = torch.arange(0, len(x), length, device=x.device)
    rows = (starts - steps).clamp(min=0) + torch.arange(steps, device=x.device).unsqueeze(1)
    return x[rows].flatten(1, 2)


def before_columns(observation: Tree, begins: Tensor, length: int, steps: int) -> BurnIn | None:
    """So many steps before each column of the given length; None where there are to be none.

    Args:
        observation: `[T, N, ...]`, as networks read it.
        begins: `[T, N]` bool.
        length: of a column.
        steps: of burn-in.
    """
    if not steps:
        return None
    columns = begins.numel() // length
    return BurnIn(
        tree_map(lambda x: before_chunks(x, length, steps), observation),
        before_chunks(begins, length, steps),
        skipped=torch.arange(columns, device=begins.device) < begins.shape[1],
    )


def chunked(x: Tensor, length: int) -> Tensor:
    """`[T, N, ...] -> [length, T / length * N, ...]`: columns of so many steps, a column's chunks N apart."""
    if length == 1:
        return x.reshape(1, -1, *x.shape[2:])
    return x.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2)


def unchunked(x: Tensor, environments: int) -> Tensor:
    """The inverse of `chunked`, `[length, T / length * N, ...] -> [T, N, ...]`."""
    return x.unflatten(1, (-1, environments)).transpose(0, 1).flatten(0, 1)
