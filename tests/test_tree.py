"""Trees of tensors: structure is kept, and a difference in structure is an error."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from levelhead.tree import by_path, paths, restore, tree_leaves, tree_map


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


def test_leaves_may_be_anything_but_tuples_and_dicts():
    things = [1, "text", None, [1, 2], {3}, torch.Size]
    tree = {"a": things[0], "b": (things[1], Pair(things[2], things[3])), "c": (), "d": {"e": (things[4], things[5])}}
    assert tree_leaves(tree) == things
    assert tree_map(lambda x: x, tree) == tree
    assert tree_map(lambda x, y: (x, y), (1, Pair(2, 3)), ("a", Pair("b", "c"))) == ((1, "a"), Pair((2, "b"), (3, "c")))


def test_a_shape_is_a_leaf_of_no_tree():
    assert tree_leaves(torch.ones(2, 3).shape) == [2, 3]  # a torch.Size is a tuple


@pytest.mark.parametrize(
    ("tree", "other", "said"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, r"keys \['a', 'b'\] against"),
        ((1, 2), (1, 2, 3), r"2 children against \['tuple'\]"),
        ((1, 2), {"a": 1}, r"2 children against \['dict'\]"),
        (1, (1, 2), "a leaf against a tuple"),
        ({1: 1, "a": 2}, {1: 1}, "keys"),
    ],
)
def test_a_difference_says_what_differs(tree, other, said):
    with pytest.raises(ValueError, match=said):
        tree_map(lambda a, b: a, tree, other)


def test_the_order_of_keys_is_that_of_the_first_tree():
    assert list(tree_map(lambda a, b: a + b, {"b": 1, "a": 2}, {"a": 3, "b": 4})) == ["b", "a"]


# -- paths ---------------------------------------------------------------------------------------------------------


def test_paths_are_keys_and_positions_joined_by_slashes():
    tree = {"b": (1, Pair(2, {"c.d": 3})), "a": 4, "": 5}
    assert by_path(tree) == {"b/0": 1, "b/1/0": 2, "b/1/1/c.d": 3, "a": 4, "": 5}
    assert list(by_path(tree)) == ["b/0", "b/1/0", "b/1/1/c.d", "a", ""]
    assert paths(tree) == {"b": ("b/0", Pair("b/1/0", {"c.d": "b/1/1/c.d"})), "a": "a", "": ""}
    assert isinstance(paths(tree)["b"][1], Pair)
    assert by_path(7) == {"": 7}
    assert paths(7) == ""
    assert by_path(()) == by_path({}) == {}


@law
@given(trees)
def test_there_is_a_path_for_every_leaf_and_no_two_are_alike(tree):
    assert structure(tree_map(lambda _: torch.zeros(()), paths(tree))) == structure(tree)
    assert list(by_path(tree)) == tree_leaves(paths(tree))
    assert len(by_path(tree)) == len(tree_leaves(tree))


@pytest.mark.parametrize("tree", [{"a/b": 1}, {"a": ({"/": 1},)}])
def test_a_key_with_a_slash_is_refused(tree):
    for function in (by_path, paths):
        with pytest.raises(ValueError, match="must not hold a slash"):
            function(tree)


# -- states --------------------------------------------------------------------------------------------------------


def test_a_state_is_written_in_place():
    own = {"a": torch.zeros(2), "b": torch.zeros(())}
    kept = own["a"]
    restore(own, {"b": torch.tensor(3.0), "a": torch.ones(2)}, "it")
    assert kept.tolist() == [1.0, 1.0]
    assert own["b"] == 3


@pytest.mark.parametrize("state", [{}, {"a": torch.zeros(3)}, {"a": torch.zeros(2), "b": torch.zeros(1)}])
def test_a_state_of_other_names_or_shapes_is_refused_before_anything_is_written(state):
    own = {"a": torch.ones(2)}
    with pytest.raises(ValueError, match="the state of Adam is"):
        restore(own, state, "Adam")
    assert own["a"].tolist() == [1.0, 1.0]
