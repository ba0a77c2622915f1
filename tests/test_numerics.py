"""Moments, standardisation and explained variance: exact, masked, and free of any absolute scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from levelhead.numerics import explained_variance, local, moments, standardize

law = settings(deadline=None, max_examples=50)
ints = st.integers(-6400, 6400)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@st.composite
def samples(draw, columns=2):
    """Values `[M, K]` float64 and integer weights of the same shape, zeros among them."""
    rows = draw(st.integers(1, 8))
    x = draw(arrays("i8", (rows, columns), elements=ints))
    w = draw(arrays("i8", (rows, columns), elements=st.integers(0, 3)))
    return torch.from_numpy(x).double() / 64, torch.from_numpy(w)


@law
@given(samples())
def test_weights_are_repetitions(sample):
    x, w = sample
    got = moments(x, w)
    for k in range(2):
        repeated = x[:, k].repeat_interleave(w[:, k])
        assert got.weight[k] == len(repeated)
        if len(repeated):
            assert_close(got.mean[k], repeated.mean(), **EXACT)
            assert_close(got.var[k], repeated.var(correction=0), **EXACT)
        else:
            assert got.mean[k] == got.var[k] == 0


@law
@given(samples(), st.floats(1e-3, 1e3))
def test_only_ratios_of_weights_count(sample, factor):
    x, w = sample
    one, other = moments(x, w), moments(x, w.double() * factor)
    assert_close(other.mean, one.mean, **EXACT)
    assert_close(other.var, one.var, **EXACT)


@law
@given(samples(), st.sampled_from([float("nan"), float("inf"), -float("inf")]))
def test_entries_without_weight_may_hold_anything(sample, bad):
    x, w = sample
    got = moments(torch.where(w > 0, x, bad), w)
    for ours, clean in zip(got, moments(x, w), strict=True):
        assert torch.equal(ours, clean)


def test_one_weight_per_row_serves_every_column():
    x, w = torch.randn(5, 3), torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
    for one, other in zip(moments(x, w[:, None]), moments(x, w[:, None].expand(5, 3)), strict=True):
        assert torch.equal(one, other)


def test_a_non_finite_entry_shows_in_its_own_column_alone():
    x = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
    _, mean, var = moments(x, torch.ones(2, 1))
    assert mean.isfinite().tolist() == var.isfinite().tolist() == [False, True]


def test_whole_numbers_that_float32_lacks_are_taken_as_they_are():
    x = torch.tensor([[2**24 + 1], [2**24 + 3]])
    assert moments(x, torch.ones(2, 1)).var.item() == 1.0


def test_float32_input_is_accumulated_in_float64():
    x = (1e4 + 10 * torch.tensor([-1.0, 1.0]).repeat(50_000)).reshape(-1, 1)
    _, mean, var = moments(x, torch.ones(len(x), 1))
    assert mean.dtype == var.dtype == torch.float64
    assert (mean.item(), var.item()) == (1e4, 100.0)


@law
@given(samples(), st.sampled_from([1e3, -1e6, 1e8]))
def test_a_shift_does_not_cost_the_variance_its_digits(sample, shift):
    x, w = sample
    assert_close(moments(x + shift, w).var, moments(x, w).var, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_moments_know_no_floor(scale):
    x = scale * torch.tensor([[-1.0], [1.0]])
    assert moments(x, torch.ones(2, 1)).var.sqrt().item() == pytest.approx(scale, rel=1e-6)


@law
@given(samples())
def test_reduce_sums_over_ranks(sample):
    x, w = sample
    calls = []

    def twin(t):  # two ranks that hold the same samples
        calls.append(tuple(t.shape))
        return t + t

    got, alone = moments(x, w, twin), moments(x, w)
    assert calls == [(2, 2), (2,)]
    assert torch.equal(got.weight, 2 * alone.weight)
    assert_close(got.mean, alone.mean, **EXACT)
    assert_close(got.var, alone.var, **EXACT)


def test_local_leaves_its_argument_alone():
    x = torch.ones(3)
    assert local(x) is x


def standardized(x, valid, scale):
    return standardize(x, valid, moments(x.reshape(-1, 1), valid.reshape(-1, 1)).take(0), scale)


@law
@given(samples(columns=1), st.integers(-40, 40))
def test_standardized_values_have_mean_0_and_std_1_at_any_power_of_two(sample, k):
    x, w = sample[0][:, 0], sample[1][:, 0]
    valid, scale = w > 0, sample[0].abs().max()
    y = standardized(x, valid, scale)
    assert torch.equal(y, standardized(x * 2.0**k, valid, scale * 2.0**k))
    assert torch.equal(y[~valid], torch.zeros_like(y[~valid]))
    kept = x[valid]
    if len(kept) and kept.min() < kept.max():
        assert_close(y[valid].mean(), torch.zeros_like(scale), **EXACT)
        assert_close(y[valid].std(correction=0), torch.ones_like(scale), **EXACT)
    else:
        assert not y.any()


@pytest.mark.parametrize(
    ("x", "valid"),
    [
        ([0.1] * 7, [True] * 7),
        ([1e4 + 1e-3, 1e4], [True, True]),  # noise of rounding, against the scale of 1e4
        ([3.0], [True]),
        ([1.0, 2.0], [True, False]),
        ([1.0, 2.0], [False, False]),
    ],
    ids=["equal", "rounding", "one", "one valid", "none valid"],
)
def test_no_spread_gives_zero_not_nan(x, valid):
    x = torch.tensor(x, dtype=torch.float64)
    assert not standardized(x, torch.tensor(valid), x.abs().max()).any()


def test_standardize_keeps_shape_and_dtype_and_ignores_nan_where_invalid():
    x = torch.tensor([[1.0, float("nan")], [3.0, 5.0]], dtype=torch.float32)
    y = standardized(x, ~x.isnan(), torch.tensor(5.0))
    assert y.dtype == torch.float32
    assert_close(y, torch.tensor([[-2.0, 0.0], [0.0, 2.0]]) / (8 / 3) ** 0.5)


@law
@given(samples(), st.integers(-40, 40))
def test_explained_variance_is_that_of_the_valid_entries_in_any_unit(sample, k):
    x, w = sample
    prediction, target, valid = x[:, 0], x[:, 1], w[:, 0] > 0
    got = explained_variance(torch.where(valid, prediction, torch.nan), target, valid)
    assert_close(explained_variance(prediction * 2.0**k, target * 2.0**k, valid), got, rtol=0, atol=0, equal_nan=True)
    y = target[valid]
    if len(y) and y.min() < y.max():
        residual = (y - prediction[valid]).var(correction=0)
        assert_close(got, 1 - residual / y.var(correction=0), rtol=1e-9, atol=1e-9)


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one():
    target, valid = torch.randn(4, 5).double(), torch.ones(4, 5, dtype=torch.bool)
    assert explained_variance(target, target, valid) == 1
    assert_close(explained_variance(torch.full_like(target, 7.0), target, valid).item(), 0.0, **EXACT)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -1e20])
@pytest.mark.parametrize("n", [1, 3, 7, 100])
def test_explained_variance_is_nan_where_targets_do_not_vary(constant, n):
    target = torch.full((n,), constant, dtype=torch.float64)
    assert explained_variance(torch.arange(n).double(), target, torch.ones(n, dtype=torch.bool)).isnan()
