"""Schedules: their ends, their course, and the texts that stand for them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levelhead.schedules import SHAPES, Coefficient, Schedule, constant, schedule

law = settings(deadline=None, max_examples=100)
positive = st.floats(1e-12, 1e12)
numbers = st.floats(-1e12, 1e12)
shares = st.floats(0, 1)


MONOTONE = [shape for shape in SHAPES if shape != "piecewise"]


@st.composite
def schedules(draw, shapes=SHAPES):
    shape = draw(st.sampled_from(shapes))
    if shape == "piecewise":
        inner = sorted(draw(st.sets(st.floats(1e-3, 1 - 1e-3), max_size=3)))
        points = tuple((share, draw(numbers)) for share in (0.0, *inner, 1.0))
        return Schedule(points[0][1], points[-1][1], shape, points)
    ends = positive if shape == "exponential" else numbers
    start = draw(ends)
    return Schedule(start, start if shape == "constant" else draw(ends), shape)


@law
@given(schedules())
def test_it_goes_from_start_to_end(s):
    size = 1e-12 * max(map(abs, s.bounds))
    assert s(0.0) == pytest.approx(s.start, rel=0, abs=size)
    assert s(1.0) == pytest.approx(s.end, rel=0, abs=size)


@law
@given(schedules(), shares)
def test_it_stays_within_its_bounds(s, p):
    low, high = s.bounds
    size = 1e-12 * max(abs(low), abs(high))
    assert low - size <= s(p) <= high + size


@law
@given(schedules(MONOTONE), shares, shares)
def test_it_is_monotone(s, p, q):
    p, q = sorted((p, q))
    size = 1e-12 * max(map(abs, s.bounds))
    assert (s(q) - s(p)) * math.copysign(1, s.end - s.start) >= -2 * size


@law
@given(schedules(), st.floats(0, 1e6))
def test_beyond_the_end_it_stays_at_the_end(s, excess):
    assert s(1.0 + excess) == s(1.0)
    assert s(-excess) == s(0.0)


@law
@given(positive, st.sampled_from(["linear", "cosine"]), st.floats(0, 10))
def test_annealing_to_zero_is_never_negative(start, shape, progress):
    s = Schedule(start, 0.0, shape)
    assert s(progress) >= 0
    assert s(1.0) == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("linear", [3.25, 2.5, 1.75]), ("cosine", [4 - 1.5 * (1 - 0.5**0.5), 2.5, 1 + 1.5 * (1 - 0.5**0.5)])],
)
def test_its_course(shape, expected):
    s = Schedule(4.0, 1.0, shape)
    assert [s(0.25), s(0.5), s(0.75)] == pytest.approx(expected, rel=1e-12)


def test_a_piecewise_one_goes_straight_from_point_to_point():
    s = schedule("piecewise:0=0,0.25=4,0.75=2,1=3")
    assert [s(p) for p in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)] == [0.0, 2.0, 4.0, 3.0, 2.0, 3.0]
    assert s.bounds == (0.0, 4.0)


@law
@given(positive, positive, st.floats(0, 0.5), st.floats(0, 0.5))
def test_an_exponential_multiplies_by_the_same_factor_over_equal_shares(start, end, p, step):
    s = Schedule(start, end, "exponential")
    assert s(p + step) / s(p) == pytest.approx((end / start) ** step, rel=1e-9)


@law
@given(schedules())
def test_its_text_stands_for_it(s):
    assert schedule(str(s)) == s
    assert schedule(s) is s


@pytest.mark.parametrize("text", ["3e-4", 3e-4])
def test_a_number_stands_for_a_constant(text):
    s = schedule(text)
    assert s == constant(3e-4)
    assert s(0.0) == s(0.3) == s(1.0) == 3e-4


def test_two_ends_are_linear_unless_told_otherwise():
    assert Schedule(1.0, 0.0) == schedule("linear:1:0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "not a schedule"),
        ("", "not a schedule"),
        ("linear:1", "not a schedule"),
        ("linear:1:2:3", "not a schedule"),
        ("linear:one:two", "not a schedule"),
        ("linaer:1:0", "known: constant, linear, cosine, exponential, piecewise"),
        ("piecewise", "not a schedule"),
        ("piecewise:", "not a schedule"),
        ("piecewise:1", "not a schedule"),
        ("piecewise:0=1:1=2", "not a schedule"),
        ("piecewise:0=1,1=two", "not a schedule"),
        ("piecewise:0=1,0.5=2", "from 0 to 1"),
        ("piecewise:0.5=1,1=2", "from 0 to 1"),
        ("piecewise:0=1,0.6=2,0.4=3,1=4", "from 0 to 1"),
        ("piecewise:0=1,1=inf", "finite"),
        ("constant:1:0", "constant"),
        ("exponential:1:0", "positive"),
        ("exponential:-1:1", "positive"),
        ("linear:nan:0", "finite"),
        ("inf", "schedule"),
        (float("inf"), "finite"),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        schedule(text)


def test_a_schedule_cannot_be_changed():
    with pytest.raises(AttributeError):
        constant(1.0).start = 2.0


def test_a_coefficient_follows_its_schedule_in_one_and_the_same_tensor():
    coefficient = Coefficient(Schedule(4.0, 1.0))
    held, place = coefficient.tensor, coefficient.tensor.data_ptr()
    assert held.shape == ()
    for progress, value in ((0.0, 4.0), (0.5, 2.5), (2.0, 1.0)):
        coefficient.advance(progress)
        assert held.item() == value
    assert coefficient.tensor is held
    assert held.data_ptr() == place
