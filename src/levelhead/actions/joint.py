"""Several heads as one: independent, seeing each other's choices, or gated by them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from levelhead.actions.categorical import CategoricalHead
from levelhead.actions.head import ActionHead, Evaluation
from levelhead.errors import ConfigError
from levelhead.layers import orthogonal
from levelhead.tree import Tree, by_path, tree_map


@dataclass(frozen=True)
class Gate:
    """A condition on an earlier choice."""

    head: str
    """Path of the `CategoricalHead` that chooses."""
    values: tuple[int, ...]
    """Choices that open the gate, as the environment counts them."""


@dataclass(frozen=True)
class Part:
    """One of the heads of a joint head, and what it depends on."""

    make: Callable[[int], ActionHead]
    """Makes the head, for so many features."""
    sees: tuple[str, ...] = ()
    """Paths of earlier heads whose choices it reads, embedded, beside the features."""
    gate: Gate | None = None
    """When the head's choice matters at all; None for always."""
    mask: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    """What earlier choices, by path and counted from 0, leave legal: bool of the shape that the head's masks have. A
    choice behind a shut gate reads 0."""

    @property
    def needs(self) -> set[str]:
        """The parts that must come before it."""
        return {*self.sees, *((self.gate.head,) if self.gate else ())}

    @property
    def depends(self) -> bool:
        """Whether the distribution hangs on what earlier heads happened to choose."""
        return bool(self.sees) or self.mask is not None


class _Slot(nn.Module):
    """The place of one head: what it reads of others' choices, and which of them open its gate."""

    opening: Tensor | None

    def __init__(self, head: ActionHead, embeddings: Sequence[nn.Module], opening: Tensor | None) -> None:
        super().__init__()
        self.head = head
        self.embeddings = nn.ModuleList(embeddings)
        self.register_buffer("opening", opening, persistent=False)


class JointHead(ActionHead):
    """Heads that choose one after another; an action is a tree of their choices, in the environment's own structure.

    The log-probability is the sum over the heads whose gates are open. So are entropy and KL, where they have a closed
    form: a gated head counts with the probability of its gate. For a head that sees earlier choices or has a mask made
    of them there is none; it enters by the chain rule, as its entropy or KL given the earlier choices of the action at
    hand. That is an unbiased estimate where the action was drawn from the distribution that the expectation is under:
    the old one of KL(old || new); of the entropy, the present one, which is not the one that collected the rollout.

    Masks from the environment are a dict by path, of those heads that have any.

    Args:
        input_dim: number of features.
        parts: by path, in the order in which they choose.
        structure: of the action, a tree whose leaves are the paths; a flat dict by path where not given.
        embedding_dim: size of the embedding of each choice that a head sees.

    Raises:
        ConfigError: structure and parts disagree, or a part depends on one that doesn't come before it.
    """

    def __init__(
        self, input_dim: int, parts: Mapping[str, Part], structure: Tree | None = None, embedding_dim: int = 32
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.names = tuple(parts)
        self.structure = {path: path for path in parts} if structure is None else structure
        if by_path(self.structure) != {path: path for path in parts}:
            raise ConfigError(f"the structure of the action is {self.structure}; heads were declared for {list(parts)}")
        self.slots = nn.ModuleList()
        for path, part in parts.items():
            self.slots.append(self._slot(path, part, input_dim, embedding_dim))
        self.exact = not any(part.depends for part in parts.values())
        self.entropy_learned = any(self._head(path).entropy_learned for path in parts)
        self.code_dim = sum(self._head(path).code_dim for path in parts)

    def _slot(self, path: str, part: Part, input_dim: int, embedding_dim: int) -> "_Slot":
        before = self.names[: len(self.slots)]
        for other in sorted(part.needs):
            if other not in before:
                listed = ", ".join(map(repr, before)) or "none"
                raise ConfigError(f"the head of {path!r} depends on {other!r}; heads before it: {listed}")
        head = part.make(input_dim + embedding_dim * len(part.sees))
        if isinstance(head, JointHead):
            raise ConfigError(f"the head of {path!r} is joint itself: declare its parts instead")
        embeddings = [
            orthogonal(nn.Linear(self._head(seen).code_dim, embedding_dim, bias=False), gain=1.0) for seen in part.sees
        ]
        return _Slot(head, embeddings, None if part.gate is None else self._opening(path, part.gate))

    def _opening(self, path: str, gate: Gate) -> Tensor:
        """bool `[n]`: which choices open a gate."""
        chooser = self._head(gate.head)
        if not isinstance(chooser, CategoricalHead):
            raise ConfigError(f"{path!r} is gated by {gate.head!r}, which is no single choice of several")
        choices = range(chooser.start, chooser.start + chooser.code_dim)
        if not gate.values or not set(gate.values) <= set(choices):
            named = f"{choices[0]} to {choices[-1]}"
            raise ConfigError(f"{path!r} opens for values {gate.values} of {gate.head!r}, which has {named}")
        return torch.tensor([choice in gate.values for choice in choices])

    def _at(self, path: str) -> "_Slot":
        slot = self.slots[self.names.index(path)]
        assert isinstance(slot, _Slot)
        return slot

    def _head(self, path: str) -> ActionHead:
        return self._at(path).head

    # -- one head after another ----------------------------------------------------------------------------------

    def _inputs(self, path: str, features: Tensor, choices: Mapping[str, Tensor]) -> Tensor:
        """Features, and embeddings of the choices that a head sees; of one whose gate was shut, zeros."""
        embedded: list[Tensor] = []
        for other, embedding in zip(self.parts[path].sees, self._at(path).embeddings, strict=True):
            x = embedding(self._head(other).code(choices[other]))
            gate = self._chosen(other, choices)
            embedded.append(x if gate is None else torch.where(gate.unsqueeze(-1), x, 0.0))
        return torch.cat((features, *embedded), -1) if embedded else features

    def _mask(self, path: str, mask: Tree | None, choices: Mapping[str, Tensor]) -> Tensor | None:
        """What the environment and the earlier choices both leave legal."""
        given: Tensor | None = None if mask is None else mask.get(path)
        own = self.parts[path].mask
        if own is None:
            return given
        computed = own({other: self._unless_shut(other, x, choices) for other, x in choices.items()})
        return computed if given is None else computed & given

    def _unless_shut(self, path: str, choice: Tensor, choices: Mapping[str, Tensor]) -> Tensor:
        gate = self._chosen(path, choices)
        if gate is None:
            return choice
        return torch.where(gate.view(*gate.shape, *(1,) * (choice.ndim - gate.ndim)), choice, 0)

    def _require_legal(self, path: str, mask: Tensor | None, choices: Mapping[str, Tensor]) -> None:
        """Refuses earlier choices that leave nothing to a head whose gate they open."""
        if self.parts[path].mask is None:
            return
        stuck = ~self._head(path).legal(mask)
        chosen = self._chosen(path, choices)
        if chosen is not None:
            stuck &= chosen
        if stuck.any():
            rows = stuck.nonzero()[:, -1].tolist()
            raise ConfigError(f"the mask of {path!r} leaves no legal choice in environments {rows}")

    def _chosen(self, path: str, choices: Mapping[str, Tensor]) -> Tensor | None:
        """bool `[L]`: whether the choices at hand open a head's gate; None for always."""
        gate, opening = self.parts[path].gate, self._at(path).opening
        if gate is None or opening is None:
            return None
        is_open, outer = opening[choices[gate.head]], self._chosen(gate.head, choices)
        return is_open if outer is None else is_open & outer

    def _weight(self, path: str, choices: Mapping[str, Tensor], parameters: Mapping[str, Tree]) -> Tensor | None:
        """`[L]`: what a head's entropy and divergence count; None for 1.

        The probability of an open gate; where the head hangs on the choices at hand, 1 or 0 as they say.
        """
        part, opening = self.parts[path], self._at(path).opening
        if part.gate is None or opening is None:
            return None
        logits = parameters[part.gate.head]
        if part.depends:
            chosen = self._chosen(path, choices)
            assert chosen is not None
            return chosen.to(logits.dtype)
        probability = logits.softmax(-1) @ opening.to(logits.dtype)
        outer = self._weight(part.gate.head, choices, parameters)
        return probability if outer is None else probability * outer

    # -- the protocol --------------------------------------------------------------------------------------------

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tree:
        return {path: self._head(path).noise(shape, generator) for path in self.parts}

    def sample(self, features: Tensor, noise: Tree, mask: Tree | None = None) -> tuple[Tree, Tree]:
        choices: dict[str, Tensor] = {}
        parameters: dict[str, Tree] = {}
        for path in self.parts:
            x, legal = self._inputs(path, features, choices), self._mask(path, mask, choices)
            self._require_legal(path, legal, choices)
            choices[path], parameters[path] = self._head(path).sample(x, noise[path], legal)
        return self._packed(choices), self._weighted(choices, parameters)

    def mode(self, features: Tensor, mask: Tree | None = None) -> Tree:
        """The most probable choice of each head, given those before it."""
        choices: dict[str, Tensor] = {}
        for path in self.parts:
            x, legal = self._inputs(path, features, choices), self._mask(path, mask, choices)
            self._require_legal(path, legal, choices)
            choices[path] = self._head(path).mode(x, legal)
        return self._packed(choices)

    def evaluate(self, features: Tensor, action: Tree, mask: Tree | None = None) -> Evaluation:
        choices = by_path(action)
        parts: dict[str, Evaluation] = {}
        for path in self.parts:
            x, legal = self._inputs(path, features, choices), self._mask(path, mask, choices)
            parts[path] = self._head(path).evaluate(x, choices[path], legal)
        weighted = self._weighted(choices, {path: part.parameters for path, part in parts.items()})
        log_prob = self._over_open({path: part.log_prob for path, part in parts.items()}, choices)
        entropies = _weighed({path: part.entropy for path, part in parts.items()}, weighted["weights"])
        return Evaluation(log_prob, torch.stack(entropies).sum(0), weighted, entropies)

    def log_prob(self, parameters: Tree, action: Tree) -> Tensor:
        choices = by_path(action)
        own = parameters["heads"]
        return self._over_open({p: self._head(p).log_prob(own[p], choices[p]) for p in self.parts}, choices)

    def kl(self, old: Tree, new: Tree) -> Tensor:
        """KL(old || new), `[L]`; exact where `exact`, else given the choices of the action that `old` was made with."""
        before, after = old["heads"], new["heads"]
        parts = _weighed({p: self._head(p).kl(before[p], after[p]) for p in self.parts}, old["weights"])
        return torch.stack(parts).sum(0)

    def to_environment(self, action: Tree) -> Tree:
        return self._packed({path: self._head(path).to_environment(x) for path, x in by_path(action).items()})

    def code(self, action: Tree) -> Tensor:
        choices = by_path(action)
        return torch.cat([self._head(path).code(choices[path]) for path in self.parts], -1)

    def legal(self, mask: Tree) -> Tensor:
        if not isinstance(mask, dict) or not mask or not mask.keys() <= self.parts.keys():
            given = sorted(mask) if isinstance(mask, dict) else type(mask).__name__
            raise ConfigError(f"action masks are {given}; expected a dict with some of {list(self.parts)}")
        return torch.stack([self._legal(path, mask) for path in mask]).all(0)

    def _legal(self, path: str, mask: Mapping[str, Tensor]) -> Tensor:
        """Whether a head has something to choose, or will not be asked, as its gate has to stay shut."""
        legal = self._head(path).legal(mask[path])
        gate, opening = self.parts[path].gate, self._at(path).opening
        while gate is not None and opening is not None:
            if gate.head in mask:
                legal = legal | ~(mask[gate.head] & opening.to(mask[gate.head].device)).any(-1)
            gate, opening = self.parts[gate.head].gate, self._at(gate.head).opening
        return legal

    def advance(self, progress: float) -> None:
        for path in self.parts:
            self._head(path).advance(progress)

    def _packed(self, leaves: Mapping[str, Tensor]) -> Tree:
        return tree_map(leaves.__getitem__, self.structure)

    def _weighted(self, choices: Mapping[str, Tensor], parameters: dict[str, Tree]) -> Tree:
        weights = {path: self._weight(path, choices, parameters) for path in self.parts}
        return {"heads": parameters, "weights": {path: w for path, w in weights.items() if w is not None}}

    def _over_open(self, values: Mapping[str, Tensor], choices: Mapping[str, Tensor]) -> Tensor:
        """The sum over the heads whose gates the choices at hand open."""
        terms: list[Tensor] = []
        for path, x in values.items():
            is_open = self._chosen(path, choices)
            terms.append(x if is_open is None else torch.where(is_open, x, 0.0))
        return torch.stack(terms).sum(0)


def in_order(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts, each after those that it depends on, and otherwise as they come.

    Raises:
        ConfigError: parts depend on each other in a circle, or on some that are not there.
    """
    ordered: dict[str, Part] = {}
    while len(ordered) < len(parts):
        ready = [path for path, part in parts.items() if path not in ordered and part.needs <= ordered.keys()]
        if not ready:
            stuck = {path: sorted(part.needs) for path, part in parts.items() if path not in ordered}
            raise ConfigError(f"parts of the action wait for others, {stuck}, in a circle or in vain: {list(parts)}")
        ordered[ready[0]] = parts[ready[0]]
    return ordered


def _weighed(values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(x * weights[path] if path in weights else x for path, x in values.items())
