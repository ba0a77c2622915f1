"""Standard deviations: where they start, how they move, and what their bounds leave of the gradient."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.actions.sigma import (
    ConditionedSigma,
    IndependentSigma,
    ScheduledSigma,
    soft_clamp,
    soft_clamp_inverse,
)
from levelhead.schedules import Schedule, constant, schedule

FEATURES, D = 4, 3
LOW, HIGH = -5.0, 2.0


@pytest.mark.parametrize(
    ("std", "halfway", "end"),
    [("linear:0.8:0.2", 0.5, 0.2), ("exponential:0.8:0.2", 0.4, 0.2), ("cosine:0.8:0.2", 0.5, 0.2), ("0.8", 0.8, 0.8)],
)
def test_a_scheduled_std_follows_its_schedule_and_nothing_is_learned_about_it(std, halfway, end):
    sigma = ScheduledSigma(D, schedule(std))
    features = torch.randn(2, FEATURES)
    for progress, expected in ((0.0, 0.8), (0.5, halfway), (1.0, end), (2.0, end)):
        sigma.advance(progress)
        assert_close(sigma(features).exp(), torch.full((D,), expected))
    assert not list(sigma.parameters())


def test_a_scheduled_std_is_written_in_place_and_saved():
    sigma, other = (ScheduledSigma(D, Schedule(1.0, 0.1)) for _ in range(2))
    held = sigma(torch.zeros(FEATURES))
    sigma.advance(0.5)
    assert_close(held.exp(), torch.full((D,), 0.55))
    other.load_state_dict(sigma.state_dict())
    assert torch.equal(other(torch.zeros(FEATURES)), held)


@pytest.mark.parametrize("std", [constant(0.0), constant(-1.0), Schedule(1.0, 0.0), Schedule(-0.5, 1.0, "cosine")])
def test_a_schedule_that_is_not_positive_throughout_is_refused(std):
    with pytest.raises(ValueError, match="positive"):
        ScheduledSigma(D, std)


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_a_start_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match="positive"):
        IndependentSigma(D, std)


@pytest.mark.parametrize("std", [math.exp(LOW), 0.001, math.exp(HIGH), 8.0])
@pytest.mark.parametrize("make", [IndependentSigma, lambda *args, **more: ConditionedSigma(FEATURES, *args, **more)])
def test_a_start_that_is_not_between_the_bounds_is_refused(make, std):
    with pytest.raises(ValueError, match="between its bounds"):
        make(D, std, bounds=(LOW, HIGH))


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, -2.0), (-math.inf, 1.0), (0.0, math.nan)])
def test_bounds_that_leave_nothing_between_them_are_refused(bounds):
    with pytest.raises(ValueError, match="cannot be kept"):
        IndependentSigma(D, bounds=bounds)


intervals = st.tuples(st.floats(-20, 5), st.floats(0.5, 20)).map(lambda x: (x[0], x[0] + x[1]))


@given(intervals, st.floats(0.001, 0.999))
@settings(deadline=None)
def test_bounded_stds_start_as_told(bounds, share):
    low, high = bounds
    std = math.exp(low + share * (high - low))
    expected = torch.full((D,), std)
    features = torch.randn(2, FEATURES)
    assert_close(IndependentSigma(D, std, bounds)(features).exp(), expected, rtol=1e-5, atol=0)
    assert_close(
        ConditionedSigma(FEATURES, D, std, (5,), bounds)(features).exp(), expected.expand(2, D), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("std", [0.01, 0.5, 1.0, 20.0])
def test_a_free_std_without_bounds_starts_as_told(std):
    sigma = IndependentSigma(D, std)
    log_std = sigma(torch.zeros(2, FEATURES))
    assert log_std is sigma.log_std
    assert torch.equal(log_std, torch.full((D,), math.log(std)))


@given(intervals, st.floats(0.001, 0.999))
@settings(deadline=None)
def test_the_inverse_of_the_soft_clamp_is_its_inverse(bounds, share):
    low, high = bounds
    y = low + share * (high - low)
    x = torch.tensor(soft_clamp_inverse(y, low, high), dtype=torch.float64)
    assert soft_clamp(x, low, high).item() == pytest.approx(y, abs=1e-7)


@given(intervals, st.floats(-100, 100), st.floats(0.01, 10))
@settings(deadline=None)
def test_the_soft_clamp_rises_and_stays_between_its_bounds(bounds, x, step):
    low, high = bounds
    assume(low - 15 < x and x + step < high + 15)  # further out float64 cannot tell the outcome from the bound
    first, second = soft_clamp(torch.tensor([x, x + step], dtype=torch.float64), low, high)
    assert low < first < second < high


def test_the_range_of_the_soft_clamp_is_that_between_the_bounds_and_far_inside_it_does_nothing():
    far = soft_clamp(torch.tensor([-100.0, 100.0], dtype=torch.float64), -1.0, 2.0)
    assert_close(far, torch.tensor([-1.0, 2.0], dtype=torch.float64), rtol=0, atol=1e-12)
    x = torch.linspace(LOW + 3, HIGH + 2 - 3, 50, dtype=torch.float64)
    assert_close(soft_clamp(x, LOW, HIGH + 2), x, rtol=0, atol=0.06)
    wide = torch.linspace(-10, 10, 50, dtype=torch.float64)
    assert_close(soft_clamp(wide, -20, 20), wide, rtol=0, atol=1e-4)


@pytest.mark.parametrize("distance", [0.0, 1.0, 5.0, 20.0, 80.0])
@pytest.mark.parametrize("side", [-1, 1])
def test_outside_the_bounds_there_is_still_a_gradient_in_float32(distance, side):
    sigma = IndependentSigma(1, bounds=(LOW, HIGH))
    with torch.no_grad():
        sigma.log_std.fill_((HIGH if side > 0 else LOW) + side * distance)
    sigma(torch.zeros(FEATURES)).sum().backward()
    assert sigma.log_std.grad is not None
    assert 0.4 * math.exp(-distance) < sigma.log_std.grad.item() < 1.01 * math.exp(-distance)


@pytest.mark.parametrize("start", [LOW - 3, HIGH + 3])
def test_a_log_std_that_is_outside_comes_back(start):
    sigma = IndependentSigma(1, bounds=(LOW, HIGH))
    optimizer = torch.optim.Adam(sigma.parameters(), lr=0.05)
    with torch.no_grad():
        sigma.log_std.fill_(start)
    for _ in range(300):
        optimizer.zero_grad()
        (sigma(torch.zeros(FEATURES)) + 1).square().sum().backward()
        optimizer.step()
    assert sigma(torch.zeros(FEATURES)).item() == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_a_conditioned_std_starts_the_same_everywhere_and_learns_to_differ(hidden, shape):
    torch.manual_seed(0)
    sigma = ConditionedSigma(FEATURES, D, 0.3, hidden)
    features = torch.randn(*shape, FEATURES)
    assert_close(sigma(features).exp(), torch.full((*shape, D), 0.3))

    # Small where the first feature is positive, large elsewhere.
    optimizer = torch.optim.Adam(sigma.parameters(), lr=0.05)
    states = torch.randn(64, FEATURES)
    target = torch.where(states[:, :1] > 0, -2.0, 0.0).expand(64, D)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (sigma(states) - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.4 * losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in sigma.parameters())


@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize("bounds", [None, (-2.0, 1.0)])
def test_gradients_of_a_conditioned_std_are_those_of_finite_differences(hidden, bounds):
    torch.manual_seed(0)
    sigma = ConditionedSigma(FEATURES, D, 0.5, hidden, bounds).double()
    torch.nn.init.normal_(sigma.linear.weight)
    features = torch.randn(3, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: sigma(x), (features, *sigma.parameters()))
