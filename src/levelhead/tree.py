"""Nested tensors: a leaf is a tensor, a node is a tuple (plain or named) or a dict of trees."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from torch import Tensor

Tree: TypeAlias = Any
"""A tensor, or tuples and dicts of trees. (Python's type checkers cannot follow named tuples in a recursive alias.)"""


def tree_map(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """A tree of the same structure whose leaves are `function(leaf, *leaves of the others in the same place)`.

    Raises:
        ValueError: the trees differ in structure.
    """
    if isinstance(tree, Tensor):
        if any(not isinstance(other, Tensor) for other in others):
            raise ValueError(f"trees differ: a tensor against {[type(other).__name__ for other in others]}")
        return function(tree, *others)
    if isinstance(tree, dict):
        node = cast("dict[str, Tree]", tree)
        if any(not isinstance(other, dict) or other.keys() != node.keys() for other in others):
            raise ValueError(f"trees differ: keys {sorted(node)} against {others}")
        return {key: tree_map(function, node[key], *(other[key] for other in others)) for key in node}
    children = cast("tuple[Tree, ...]", tree)
    if any(not isinstance(other, tuple) or len(other) != len(children) for other in others):
        raise ValueError(f"trees differ: {len(children)} children against {[type(other).__name__ for other in others]}")
    mapped = [tree_map(function, *nodes) for nodes in zip(children, *others, strict=True)]
    make = getattr(type(children), "_make", tuple)
    return make(mapped)


def tree_leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    leaves: list[Tensor] = []

    def keep(leaf: Tensor) -> Tensor:
        leaves.append(leaf)
        return leaf

    tree_map(keep, tree)
    return leaves


def restore(own: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Copies `state` into the tensors of `own`, in place.

    Raises:
        ValueError: names or shapes differ; `what` says whose state it is.
    """
    expected, given = ({name: tuple(x.shape) for name, x in tensors.items()} for tensors in (own, state))
    if expected != given:
        raise ValueError(f"the state of {what} is {given}; expected {expected}")
    for name, tensor in own.items():
        tensor.copy_(state[name])
