"""Nested values: a node is a tuple (plain or named) or a dict of trees, anything else is a leaf, tensors mostly."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from torch import Tensor

Tree: TypeAlias = Any
"""A leaf, or tuples and dicts of trees. (Python's type checkers cannot follow named tuples in a recursive alias.)"""


_NODES = (dict, tuple)  # quicker to ask for than `dict | tuple`


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """A tree of the same structure whose leaves are `function(leaf, *leaves of the others in the same place)`.

    Raises:
        ValueError: the trees differ in structure.
    """
    # Leaves first: stepping loops are full of lone tensors.
    if not isinstance(tree, _NODES):
        for other in others:
            if isinstance(other, _NODES):
                raise ValueError(f"trees differ: a leaf against a {type(other).__name__}")
        return function(tree, *others)
    if isinstance(tree, dict):
        node = cast("dict[str, Tree]", tree)
        if any(not isinstance(other, dict) or other.keys() != node.keys() for other in others):
            raise ValueError(f"trees differ: keys {list(node)} against {others}")
        return {key: tree_map(function, node[key], *(other[key] for other in others)) for key in node}
    children = cast("tuple[Tree, ...]", tree)
    if any(not isinstance(other, tuple) or len(other) != len(children) for other in others):
        raise ValueError(f"trees differ: {len(children)} children against {[type(other).__name__ for other in others]}")
    mapped = [tree_map(function, *nodes) for nodes in zip(children, *others, strict=True)]
    make = getattr(type(children), "_make", tuple)
    return make(mapped)


def tree_leaves(tree: Tree) -> list[Any]:
    """The leaves of a tree, in order."""
    leaves: list[Any] = []
    tree_map(leaves.append, tree)
    return leaves


def by_path(tree: Tree) -> dict[str, Any]:
    """The leaves by their path: keys and positions on the way joined by `/`; a lone leaf's path is empty.

    Raises:
        ValueError: a key holds a `/`.
    """
    return dict(zip(tree_leaves(paths(tree)), tree_leaves(tree), strict=True))


def paths(tree: Tree, prefix: str = "") -> Tree:
    """A tree of the same structure whose leaves are their own paths, as in `by_path`."""
    if isinstance(tree, dict):
        node = cast("dict[Any, Tree]", tree)
        if any(not isinstance(key, str) or "/" in key for key in node):
            raise ValueError(f"keys must be text and must not hold a slash: {list(node)}")
        return {key: paths(child, f"{prefix}/{key}" if prefix else key) for key, child in node.items()}
    if isinstance(tree, tuple):
        children = cast("tuple[Tree, ...]", tree)
        make = getattr(type(children), "_make", tuple)
        return make([paths(child, f"{prefix}/{i}" if prefix else str(i)) for i, child in enumerate(children)])
    return prefix


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
