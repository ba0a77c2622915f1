"""The clipped surrogate and the diagnostics of an update."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.losses import approximate_kl, clip_fraction, clip_surrogate, dual_clip, log_ratio

law = settings(deadline=None, max_examples=200)

# The ratio, the advantage, the surrogate at clip range 0.2, and its slope in the ratio.
CASES = [
    (1.0, 2.0, 2.0, 2.0),
    (1.1, 2.0, 2.2, 2.0),
    (1.5, 2.0, 2.4, 0.0),
    (0.5, 2.0, 1.0, 2.0),
    (1.1, -2.0, -2.2, -2.0),
    (1.5, -2.0, -3.0, -2.0),
    (0.5, -2.0, -1.6, 0.0),
    (0.9, -2.0, -1.8, -2.0),
    (3.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "slope"), CASES)
def test_the_surrogate_is_cut_off_only_where_the_step_has_gone_far_enough(ratio, advantage, expected, slope):
    r = torch.tensor([ratio], requires_grad=True)
    surrogate = clip_surrogate(r, torch.tensor([advantage]), 0.2)
    surrogate.sum().backward()
    assert surrogate.item() == pytest.approx(expected)
    assert r.grad.item() == pytest.approx(slope)


# The same with a dual clip at 3.
DUAL_CASES = [
    (1.0, 2.0, 2.0, 2.0),
    (5.0, 2.0, 2.4, 0.0),
    (2.9, -2.0, -5.8, -2.0),
    (3.1, -2.0, -6.0, 0.0),
    (50.0, -2.0, -6.0, 0.0),
    (0.5, -2.0, -1.6, 0.0),
    (50.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "slope"), DUAL_CASES)
def test_a_dual_clip_cuts_off_bad_actions_that_have_become_likely(ratio, advantage, expected, slope):
    r, a = torch.tensor([ratio], requires_grad=True), torch.tensor([advantage])
    surrogate = dual_clip(clip_surrogate(r, a, 0.2), a, 3.0)
    surrogate.sum().backward()
    assert surrogate.item() == pytest.approx(expected)
    assert r.grad.item() == pytest.approx(slope)


@law
@given(st.floats(0.01, 10), st.floats(-5, 5), st.floats(0.05, 0.5))
def test_the_surrogate_is_a_lower_bound(ratio, advantage, width):
    r, a = torch.tensor([ratio], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    assert clip_surrogate(r, a, width) <= r * a
    assert torch.equal(clip_surrogate(r, a, torch.tensor(width, dtype=torch.float64)), clip_surrogate(r, a, width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kl_estimate_is_not_negative_for_any_sample(dtype):
    size = torch.logspace(-12, 1, 4001, dtype=dtype)
    log_ratio = torch.cat((size, -size, torch.zeros(1, dtype=dtype)))
    assert (approximate_kl(log_ratio) >= 0).all()


@law
@given(st.integers(0, 2**32 - 1))
def test_the_kl_estimate_is_right_on_average(seed):
    old, new = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)
    estimate = (old.exp() * approximate_kl(new - old)).sum()
    assert_close(estimate, (old.exp() * (old - new)).sum(), rtol=1e-9, atol=1e-12)


def test_the_clip_fraction_counts_ratios_outside_the_range_on_either_side():
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0])
    assert clip_fraction(ratio, 0.2).tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert clip_fraction(ratio, torch.tensor(0.2)).tolist() == [1, 1, 0, 0, 0, 1, 1]


def test_ratios_that_float32_cannot_hold_weigh_nothing_where_rows_do_not_count():
    new = torch.tensor([0.5, 500.0, -500.0], requires_grad=True)
    ratio = log_ratio(new, torch.zeros(3)).exp()
    loss = (ratio * torch.tensor([1.0, 0.0, 1.0])) @ torch.tensor([1.0, 0.0, 1.0])
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(0.5))
    assert new.grad.tolist() == pytest.approx([math.exp(0.5), 0.0, 0.0])
