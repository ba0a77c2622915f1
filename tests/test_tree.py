"""Trees of tensors: structure is kept, and a difference in structure is an error."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from levelhead.tree import tree_leaves, tree_map


class Pair(NamedTuple):
    left: object
    right: object


leaves = st.builds(torch.tensor, st.floats(-1e6, 1e6))
trees = st.recursive(
    leaves,
    lambda node: st.one_of(
        st.lists(node, max_size=3).map(tuple),
        st.builds(Pair, node, node),
        st.dictionaries(st.sampled_from("abc"), node, max_size=3),
    ),
    max_leaves=8,
)
law = settings(deadline=None, max_examples=50)


def structure(tree):
    if isinstance(tree, torch.Tensor):
        return "leaf"
    if isinstance(tree, dict):
        return {key: structure(child) for key, child in tree.items()}
    return type(tree), [structure(child) for child in tree]


@law
@given(trees)
def test_mapping_keeps_structure_and_reaches_every_leaf_in_order(tree):
    mapped = tree_map(lambda leaf: leaf + 1, tree)
    assert structure(mapped) == structure(tree)
    assert tree_leaves(mapped) == [leaf + 1 for leaf in tree_leaves(tree)]


@law
@given(trees)
def test_leaves_of_several_trees_meet_in_the_same_place(tree):
    doubled = tree_map(lambda leaf: 2 * leaf, tree)
    difference = tree_map(lambda a, b, c: c - a - b, tree, tree, doubled)
    assert not any(leaf.any() for leaf in tree_leaves(difference))


def test_keys_are_matched_by_name_not_by_order():
    a, b = torch.tensor(1.0), torch.tensor(2.0)
    assert tree_map(lambda x, y: x - y, {"a": a, "b": b}, {"b": b, "a": a}) == {"a": 0, "b": 0}


one, two = torch.ones(2), torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tree", "other"),
    [
        ((one, one), (one,)),
        ((one,), (one, one)),
        ({"a": one}, {"b": one}),
        ({"a": one}, {"a": one, "b": one}),
        ({"a": one}, (one,)),
        ({"a": one}, one),
        ((one, one), {"a": one, "b": one}),
        ((one, one), two),
        (one, (one, one)),
        (one, {"a": one}),
        ({"a": (one, one)}, {"a": (one,)}),
    ],
)
def test_trees_of_different_structure_are_refused(tree, other):
    with pytest.raises(ValueError, match="trees differ"):
        tree_map(lambda a, b: a, tree, other)
