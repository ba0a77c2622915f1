"""What networks read of observations: numbers in a row, images by channel, choices as one-hot codes."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from torch.testing import assert_close

from levelhead.errors import ConfigError
from levelhead.networks import ObservationNormalizer, ObservationReader
from levelhead.spaces import zeros
from levelhead.tree import by_path, tree_leaves, tree_map
from toys import same, snapshot

CPU, YES, NO = torch.device("cpu"), torch.tensor(True), torch.tensor(False)


def reals(*shape, dtype=np.float32):
    return Box(-np.inf, np.inf, shape, dtype)


def image(*shape):
    return Box(0, 255, shape, np.uint8)


def reader(space, normalize=False):
    return ObservationReader(space, normalize)


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (5,), (3, 2)])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 3, 2)])
@pytest.mark.parametrize("normalize", [False, True])
def test_numbers_of_any_shape_are_laid_in_a_row(leading, shape, normalize):
    r = reader(reals(*shape), normalize)
    size = int(np.prod(shape))
    x = torch.randn((*leading, *shape)).clamp(-5, 5)
    assert r.shapes == {"": (size,)}
    assert r.leading(x) == leading
    out = r(x)
    assert out.dtype == torch.float32
    assert_close(out, x.reshape(*leading, size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16])
def test_numbers_of_any_type_become_float32(dtype):
    x = torch.tensor([[0, 1, 2]]).to(dtype)
    for normalize in (False, True):
        assert reader(reals(3), normalize)(x).dtype == torch.float32
        assert reader(reals(3), normalize)(x).tolist() == x.tolist()


@pytest.mark.parametrize(
    "space",
    [
        image(4, 4, 3),
        image(31, 40, 3),
        image(84, 84),
        image(64),
        image(2, 36, 36, 3),
        Box(0, 255, (36, 36, 3), np.int32),
    ],
    ids=str,
)
def test_bytes_that_make_no_image_and_whole_numbers_are_numbers(space):
    r = reader(space)
    x = torch.randint(256, (2, *space.shape)).to(torch.uint8)
    assert r.shapes == {"": (int(np.prod(space.shape)),)}
    assert torch.equal(r(x), x.float().flatten(1))


# -- images --------------------------------------------------------------------------------------------------------

IMAGES = {
    "height, width, channels": ((36, 40, 3), (3, 36, 40)),
    "channels, height, width": ((3, 36, 40), (3, 36, 40)),
    "one channel last": ((32, 32, 1), (1, 32, 32)),
    "one channel first": ((1, 32, 32), (1, 32, 32)),
    "stacked frames first": ((4, 84, 84), (4, 84, 84)),
    "stacked frames last": ((84, 84, 4), (4, 84, 84)),
    "wide": ((210, 160, 3), (3, 210, 160)),
    "many channels": ((12, 33, 32), (12, 33, 32)),
    "as many channels as columns": ((32, 33, 32), (32, 33, 32)),
}


@pytest.mark.parametrize(("raw", "shape"), IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("normalize", [False, True])
def test_images_stay_bytes_and_come_channels_first(raw, shape, leading, normalize):
    r = reader(image(*raw), normalize)
    x = torch.randint(256, (*leading, *raw)).to(torch.uint8)
    out = r(x)
    assert r.shapes == {"": shape}
    assert out.dtype == torch.uint8
    assert out.shape == (*leading, *shape)
    last = raw != shape
    index = (..., 5, 7, 0) if last else (..., 0, 5, 7)
    assert torch.equal(out[..., 0, 5, 7], x[index])
    assert torch.equal(out, x.movedim(-1, -3) if last else x)


# -- choices -------------------------------------------------------------------------------------------------------

CHOICES = {
    "one": (Discrete(3), [0, 2], [[1, 0, 0], [0, 0, 1]]),
    "one from another start": (Discrete(3, start=-1), [-1, 1], [[1, 0, 0], [0, 0, 1]]),
    "several": (MultiDiscrete([2, 3]), [[1, 0], [0, 2]], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]),
    "several from other starts": (
        MultiDiscrete([2, 3], start=[5, -1]),
        [[6, -1], [5, 1]],
        [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]],
    ),
    "a grid": (MultiDiscrete([[2], [3]]), [[[1], [0]], [[0], [2]]], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]),
    "bits": (MultiBinary(2), [[1, 0], [1, 1]], [[0, 1, 1, 0], [0, 1, 0, 1]]),
    "a grid of bits": (MultiBinary([1, 2]), [[[1, 0]], [[1, 1]]], [[0, 1, 1, 0], [0, 1, 0, 1]]),
    "no choice": (Discrete(1), [0, 0], [[1], [1]]),
}


@pytest.mark.parametrize(("space", "values", "codes"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.int32, torch.float32])
@pytest.mark.parametrize("normalize", [False, True])
def test_choices_become_one_hot_codes_side_by_side(space, values, codes, dtype, normalize):
    r, x = reader(space, normalize), torch.tensor(values, dtype=dtype)
    assert r.shapes == {"": (len(codes[0]),)}
    assert r(x).dtype == torch.float32
    assert r(x).tolist() == codes
    assert r(x[0]).tolist() == codes[0]
    assert r(x.expand(3, *x.shape)).tolist() == [codes] * 3
    assert not list(r.parameters())
    assert not r.state_dict()


@pytest.mark.parametrize("space", [Discrete(3, start=2), MultiDiscrete([2, 3], start=[5, -1])])
def test_zeros_can_be_read_wherever_choices_start(space):
    """Policies are tried out on zeros when they are built, and rows that are not valid hold them."""
    assert reader(space)(zeros(space, (2,), CPU)).shape == (2, *reader(space).shapes[""])


@pytest.mark.parametrize("space", [reals(3), image(36, 36, 3), Discrete(3), MultiDiscrete([2, 3])], ids=str)
def test_no_row_at_all_can_be_read(space):
    r = reader(space, normalize=isinstance(space, Box))
    assert r(zeros(space, (0,), CPU)).shape == (0, *r.shapes[""])


# -- nested --------------------------------------------------------------------------------------------------------

NESTED = Dict(
    [
        ("z.w", reals(2)),
        ("seen", Tuple((image(36, 40, 3), Discrete(3, start=1), Dict(keys=MultiBinary(2))))),
        ("lone", reals()),
    ]
)
SHAPES = {"z.w": (2,), "seen/0": (3, 36, 40), "seen/1": (3,), "seen/2/keys": (4,), "lone": (1,)}


def some(*leading, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "z.w": torch.randn(*leading, 2, generator=generator) * 3 + 7,
        "seen": (
            torch.randint(256, (*leading, 36, 40, 3), generator=generator).to(torch.uint8),
            torch.randint(1, 4, leading, generator=generator),
            {"keys": torch.randint(2, (*leading, 2), generator=generator)},
        ),
        "lone": torch.randn(leading, generator=generator),
    }


def test_every_part_of_a_nested_observation_is_read_in_its_place():
    r = reader(NESTED)
    assert r.space is NESTED
    assert r.shapes == SHAPES
    assert list(r.shapes) == list(SHAPES)
    x = some(5)
    out = r(x)
    assert {path: tuple(part.shape[1:]) for path, part in by_path(out).items()} == SHAPES
    parts = {"z.w": NESTED["z.w"], "lone": NESTED["lone"], "seen/1": NESTED["seen"][1]}
    for path, space in parts.items():
        assert torch.equal(by_path(out)[path], reader(space)(by_path(x)[path]))
    shuffled = {key: x[key] for key in ("lone", "z.w", "seen")}
    assert list(r(shuffled)) == ["z.w", "seen", "lone"]


def test_only_real_numbers_have_statistics_and_each_part_its_own():
    r = reader(NESTED, normalize=True)
    normalizers = [m for m in r.modules() if isinstance(m, ObservationNormalizer)]
    assert [tuple(m.mean.shape) for m in normalizers] == [(2,), (1,)]
    assert not [m for m in reader(NESTED).modules() if isinstance(m, ObservationNormalizer)]
    x = some(200)
    before = r(x)
    valid = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.7
    x["z.w"][~valid], x["lone"][~valid] = torch.nan, torch.nan
    r.update(x, valid, YES)
    kept = tree_map(lambda part: part[valid], x)
    for module, part in zip(normalizers, (kept["z.w"], kept["lone"].unsqueeze(1)), strict=True):
        assert module.count == valid.sum()
        assert_close(module.mean, part.double().mean(0))
        assert_close(module.var, part.double().var(0, correction=0))
    after = r(kept)
    for path in ("z.w", "lone"):
        assert_close(after[path].mean(0), torch.zeros_like(after[path][0]), atol=1e-5, rtol=0)
        assert_close(after[path].std(0, correction=0), torch.ones_like(after[path][0]), atol=1e-5, rtol=0)
    for ours, theirs in zip(tree_leaves(after["seen"]), tree_leaves(before["seen"]), strict=True):
        assert torch.equal(ours, theirs[valid])


def test_statistics_may_come_in_any_leading_shape_and_move_only_where_they_apply():
    one, other = reader(NESTED, normalize=True), reader(NESTED, normalize=True)
    x, valid = some(4, 6), torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    before = snapshot(one)
    one.update(x, valid, NO)
    assert same(snapshot(one), before)
    one.update(x, torch.zeros_like(valid), YES)
    assert same(snapshot(one), before)
    one.update(x, valid, YES)
    other.update(tree_map(lambda part: part.flatten(0, 1), x), valid.flatten(), YES)
    assert same(snapshot(one), snapshot(other))
    assert not same(snapshot(one), before)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_whole_numbers_have_statistics_too(dtype):
    r = reader(Box(0, 1, (2,), dtype), normalize=True)
    x = torch.from_numpy(np.array([[0, 1], [1, 1], [1, 0], [1, 0]], dtype))
    r.update(x, torch.ones(4, dtype=torch.bool), YES)
    assert_close(r(x).mean(0), torch.zeros(2))
    assert_close(r(x).std(0, correction=0), torch.ones(2))


def test_a_saved_reader_comes_back_and_a_copy_is_another():
    one, other = reader(NESTED, normalize=True), reader(NESTED, normalize=True)
    valid = torch.ones(9, dtype=torch.bool)
    one.update(some(9), valid, YES)
    other.load_state_dict(one.state_dict())
    twin = copy.deepcopy(one)
    assert same(snapshot(one), snapshot(other))
    twin.update(some(9, seed=1), valid, YES)
    assert same(snapshot(one), snapshot(other))
    assert not same(snapshot(one), snapshot(twin))


# -- from outside --------------------------------------------------------------------------------------------------


def test_arrays_lists_and_tensors_become_tensors_in_the_structure_of_the_space():
    r = reader(NESTED)
    x = some(3)
    arrays = tree_map(lambda part: part.numpy(), x)
    lists = tree_map(lambda part: part.tolist(), x)
    mixed = {**lists, "seen": list(arrays["seen"])}
    for given in (x, arrays, lists, mixed):
        tensors = r.tensors(given, CPU)
        assert r.leading(tensors) == (3,)
        for ours, theirs in zip(tree_leaves(r(tensors)), tree_leaves(r(x)), strict=True):
            assert_close(ours.float(), theirs.float())


@pytest.mark.parametrize("given", [[0.5, 1.0], (0.5, 1.0), np.array([0.5, 1.0]), torch.tensor([0.5, 1.0])])
def test_numbers_alone_may_come_as_a_tuple_too(given):
    r = reader(reals(2))
    assert r(r.tensors(given, CPU)).tolist() == [0.5, 1.0]


def test_a_single_observation_has_no_leading_shape():
    for space in (NESTED, Discrete(5, start=2), reals(), Tuple((Discrete(2), image(36, 36, 3)))):
        space.seed(0)
        r = reader(space)
        x = r.tensors(space.sample(), CPU)
        assert r.leading(x) == ()
        assert {path: tuple(part.shape) for path, part in by_path(r(x)).items()} == r.shapes


def without(key):
    return {k: v for k, v in some(3).items() if k != key}


STRUCTURES = {
    "a missing key": without("lone"),
    "another key": {**some(3), "extra": torch.ones(3)},
    "an array": torch.ones(3, 2),
    "a number": 1.0,
    "nothing": None,
    "a tuple": tuple(some(3).values()),
    "a shorter tuple": {**some(3), "seen": some(3)["seen"][:2]},
    "a longer tuple": {**some(3), "seen": (*some(3)["seen"], 1)},
    "a dict for an array": {**some(3), "lone": {"x": 1.0}},
    "text for an array": {**some(3), "lone": "high"},
    "rows of other lengths": {**some(3), "z.w": [[1.0, 2.0], [3.0]]},
}


@pytest.mark.parametrize("given", STRUCTURES.values(), ids=STRUCTURES)
def test_an_observation_of_another_structure_is_refused_with_the_space(given):
    with pytest.raises(ConfigError, match=r"the observation doesn't fit Dict\('z.w': Box"):
        reader(NESTED).tensors(given, CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"z.w": torch.ones(3, 4)}, r"observation 'z.w' has shape \(3, 4\); expected \(2,\) or a batch of it"),
        ({"z.w": torch.ones(())}, r"observation 'z.w' has shape \(\); expected \(2,\)"),
        ({"z.w": torch.ones(2, 3)}, r"observation 'z.w' has shape \(2, 3\)"),
        ({"z.w": torch.ones(4, 2)}, r"batches of different shapes: \[\(3,\), \(4,\)\]"),
        ({"lone": torch.ones(3, 1)}, r"batches of different shapes: \[\(3,\), \(3, 1\)\]"),
        ({"seen": torch.ones(3)}, r"the observation doesn't fit Dict"),
        ({"more": torch.ones(3)}, r"the observation doesn't fit Dict"),
    ],
)
def test_an_observation_of_other_shapes_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        reader(NESTED).leading({**some(3), **change})


def test_a_lone_observation_of_another_shape_is_refused_without_a_name():
    with pytest.raises(ConfigError, match=r"observation has shape \(3, 2\); expected \(3,\) or a batch of it"):
        reader(reals(3)).leading(torch.ones(3, 2))


@pytest.mark.parametrize("space", [gym.spaces.Text(3), Dict(a=reals(2), b=gym.spaces.Sequence(reals(1)))], ids=str)
def test_a_space_that_nothing_reads_is_refused(space):
    with pytest.raises(ConfigError, match="accepted: Box, Discrete"):
        reader(space)
