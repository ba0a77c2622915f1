"""Masks of legal actions, in every form in which Gymnasium's environments and its vector environments give them."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import VectorEnv

from levelhead.errors import ConfigError
from levelhead.masks import MASK_KEY, batch_of_one, read_mask, require_legal, split_mask, without_mask

THREE = Discrete(3, start=5)
PAIR = MultiDiscrete([2, 3])
BITS = MultiBinary(2)
BOX = Box(-1.0, 1.0, (2,))


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def objects(*items):
    """As Gymnasium keeps what it cannot stack: an array with anything in it."""
    array = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        array[i] = item
    return array


def infos(*masks):
    """As Gymnasium joins the infos of environments; None for one without a mask."""
    vector = VectorEnv()
    vector.num_envs = len(masks)
    joined = {}
    for i, mask in enumerate(masks):
        if mask is not None:
            joined = vector._add_info(joined, {MASK_KEY: mask}, i)
    return joined[MASK_KEY]


def i8(*numbers):
    return np.array(numbers, np.int8)


EXPECTED = bools([1, 0, 1], [0, 0, 1])
FLAT = bools([1, 0, 0, 1, 1], [1, 1, 1, 0, 0])
READABLE = {
    "bytes": (np.array([[1, 0, 1], [0, 0, 1]], np.int8), THREE, EXPECTED),
    "bools": (np.array([[1, 0, 1], [0, 0, 1]], bool), THREE, EXPECTED),
    "real numbers": (np.array([[0.5, 0.0, -1.0], [0.0, -0.0, 2.0]], np.float32), THREE, EXPECTED),
    "lists": ([[1, 0, 1], [0, 0, 1]], THREE, EXPECTED),
    "a tensor": (EXPECTED, THREE, EXPECTED),
    "an object array of arrays": (objects(i8(1, 0, 1), i8(0, 0, 1)), THREE, EXPECTED),
    "an object array of lists": (objects([1, 0, 1], [0, 0, 1]), THREE, EXPECTED),
    "infos": (infos(i8(1, 0, 1), i8(0, 0, 1)), THREE, EXPECTED),
    "infos of lists": (infos([1, 0, 1], [0, 0, 1]), THREE, EXPECTED),
    "several, side by side": (np.array([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]]), PAIR, FLAT),
    "several, as a tuple": ((np.array([[1, 0], [1, 1]]), np.array([[0, 1, 1], [1, 0, 0]])), PAIR, FLAT),
    "several, as an object array of tuples": (
        objects((i8(1, 0), i8(0, 1, 1)), (i8(1, 1), i8(1, 0, 0))),
        PAIR,
        FLAT,
    ),
    "several, as infos of tuples": (infos((i8(1, 0), i8(0, 1, 1)), (i8(1, 1), i8(1, 0, 0))), PAIR, FLAT),
    "several in a grid": (np.array([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]]), MultiDiscrete([[2], [3]]), FLAT),
    "bits, side by side": (np.array([[1, 0, 1, 1], [0, 1, 1, 0]]), BITS, bools([1, 0, 1, 1], [0, 1, 1, 0])),
    "bits, a row each": (np.array([[[1, 0], [1, 1]], [[0, 1], [1, 0]]]), BITS, bools([1, 0, 1, 1], [0, 1, 1, 0])),
    "bits, as a tuple": (
        (np.array([[1, 0], [0, 1]]), np.array([[1, 1], [1, 0]])),
        BITS,
        bools([1, 0, 1, 1], [0, 1, 1, 0]),
    ),
    "bits in a grid": (np.ones((2, 8)), MultiBinary([2, 2]), torch.ones(2, 8, dtype=torch.bool)),
}


@pytest.mark.parametrize(("raw", "space", "expected"), READABLE.values(), ids=READABLE)
def test_a_mask_is_one_bool_per_choice(raw, space, expected):
    mask = read_mask(raw, space, 2)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)


def test_a_mask_is_a_copy_of_what_it_was_read_from():
    raw = np.ones((2, 3), bool)
    mask = read_mask(raw, THREE, 2)
    raw[:] = False
    assert mask.all()


# -- nested --------------------------------------------------------------------------------------------------------

NESTED = Dict([("unit", THREE), ("order", Tuple((PAIR, BOX))), ("where", BOX)])
UNIT, ORDER = np.array([[1, 0, 1], [0, 0, 1]]), np.array([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]])
WHOLE = {"unit": EXPECTED, "order/0": FLAT}
DUO = Tuple((THREE, Discrete(2)))
DUO_MASKS = {"0": EXPECTED, "1": bools([1, 0], [1, 1])}
TREES = {
    "all": ({"unit": UNIT, "order": (ORDER, None), "where": None}, NESTED, WHOLE),
    "parts missing": ({"unit": UNIT}, NESTED, {"unit": EXPECTED}),
    "parts none": ({"unit": None, "order": (ORDER, None)}, NESTED, {"order/0": FLAT}),
    "infos": (
        infos(*({"unit": u, "order": (o, None)} for u, o in zip(UNIT, ORDER, strict=True))),
        NESTED,
        WHOLE,
    ),
    "infos with parts none": (
        infos(*({"unit": None, "order": (o, None)} for o in ORDER)),
        NESTED,
        {"order/0": FLAT},
    ),
    "infos of tuples in tuples": (
        infos(*({"order": ((o[:2], o[2:]), None)} for o in ORDER)),
        NESTED,
        {"order/0": FLAT},
    ),
    "a tuple": ((UNIT, np.array([[1, 0], [1, 1]])), DUO, DUO_MASKS),
    "an object array of tuples": (objects((UNIT[0], i8(1, 0)), (UNIT[1], i8(1, 1))), DUO, DUO_MASKS),
    "infos of tuples": (infos((UNIT[0], i8(1, 0)), (UNIT[1], i8(1, 1))), DUO, DUO_MASKS),
    "infos of dicts in tuples": (
        infos(*(({"a": u}, None) for u in UNIT)),
        Tuple((Dict(a=THREE, b=PAIR), PAIR)),
        {"0/a": EXPECTED},
    ),
    "infos of dicts in dicts": (
        infos(*({"a": {"b": u}} for u in UNIT)),
        Dict(a=Dict(b=THREE, c=BOX)),
        {"a/b": EXPECTED},
    ),
    "names with an underscore": ({"_a": UNIT}, Dict(_a=THREE), {"_a": EXPECTED}),
    "names that differ by an underscore": (
        {"a": UNIT, "_a": UNIT[::-1]},
        Dict(a=THREE, _a=THREE),
        {"a": EXPECTED, "_a": EXPECTED.flip(0)},
    ),
}


@pytest.mark.parametrize(("raw", "space", "expected"), TREES.values(), ids=TREES)
def test_masks_of_nested_actions_come_by_path(raw, space, expected):
    masks = read_mask(raw, space, 2)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[path], expected[path]) for path in masks)


FREE = torch.ones(3, dtype=torch.bool)
SOME = {
    "infos without a part": (
        infos({"unit": UNIT[0], "order": (ORDER[0], None)}, {"order": (ORDER[1], None)}),
        NESTED,
        {"unit": torch.stack((EXPECTED[0], FREE)), "order/0": FLAT},
    ),
    "infos whose first lacks a part": (
        infos({"order": (ORDER[0], None)}, {"unit": UNIT[1], "order": (ORDER[1], None)}),
        NESTED,
        {"unit": torch.stack((FREE, EXPECTED[1])), "order/0": FLAT},
    ),
    "infos with a part none": (
        infos({"unit": None, "order": (ORDER[0], None)}, {"unit": UNIT[1], "order": (ORDER[1], None)}),
        NESTED,
        {"unit": torch.stack((FREE, EXPECTED[1])), "order/0": FLAT},
    ),
    "tuples with a part none": (
        objects((UNIT[0], None), (None, i8(1, 0))),
        DUO,
        {"0": torch.stack((EXPECTED[0], FREE)), "1": bools([1, 1], [1, 0])},
    ),
    "dicts in tuples without a part": (
        objects(({"a": UNIT[0]},), ({"b": UNIT[1]},)),
        Tuple((Dict(a=THREE, b=THREE),)),
        {"0/a": torch.stack((EXPECTED[0], FREE)), "0/b": torch.stack((FREE, EXPECTED[1]))},
    ),
}


@pytest.mark.parametrize(("raw", "space", "expected"), SOME.values(), ids=SOME)
def test_a_part_that_only_some_environments_mask_is_free_in_the_others(raw, space, expected):
    torch.testing.assert_close(read_mask(raw, space, 2), expected)


# -- what doesn't fit ----------------------------------------------------------------------------------------------

UNREADABLE = {
    "too few choices": (np.ones((2, 2)), THREE, r"the action mask has 2 entries.*Discrete\(3, start=5\) has 3 choices"),
    "too many choices": (np.ones((2, 4)), THREE, "has 4 entries"),
    "too few environments": (np.ones((1, 3)), THREE, "action mask"),
    "too many environments": (np.ones((3, 3)), THREE, "action mask"),
    "rows that could be cut otherwise": (np.ones((4, 3)), Discrete(6), r"action mask.*\(4, 3\)"),
    "a row for all": (np.ones(6), THREE, r"action mask.*\(6,\)"),
    "a number": (1, THREE, "action mask"),
    "nothing": (None, THREE, "action mask"),
    "text": ("all of them", THREE, "action mask"),
    "a dict": ({"a": np.ones((2, 3))}, THREE, "action mask"),
    "object rows of other sizes": (objects(np.ones(3), np.ones(2)), THREE, "action mask cannot be read"),
    "a tuple of too few parts": ((np.ones((2, 2)),), PAIR, "has 2 entries"),
    "a tuple of other sizes": ((np.ones((2, 3)), np.ones((2, 2))), PAIR, "action mask"),
    "real numbers": (np.ones((2, 2)), BOX, "the action mask masks Box.*only discrete choices"),
    "real numbers within": ({"where": np.ones((2, 2))}, NESTED, "the action mask of 'where' masks Box"),
    "deep": ({"order": (np.ones((2, 4)), None)}, NESTED, r"the action mask of 'order/0' has 4 entries"),
    "an unknown part": ({"units": UNIT}, NESTED, r"parts \['units'\] that the action space Dict.* lacks"),
    "an unknown position": ((UNIT, np.ones((2, 2)), UNIT), DUO, r"parts \['2'\]"),
    "an array for a Dict": (UNIT, NESTED, "of a Dict space is ndarray; expected a dict"),
    "an array for a Tuple": (UNIT, DUO, "of a Tuple space is ndarray; expected a tuple"),
    "an array for a Tuple within": ({"order": ORDER}, NESTED, "of order is ndarray; expected a tuple"),
    "empty": ({}, NESTED, "has nothing for any discrete part"),
    "nothing but None": ({"unit": None, "order": (None, None)}, NESTED, "has nothing for any discrete part"),
}


@pytest.mark.parametrize(("raw", "space", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_mask_that_does_not_fit_is_refused(raw, space, reason):
    with pytest.raises(ConfigError, match=reason):
        read_mask(raw, space, 2)


def test_rows_without_a_legal_choice_are_named():
    require_legal(bools(1, 1), "environment")
    with pytest.raises(ConfigError, match="action mask of environment 1, 3 leaves nothing legal"):
        require_legal(bools(1, 0, 1, 0), "environment")


# -- one environment -----------------------------------------------------------------------------------------------

SINGLE = {
    "an array": (UNIT[0], THREE, EXPECTED[:1]),
    "a list": ([1, 0, 1], THREE, EXPECTED[:1]),
    "a tuple": ((i8(1, 0), i8(0, 1, 1)), PAIR, FLAT[:1]),
    "bits": (np.array([[1, 0], [1, 1]]), BITS, bools([1, 0, 1, 1])),
    "a dict": ({"unit": UNIT[0], "order": (ORDER[0], None)}, NESTED, {k: v[:1] for k, v in WHOLE.items()}),
    "tuples in a dict": ({"order": ((i8(1, 0), i8(0, 1, 1)), None)}, NESTED, {"order/0": FLAT[:1]}),
    "a tuple for a Tuple": ((UNIT[0], None), DUO, {"0": EXPECTED[:1]}),
}


@pytest.mark.parametrize(("raw", "space", "expected"), SINGLE.values(), ids=SINGLE)
def test_the_mask_of_one_environment_is_that_of_a_batch_of_one(raw, space, expected):
    mask = read_mask(batch_of_one(raw), space, 1)
    torch.testing.assert_close(mask, expected)


def test_no_mask_stays_none():
    assert batch_of_one(None) is None


# -- in observations -----------------------------------------------------------------------------------------------


def test_a_mask_is_taken_out_of_a_dict_of_observations():
    space = Dict([("z", BOX), (MASK_KEY, MultiBinary(3)), ("a", THREE)])
    without, found = without_mask(space)
    assert found
    assert list(without.spaces.items()) == [("z", BOX), ("a", THREE)]
    assert MASK_KEY in space.spaces
    x = {"z": 1, MASK_KEY: 2, "a": 3}
    assert split_mask(x, without) == ({"z": 1, "a": 3}, 2)
    assert x == {"z": 1, MASK_KEY: 2, "a": 3}
    assert split_mask({"z": 1, "a": 3}, without) == ({"z": 1, "a": 3}, None)


@pytest.mark.parametrize("space", [BOX, Tuple((BOX, BOX)), Dict(a=BOX, b=Dict({MASK_KEY: BOX}))])
def test_other_observations_are_left_as_they_are(space):
    assert without_mask(space) == (space, False)
    x = space.sample()
    rest, mask = split_mask(x, space)
    assert mask is None
    assert rest is x or rest == x


def test_a_part_that_is_observed_under_that_name_stays():
    space = Dict({"a": BOX, MASK_KEY: MultiBinary(2)})  # of a policy that reads it
    x = {"a": 1, MASK_KEY: 2}
    assert split_mask(x, space) == (x, None)
