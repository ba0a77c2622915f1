"""One choice out of n, and several at once."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from levelhead.actions.head import ActionHead, Evaluation, require_mask
from levelhead.layers import OneHot, orthogonal
from levelhead.tree import Tree


class CategoricalHead(ActionHead):
    """A categorical distribution over n actions; its parameters are the logits `[L, n]`, very low where masked.

    Masks are bool `[L, n]`. An illegal action has probability 0 exactly and a log-probability that is very low but
    finite, so that nothing that follows from it, gradients included, is ever NaN.

    Args:
        input_dim: number of features.
        actions: n, the number of choices.
        start: the environment's name of the first choice.
    """

    def __init__(self, input_dim: int, actions: int, start: int = 0) -> None:
        super().__init__()
        # A nearly uniform start: exploration is not biased by the initialisation.
        self.linear = orthogonal(nn.Linear(input_dim, actions), gain=0.01)
        self.start = start
        self.code_dim = actions
        self.one_hot = OneHot([actions])

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard Gumbel, `[*shape, n]`: the argmax of logits + noise is a sample."""
        return gumbel((*shape, self.linear.out_features), generator)

    def sample(self, features: Tensor, noise: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = without(self.linear(features), mask)
        return (logits + noise).argmax(-1), logits

    def mode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return without(self.linear(features), mask).argmax(-1)

    def evaluate(self, features: Tensor, action: Tensor, mask: Tensor | None = None) -> Evaluation:
        logits = without(self.linear(features), mask)
        log_probs = logits.log_softmax(-1)
        log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return Evaluation(log_prob, -(log_probs.exp() * log_probs).sum(-1), logits)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return parameters.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        p, q = old.log_softmax(-1), new.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    def to_environment(self, action: Tensor) -> Tensor:
        return action + self.start if self.start else action

    def code(self, action: Tensor) -> Tensor:
        return self.one_hot(action.unsqueeze(-1)).to(self.linear.weight.dtype)

    def legal(self, mask: Tree) -> Tensor:
        return require_mask(mask, self.code_dim).any(-1)


class MultiCategoricalHead(ActionHead):
    """D independent categorical distributions; their logits lie side by side, `[L, sum(actions)]`.

    Masks are bool and of the logits' shape. Actions are int64 `[L, D]`.

    Args:
        input_dim: number of features.
        actions: the number of choices of each dimension.
        start: the environment's name of the first choice of each dimension; 0 where not given.
        shape: of an action of the environment; `[D]` where not given.
    """

    start: Tensor
    index: Tensor
    exists: Tensor

    def __init__(
        self,
        input_dim: int,
        actions: Sequence[int],
        start: Sequence[int] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.actions = tuple(actions)
        self.shape = (len(self.actions),) if shape is None else shape
        if prod(self.shape) != len(self.actions):
            raise ValueError(f"shape {self.shape} does not hold {len(self.actions)} choices")
        self.code_dim = sum(self.actions)
        self.linear = orthogonal(nn.Linear(input_dim, self.code_dim), gain=0.01)
        counts = torch.tensor(self.actions)
        choice = torch.arange(max(self.actions))
        exists = choice < counts.unsqueeze(1)
        # Which logit is choice j of dimension d; where there is no such choice, any.
        first = counts.cumsum(0) - counts
        index = torch.where(exists, first.unsqueeze(1) + choice, 0)
        self.register_buffer("start", torch.tensor(start or [0] * len(counts)), persistent=False)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("exists", exists, persistent=False)
        self.one_hot = OneHot(self.actions)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard Gumbel, `[*shape, D, max(actions)]`."""
        return gumbel((*shape, *self.exists.shape), generator)

    def _table(self, logits: Tensor) -> Tensor:
        """`[L, sum(actions)] -> [L, D, max(actions)]`, a row per dimension, filled up with what is never chosen."""
        return without(logits[..., self.index], self.exists)

    def sample(self, features: Tensor, noise: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = without(self.linear(features), mask)
        return (self._table(logits) + noise).argmax(-1), logits

    def mode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._table(without(self.linear(features), mask)).argmax(-1)

    def evaluate(self, features: Tensor, action: Tensor, mask: Tensor | None = None) -> Evaluation:
        logits = without(self.linear(features), mask)
        log_probs = self._table(logits).log_softmax(-1)
        log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)
        return Evaluation(log_prob, -(log_probs.exp() * log_probs).sum((-2, -1)), logits)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        log_probs = self._table(parameters).log_softmax(-1)
        return log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        p, q = self._table(old).log_softmax(-1), self._table(new).log_softmax(-1)
        return (p.exp() * (p - q)).sum((-2, -1))

    def to_environment(self, action: Tensor) -> Tensor:
        return (action + self.start).reshape(*action.shape[:-1], *self.shape)

    def code(self, action: Tensor) -> Tensor:
        return self.one_hot(action).to(self.linear.weight.dtype)

    def legal(self, mask: Tree) -> Tensor:
        parts = require_mask(mask, self.code_dim).split(self.actions, -1)
        return torch.stack([part.any(-1) for part in parts]).all(0)


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, always finite: nothing that an illegal choice could win with."""
    exponential = torch.empty(*shape, device=generator.device).exponential_(generator=generator)
    return -exponential.clamp_(min=torch.finfo(exponential.dtype).tiny).log_()


def without(logits: Tensor, legal: Tensor | None) -> Tensor:
    """`logits`, very low where not legal: there the softmax is 0, and no gradient passes. None: all are legal.

    So low that no logit of a legal choice comes near, and so high that the sum over many dimensions is still finite.
    """
    return logits if legal is None else torch.where(legal, logits, torch.finfo(logits.dtype).min / 128)
