"""Spaces: which ones a policy takes and by what name others are refused, their tensors, and as JSON and back."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import levelhead as lh
from levelhead.spaces import (
    action_tree,
    choices_of,
    from_json,
    observation_tree,
    same_shapes,
    space_tree,
    tensor_dtype,
    to_json,
    zeros,
)
from levelhead.tree import tree_leaves, tree_map

SUPPORTED = [
    spaces.Discrete(1),
    spaces.Discrete(7),
    spaces.Discrete(3, start=-4),
    spaces.Discrete(4, dtype=np.int32),
    spaces.Discrete(np.int64(5), start=np.int64(2)),
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(-np.inf, np.inf, (2, 3, 1)),
    spaces.Box(np.array([-np.inf, -1.5, 0.0]), np.array([0.0, np.inf, np.inf]), dtype=np.float64),
    spaces.Box(np.float32(-0.1), np.float32(np.pi), (2,), np.float32),
    spaces.Box(np.finfo(np.float64).min, np.finfo(np.float64).max, (2,), np.float64),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-5, 9, (2,), np.int64),
    spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    spaces.Box(0, np.array([2**53 + 1, 2**64 - 1], np.uint64), (2,), np.uint64),
    spaces.Box(0, 1, (2,), np.bool_),
    spaces.Box(-1.0, 1.0, ()),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, -1], [7, 0]]),
    spaces.MultiDiscrete([2, 3], dtype=np.int32),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.Tuple(()),
    spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(3, start=1))))]),
]


def identical(one, other):
    """Whether two spaces are the same to the last bit and in the order of their keys: Gymnasium's == is lenient."""
    if type(one) is not type(other) or one != other or one.dtype != other.dtype or one.shape != other.shape:
        return False
    match one:
        case spaces.Dict():
            return list(one.spaces) == list(other.spaces) and all(identical(one[k], other[k]) for k in one.spaces)
        case spaces.Tuple():
            return all(identical(a, b) for a, b in zip(one, other, strict=True))
        case spaces.Box():
            pairs = ((getattr(x, name) for x in (one, other)) for name in ("low", "high"))
            return all(np.array_equal(a, b) for a, b in pairs)
        case spaces.MultiDiscrete():
            return np.array_equal(one.nvec, other.nvec) and np.array_equal(one.start, other.start)
        case spaces.Discrete():
            return (one.n, one.start) == (other.n, other.start)
        case _:
            return True


@pytest.mark.parametrize("space", SUPPORTED, ids=str)
def test_a_space_comes_back_as_it_was(space):
    back = from_json(json.loads(json.dumps(to_json(space), allow_nan=False)))
    assert identical(back, space)
    if isinstance(space, spaces.Box):
        np.testing.assert_array_equal(back.bounded_below, space.bounded_below)
        np.testing.assert_array_equal(back.bounded_above, space.bounded_above)


shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int8, np.int32, np.int64]))
    shape = draw(shapes)
    numbers = st.floats(-60, 60, width=16) if np.issubdtype(dtype, np.floating) else st.integers(0, 60)
    low, span = (draw(arrays.arrays(np.float64, shape, elements=numbers)) for _ in range(2))
    low, high = low.astype(dtype), (low + np.abs(span)).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        low = np.where(draw(arrays.arrays(bool, shape)), -np.inf, low).astype(dtype)
        high = np.where(draw(arrays.arrays(bool, shape)), np.inf, high).astype(dtype)
    return spaces.Box(low, high, dtype=dtype)


@st.composite
def multidiscretes(draw):
    shape = draw(shapes.filter(len))
    counts, start = (draw(arrays.arrays(np.int64, shape, elements=st.integers(*r))) for r in ((1, 5), (-3, 3)))
    return spaces.MultiDiscrete(counts, start=start, dtype=draw(st.sampled_from([np.int64, np.int32])))


simple = st.one_of(
    boxes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-5, 5)),
    multidiscretes(),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), shapes.filter(len).map(list))),
)
names = st.text(st.characters(exclude_characters="/", codec="utf-8"), min_size=1, max_size=3)
nested = st.recursive(
    simple,
    lambda node: st.one_of(
        st.lists(node, max_size=3).map(spaces.Tuple),
        st.lists(st.tuples(names, node), max_size=3, unique_by=lambda pair: pair[0]).map(spaces.Dict),
    ),
    max_leaves=6,
)
law = settings(deadline=None, max_examples=60)


@law
@given(nested)
def test_any_nested_space_comes_back_as_it_was(space):
    assert identical(from_json(json.loads(json.dumps(to_json(space), allow_nan=False))), space)


def test_the_order_of_keys_is_kept():
    space = spaces.Dict([(key, spaces.Discrete(2)) for key in "zebra"])
    assert list(from_json(to_json(space)).spaces) == list("zebra")
    assert list(space_tree(space)) == list("zebra")


# -- as trees and tensors ------------------------------------------------------------------------------------------


@law
@given(nested)
def test_values_of_a_space_have_the_shapes_and_types_that_zeros_have(space):
    space.seed(0)
    filled = zeros(space, (2, 5), torch.device("cpu"))

    def check(part, zero, value):
        assert zero.shape == (2, 5, *np.shape(value))
        assert zero.dtype == tensor_dtype(part)
        assert not zero.any()
        zero[1, 3] = torch.from_numpy(np.asarray(value))  # holds what it should without loss
        assert np.array_equal(zero[1, 3].numpy().astype(part.dtype), value) or part.dtype == np.float64

    tree_map(check, space_tree(space), filled, space.sample())
    assert same_shapes(space, space)
    assert same_shapes(space, from_json(to_json(space)))


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(-1, 1, (1,), np.float16), torch.float32),
        (spaces.Box(-1, 1, (1,), np.float64), torch.float32),
        (spaces.Box(0, 255, (1,), np.uint8), torch.uint8),
        (spaces.Box(0, 1, (1,), np.bool_), torch.uint8),
        (spaces.Box(-5, 5, (1,), np.int8), torch.int64),
        (spaces.Box(0, 500, (1,), np.uint16), torch.int64),
        (spaces.Discrete(3), torch.int64),
        (spaces.MultiDiscrete([2, 3]), torch.int64),
        (spaces.MultiBinary(2), torch.int64),
    ],
    ids=str,
)
def test_real_numbers_are_float32_bytes_stay_bytes_and_the_rest_is_int64(space, dtype):
    assert tensor_dtype(space) == dtype


def test_the_choices_of_discrete_spaces_are_listed_with_their_first_ones():
    assert choices_of(spaces.Discrete(4, start=-2)) == ([4], [-2])
    space = spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, -1], [7, 0]])
    assert choices_of(space) == ([2, 3, 4, 5], [0, -1, 7, 0])
    assert choices_of(spaces.MultiBinary([2, 2])) == ([2] * 4, [0] * 4)
    assert all(type(x) is int for numbers in choices_of(space) for x in numbers)
    with pytest.raises(TypeError, match="Box"):
        choices_of(spaces.Box(-1, 1))


ONE, TWO = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ONE, spaces.Box(-9.0, 9.0, (1,)), True),
        (ONE, TWO, False),
        (spaces.Dict(a=ONE, b=TWO), spaces.Dict([("b", TWO), ("a", ONE)]), True),
        (spaces.Dict(a=ONE), spaces.Dict(b=ONE), False),
        (spaces.Dict(a=ONE), spaces.Dict(a=ONE, b=ONE), False),
        (spaces.Tuple((ONE, TWO)), spaces.Tuple((TWO, ONE)), False),
        (spaces.Tuple((ONE,)), ONE, False),
        (spaces.Tuple((ONE,)), spaces.Dict({"0": ONE}), False),
        (spaces.MultiBinary(2), spaces.MultiDiscrete([2, 2]), False),
        (spaces.MultiDiscrete([2, 2]), spaces.MultiDiscrete([2, 2, 2]), False),
        # Codes of another length, or of other values.
        (spaces.Discrete(3), spaces.Discrete(5), False),
        (spaces.Discrete(3), spaces.Discrete(3, start=1), False),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2]), False),
    ],
)
def test_spaces_are_compared_by_structure_shape_and_kind(one, other, same):
    assert same_shapes(one, other) == same
    assert same_shapes(other, one) == same


# -- what is refused -----------------------------------------------------------------------------------------------


class Anything(gym.Env):
    """An environment of any spaces; it is refused before it is stepped."""

    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


BOX, DISCRETE, TEXT = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2), spaces.Text(3)
WHOLE = spaces.Box(0, 5, (2,), np.int64)
NEITHER = {  # by the path of the part that is refused
    "text": (TEXT, ""),
    "text within": (spaces.Dict(b=DISCRETE, a=spaces.Tuple((BOX, TEXT))), "a/1"),
    "sequence": (spaces.Tuple((BOX, spaces.Sequence(BOX))), "1"),
    "graph": (spaces.Dict(g=spaces.Graph(BOX, None)), "g"),
    "one of several": (spaces.OneOf((BOX, DISCRETE)), ""),
    "no number": (spaces.Dict(a=BOX, z=spaces.Box(-1.0, 1.0, (2, 0))), "z"),
}


def leaf_at(space, path):
    for key in path.split("/") if path else ():
        space = space[int(key) if isinstance(space, spaces.Tuple) else key]
    return space


@pytest.mark.parametrize(("space", "path"), NEITHER.values(), ids=NEITHER)
@pytest.mark.parametrize(("what", "check"), [("observation", observation_tree), ("action", action_tree)])
def test_an_unsupported_part_is_refused_by_its_path(space, path, what, check):
    with pytest.raises(lh.ConfigError) as caught:
        check(space)
    said = str(caught.value)
    assert said.startswith(f"{what} space {path!r} is " if path else f"the {what} space is ")
    assert str(leaf_at(space, path)) in said
    assert "which holds no number" in said if path == "z" else "accepted: " in said


def test_whole_numbers_in_a_box_are_observed_and_no_actions():
    nested = spaces.Dict(a=spaces.Tuple((BOX, WHOLE)))
    assert tree_leaves(observation_tree(nested)) == [BOX, WHOLE]
    with pytest.raises(lh.ConfigError, match=r"action space 'a/1' is Box.*int64.*accepted: Box of real numbers"):
        action_tree(nested)
    with pytest.raises(lh.ConfigError, match=r"the action space is Box.*int64"):
        action_tree(WHOLE)


@pytest.mark.parametrize("space", [spaces.Tuple(()), spaces.Dict({}), spaces.Dict(a=spaces.Tuple(()))], ids=str)
@pytest.mark.parametrize("check", [observation_tree, action_tree])
def test_a_space_of_nothing_is_refused(space, check):
    with pytest.raises(lh.ConfigError, match="is empty"):
        check(space)


@pytest.mark.parametrize("keys", [["a/b"], [1], [("x", "y")], ["a", 1]])
@pytest.mark.parametrize("check", [observation_tree, action_tree])
def test_keys_that_paths_cannot_be_made_of_are_refused(keys, check):
    with pytest.raises(lh.ConfigError, match="keys"):
        check(spaces.Dict([(key, BOX) for key in keys]))


def test_accepted_spaces_come_as_trees_of_their_parts():
    space = spaces.Dict([("b", spaces.Tuple((BOX, spaces.MultiBinary(2)))), ("a", spaces.MultiDiscrete([2, 3]))])
    for tree in (observation_tree(space), action_tree(space)):
        assert tree == {"b": (BOX, spaces.MultiBinary(2)), "a": spaces.MultiDiscrete([2, 3])}
        assert list(tree) == ["b", "a"]
    assert action_tree(BOX) is BOX


@pytest.mark.parametrize(
    ("observation", "action", "said"),
    [
        (TEXT, DISCRETE, "the observation space is Text"),
        (spaces.Dict(a=BOX, b=TEXT), DISCRETE, "observation space 'b' is Text"),
        (BOX, WHOLE, "the action space is Box"),
        (BOX, spaces.Dict(a=DISCRETE, b=WHOLE), "action space 'b' is Box"),
        (BOX, spaces.Tuple((DISCRETE, TEXT)), "action space '1' is Text"),
    ],
    ids=str,
)
def test_an_unsupported_space_is_refused_by_name_before_anything_is_written(tiny, workdir, observation, action, said):
    with pytest.raises(lh.ConfigError) as caught:
        lh.train(lambda: Anything(observation, action), config=tiny())
    assert said in str(caught.value)
    assert "accepted: " in str(caught.value)
    assert list(workdir.iterdir()) == []


def test_a_space_that_json_cannot_hold_is_refused_by_name():
    with pytest.raises(lh.ConfigError, match="Text"):
        to_json(spaces.Dict(a=TEXT))


def test_json_of_another_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="'sphere'"):
        from_json({"kind": "sphere"})
