"""Observations brought to mean 0 and std 1 by statistics over all samples ever seen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.networks import ObservationNormalizer
from levelhead.numerics import moments
from toys import same, snapshot

DIM = 3
law = settings(deadline=None, max_examples=50)


def feed(normalizer, x, valid=None, apply=True):
    valid = torch.ones(len(x), dtype=torch.bool) if valid is None else valid
    normalizer.update(moments(x, valid.unsqueeze(1)), torch.tensor(apply))


def samples(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.tensor([1e-3, 1.0, 1e3], dtype=dtype), torch.tensor([1e-2, -5.0, 1e5], dtype=dtype)
    return torch.randn(count, DIM, generator=generator, dtype=dtype) * scale + shift


@law
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_batch_after_batch_is_the_same_as_all_at_once(sizes, seed):
    x, normalizer = samples(sum(sizes), seed), ObservationNormalizer(DIM)
    for batch in x.split(sizes):
        feed(normalizer, batch)
    assert normalizer.count == sum(sizes)
    assert_close(normalizer.mean, x.mean(0), rtol=1e-12, atol=0.0)
    assert_close(normalizer.var, x.var(0, correction=0), rtol=1e-9, atol=1e-16)


def test_entries_come_out_with_mean_0_and_std_1():
    x, normalizer = samples(1000, dtype=torch.float32), ObservationNormalizer(DIM)
    feed(normalizer, x)
    y = normalizer(x)
    assert y.dtype == torch.float32
    assert_close(y.mean(0), torch.zeros(DIM), rtol=0, atol=1e-5)
    assert_close(y.std(0, correction=0), torch.ones(DIM), rtol=1e-5, atol=0)


def test_a_new_normalizer_changes_nothing_but_the_extremes():
    x = torch.tensor([[-100.0, 0.5, 9.0]])
    assert ObservationNormalizer(DIM)(x).tolist() == [[-10.0, 0.5, 9.0]]
    assert ObservationNormalizer(DIM, clip=5.0)(x).tolist() == [[-5.0, 0.5, 5.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_invalid_rows_are_not_counted_whatever_they_hold(bad):
    x, valid = samples(8), torch.tensor([True, False] * 4)
    clean, dirty, alone = (ObservationNormalizer(DIM) for _ in range(3))
    feed(clean, x, valid)
    feed(dirty, torch.where(valid.unsqueeze(1), x, bad), valid)
    feed(dirty, torch.full((3, DIM), bad).double(), torch.zeros(3, dtype=torch.bool))
    feed(alone, x[valid])
    assert same(clean.state_dict(), dirty.state_dict())
    assert_close(clean.state_dict(), alone.state_dict(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("x", [samples(5), torch.full((5, DIM), float("nan")).double()])
def test_nothing_moves_where_the_batch_is_not_to_be_applied(x):
    normalizer = ObservationNormalizer(DIM)
    feed(normalizer, samples(8))
    before = snapshot(normalizer)
    feed(normalizer, x, apply=False)
    assert same(before, normalizer.state_dict())


def test_statistics_stand_still_while_observations_pass_through():
    normalizer = ObservationNormalizer(DIM).train()
    feed(normalizer, samples(8))
    before = snapshot(normalizer)
    normalizer(samples(100, seed=1))
    assert same(before, normalizer.state_dict())


def test_statistics_are_saved_and_come_back():
    trained, fresh = ObservationNormalizer(DIM), ObservationNormalizer(DIM)
    feed(trained, samples(8))
    fresh.load_state_dict(trained.state_dict())
    x = samples(5, seed=1)
    assert torch.equal(trained(x), fresh(x))
    for normalizer in (trained, fresh):
        feed(normalizer, x)
    assert same(trained.state_dict(), fresh.state_dict())
    assert set(trained.state_dict()) == {"count", "mean", "var", "std"}


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6, 1e-20])
def test_an_entry_that_never_varies_is_harmless(constant):
    normalizer = ObservationNormalizer(DIM)
    x = samples(100, dtype=torch.float32)
    x[:, 1] = constant
    for batch in x.split(7):
        feed(normalizer, batch)
    y = normalizer(x)
    assert y.isfinite().all()
    assert y[:, 1].abs().max() <= 1e-6 * max(1.0, abs(constant))
    assert_close(y[:, 0].std(correction=0), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_an_entry_that_varies_by_float32_rounding_alone_is_not_blown_up():
    normalizer, x = ObservationNormalizer(DIM), torch.full((100, DIM), 1e4)
    x[::2] = torch.nextafter(x[0, 0], torch.tensor(2e4))
    feed(normalizer, x)
    assert normalizer.var.min() > 0
    assert normalizer(x).abs().max() < 1e-2
