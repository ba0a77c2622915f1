"""The batch that a collector hands to the rest."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from levelhead.tree import Tree


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments, time-major; every field is `[T, N, ...]`."""

    observation: Tensor
    """What the policy saw, as the environment gave it."""
    action: Tensor
    """As drawn from the policy, not clipped to any bounds."""
    parameters: Tree
    """Of the distribution that the action was drawn from."""
    log_prob: Tensor
    reward: Tensor
    """After `reward_scale`."""
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """bool: False for rows that hold no real transition, such as those of an environment that is just being reset."""
    value: Tensor
    """Of the observation, raw."""
    next_value: Tensor
    """Of the true successor, raw: where an episode was truncated, that of its final observation. Without meaning where
    it terminated, as nothing follows."""
    task: Tensor | None = None
    """int64: which task was played; None where there is one alone."""

    def masks(self, tasks: int) -> list[Tensor]:
        """The valid samples of each task, bool `[T, N]`."""
        return [self.valid] if self.task is None else [self.valid & (self.task == k) for k in range(tasks)]


@dataclass(frozen=True)
class Batch:
    """What the learner sees of a rollout: B = T x N rows in any order."""

    observation: Tensor
    """Prepared for the network, `[B, D]`."""
    action: Tensor
    log_prob: Tensor
    """Of the policy that acted, `[B]`."""
    advantage: Tensor
    """As it enters the loss, `[B]`."""
    target: Tensor
    """Normalised by the value head, `[B]`."""
    old_value: Tensor
    """The critic's value from before the update, normalised by today's statistics, `[B]`."""
    task: Tensor | None = None
    """int64 `[B]`: the output of the value head that each row belongs to; None where there is one alone."""

    def only(self, valid: Tensor) -> "Batch":
        """The same rows, with zeros in those that are not valid: whatever stood there, it cannot spread."""

        def keep(x: Tensor) -> Tensor:
            return torch.where(valid.view(-1, *(1,) * (x.ndim - 1)), x, 0)

        return self._map(keep)

    def take(self, index: Tensor) -> "Batch":
        """The rows that `index` names."""
        return self._map(lambda x: x.index_select(0, index))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            function(self.observation),
            function(self.action),
            function(self.log_prob),
            function(self.advantage),
            function(self.target),
            function(self.old_value),
            None if self.task is None else function(self.task),
        )
