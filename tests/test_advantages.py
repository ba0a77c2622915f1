"""Scaling of advantages: what each kind computes, every task by itself, and free of the reward's unit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.advantages import (
    HeadScaledAdvantage,
    PercentileAdvantage,
    RawAdvantage,
    StandardizedAdvantage,
    measured,
)

law = settings(deadline=None, max_examples=30)
NONE, ROLLOUT, HEAD, PERCENTILE = RawAdvantage, StandardizedAdvantage, HeadScaledAdvantage, PercentileAdvantage
KINDS = {"none": NONE, "rollout": ROLLOUT, "head": HEAD, "percentile": PERCENTILE}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
SHAPE = (16, 6)
STD = torch.tensor([0.25, 3.0, 1e5], dtype=torch.float64)


def make(kind, tasks=3):
    return kind(tasks) if kind is PERCENTILE else kind()


def rollout(seed=0, scales=(1.0, 50.0, 1e-4), shape=SHAPE):
    """Advantages, targets, and a mask per task; some entries belong to none. Tasks lie at scales of their own."""
    generator = torch.Generator().manual_seed(seed)
    task = torch.randint(len(scales) + 1, shape, generator=generator)
    scale = torch.tensor((*scales, 1.0))[task]
    advantage, target = torch.randn(2, *shape, generator=generator) * scale
    return advantage, target + 2 * scale, [task == k for k in range(len(scales))]


def scale(scaling, advantage, target, masks, std=STD):
    of = measured(advantage, target, torch.zeros_like(target), masks)
    return scaling(advantage, target, masks, of, std[: len(masks)])


def bounds(target):
    """The range of returns, by numpy."""
    low, high = np.percentile(target.double().numpy(), [5, 95])
    return float(high - low)


def expected(kind, advantage, target, std):
    """One task's advantages, computed directly."""
    x = advantage.double()
    match kind.__name__:
        case "RawAdvantage":
            return x
        case "StandardizedAdvantage":
            return (x - x.mean()) / x.std(correction=0)
        case "HeadScaledAdvantage":
            return x / std
        case "PercentileAdvantage":
            return x / bounds(target)


# -- what each computes ------------------------------------------------------------------------------------------


@every_kind
def test_it_is_what_a_direct_computation_gives_for_each_task_and_zero_elsewhere(kind):
    advantage, target, masks = rollout()
    scaled = scale(make(kind), advantage, target, masks)
    assert scaled.shape == advantage.shape
    assert scaled.dtype == torch.float32
    for k, mask in enumerate(masks):
        assert mask.sum() > 10
        assert_close(scaled[mask].double(), expected(kind, advantage[mask], target[mask], STD[k]), rtol=1e-5, atol=1e-6)
    belongs = torch.stack(masks).any(0)
    assert (scaled[~belongs] == 0).all()
    assert not belongs.all()


@every_kind
def test_a_task_among_others_is_scaled_as_it_is_alone(kind):
    together, alone = make(kind), [make(kind, 1) for _ in range(3)]
    for seed in range(3):
        advantage, target, masks = rollout(seed)
        scaled = scale(together, advantage, target, masks)
        for k, mask in enumerate(masks):
            assert torch.equal(scaled[mask], scale(alone[k], advantage, target, [mask], STD[k:])[mask])


@every_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_stands_in_entries_of_no_task_does_not_matter(kind, bad):
    clean, dirty = make(kind), make(kind)
    for seed in range(2):
        advantage, target, masks = rollout(seed)
        nobody = ~torch.stack(masks).any(0)
        poisoned = [torch.where(nobody, bad, x) for x in (advantage, target)]
        assert torch.equal(scale(dirty, *poisoned, masks), scale(clean, advantage, target, masks))
    for name, x in clean.state_dict().items():
        assert torch.equal(dirty.state_dict()[name], x)


def test_only_the_heads_std_needs_statistics_and_only_the_raw_ones_depend_on_the_scale():
    assert [kind.needs_statistics for kind in (NONE, ROLLOUT, HEAD, PERCENTILE)] == [False, False, True, False]
    assert [kind.scale_free for kind in (NONE, ROLLOUT, HEAD, PERCENTILE)] == [False, True, True, True]


@law
@given(
    st.sampled_from([ROLLOUT, HEAD, PERCENTILE]),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3),
    st.tuples(*[st.integers(-60, 60)] * 3),
)
def test_a_power_of_two_per_task_changes_no_bit(kind, seeds, exponents):
    plain, multiplied = make(kind), make(kind)
    factors = torch.tensor([2.0**x for x in exponents])
    for seed in seeds:
        advantage, target, masks = rollout(seed, shape=(8, 5))
        factor = torch.stack([mask * f for mask, f in zip(masks, factors, strict=True)]).sum(0)
        one = scale(plain, advantage, target, masks)
        two = scale(multiplied, advantage * factor, target * factor, masks, STD * factors.double())
        assert torch.equal(one, two)


def test_raw_advantages_keep_their_unit():
    advantage, target, masks = rollout()
    one, two = (scale(RawAdvantage(), advantage * x, target * x, masks) for x in (1.0, 8.0))
    assert torch.equal(8.0 * one, two)
    assert one.any()


# -- standardised ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, -3e7, 1e-20])
def test_advantages_without_spread_become_zero_and_other_tasks_stay_as_they_are(value):
    advantage, target, masks = rollout()
    flat = torch.where(masks[1], value, advantage)
    scaled = scale(StandardizedAdvantage(), flat, target, masks)
    assert (scaled[masks[1]] == 0).all()
    plain = scale(StandardizedAdvantage(), advantage, target, masks)
    for k in (0, 2):
        assert torch.equal(scaled[masks[k]], plain[masks[k]])


@pytest.mark.parametrize(("share", "counts"), [(1e-7, False), (1e-5, True)])
def test_whether_there_is_a_spread_is_judged_by_the_targets_of_the_same_task(share, counts):
    advantage, target, masks = rollout(scales=(1.0, 1e9))
    magnitude = target[masks[0]].abs().max()
    noise = advantage / advantage[masks[0]].std(correction=0) * magnitude * share
    scaled = scale(StandardizedAdvantage(), torch.where(masks[0], noise, advantage), target, masks)
    assert bool(scaled[masks[0]].any()) is counts


def test_noise_beside_one_large_target_is_no_spread():
    target = torch.zeros(100, 100)
    target[3, 4] = 1.0
    noise = 3e-7 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    assert not scale(StandardizedAdvantage(), noise, target, [torch.ones(100, 100, dtype=torch.bool)]).any()


# -- divided by a range of returns -------------------------------------------------------------------------------


def ones(targets, scaling):
    """What advantages of 1 become: one over the range that `scaling` divides by."""
    target = torch.as_tensor(targets, dtype=torch.float32)
    return scale(scaling, torch.ones_like(target), target, [torch.ones(target.shape, dtype=torch.bool)])


@law
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=60).filter(lambda x: np.ptp(np.percentile(x, [5, 95]))))
def test_the_first_rollout_is_divided_by_its_own_range_from_5th_to_95th_percentile(targets):
    low, high = np.percentile(targets, [5, 95])
    scaled = ones(targets, PercentileAdvantage(1))
    assert_close(scaled.double(), torch.full((len(targets),), 1 / (high - low)).double(), rtol=1e-4, atol=0)


def test_later_ones_are_divided_by_a_debiased_moving_average_that_keeps_99_percent():
    scaling, ranges = PercentileAdvantage(3), [[], [], []]
    for seed in range(8):
        # The scale moves from rollout to rollout, so that the average lags behind.
        advantage, target, masks = rollout(seed, scales=(2.0**seed, 3.0**-seed, 5.0))
        scaled = scale(scaling, advantage, target, masks)
        for k, mask in enumerate(masks):
            ranges[k].append(bounds(target[mask]))
            average = np.average(ranges[k], weights=0.99 ** np.arange(len(ranges[k]))[::-1])
            assert_close(scaled[mask], advantage[mask] / float(average), rtol=1e-5, atol=0)
    assert ranges[0][-1] > 100 * ranges[0][0]


def test_it_is_not_centred():
    advantage, target, masks = rollout()
    scaled = scale(PercentileAdvantage(3), advantage.abs() + 1, target, masks)
    assert (scaled[torch.stack(masks).any(0)] > 0).all()


@pytest.mark.parametrize("loners", [1, 4])
@pytest.mark.parametrize("outlier", [7.0, -7.0])
def test_a_range_of_no_spread_gives_way_to_that_from_the_smallest_return_to_the_largest(loners, outlier):
    # Sparse rewards: fewer than one return in twenty differs.
    targets = [outlier] * loners + [1.0] * (100 - loners)
    assert_close(ones(targets, PercentileAdvantage(1)), torch.full((100,), 1 / abs(outlier - 1)))


def test_outliers_do_not_stretch_a_range_that_has_a_spread():
    targets = [1e4, -1e4, *np.linspace(0, 1, 98)]
    width = bounds(torch.tensor(targets))
    assert width < 1
    assert_close(ones(targets, PercentileAdvantage(1)), torch.full((100,), 1 / width))


STILL = {
    "no samples": lambda target, mask: (target, torch.zeros_like(mask)),
    "all alike": lambda target, mask: (torch.full_like(target, 3.0), mask),
    "all zero": lambda target, mask: (torch.zeros_like(target), mask),
    "rounding noise": lambda target, mask: (1e8 + target.clamp(-8, 8), mask),
}


@pytest.mark.parametrize("change", STILL.values(), ids=STILL)
def test_a_rollout_without_samples_or_spread_leaves_the_average_of_its_task_alone(change):
    scaling, spared = PercentileAdvantage(3), PercentileAdvantage(3)
    for one in (scaling, spared):
        scale(one, *rollout(0))
    before = {name: x.clone() for name, x in scaling.state_dict().items()}
    advantage, target, masks = rollout(1)
    other, mask = change(target, masks[1])
    scaled = scale(scaling, advantage, torch.where(masks[1], other, target), [masks[0], mask, masks[2]])
    for name, x in scaling.state_dict().items():
        assert (x == before[name]).tolist() == [False, True, False]
    # It divides by the average as it was.
    assert_close(scaled[mask], advantage[mask] / bounds(rollout(0)[1][rollout(0)[2][1]]), rtol=1e-5, atol=0)
    # And the next rollout goes on as if this one had not been.
    scale(spared, advantage, target, [masks[0], torch.zeros_like(mask), masks[2]])
    assert torch.equal(*(scale(one, *rollout(2)) for one in (scaling, spared)))


@pytest.mark.parametrize("change", STILL.values(), ids=STILL)
def test_before_the_first_spread_advantages_are_zero(change):
    advantage, target, masks = rollout()
    other, mask = change(target, masks[1])
    scaled = scale(PercentileAdvantage(3), advantage, torch.where(masks[1], other, target), [masks[0], mask, masks[2]])
    assert (scaled[masks[1]] == 0).all()
    assert scaled[masks[0]].all()


# -- state -------------------------------------------------------------------------------------------------------


@every_kind
def test_a_copy_that_took_over_the_state_goes_on_alike(kind):
    one, copy = make(kind), make(kind)
    for seed in range(2):
        scale(one, *rollout(seed))
    copy.load_state_dict({name: x.clone() for name, x in one.state_dict().items()})
    for seed in (2, 3):
        assert torch.equal(scale(one, *rollout(seed)), scale(copy, *rollout(seed)))
    assert bool(one.state_dict()) is (kind is PERCENTILE)


def test_the_state_is_written_in_place():
    # A trainer holds on to it, to put it back after a fault.
    scaling = PercentileAdvantage(3)
    held = scaling.state_dict()
    before = {name: (x.data_ptr(), x.clone()) for name, x in held.items()}
    scale(scaling, *rollout())
    scaling.load_state_dict({name: x + 0.5 for name, x in held.items()})
    for name, x in scaling.state_dict().items():
        assert x.data_ptr() == before[name][0] == held[name].data_ptr()
        assert not torch.equal(held[name], before[name][1])


@pytest.mark.parametrize(("kind", "other"), [(PERCENTILE, NONE), (NONE, PERCENTILE), (ROLLOUT, PERCENTILE)])
def test_the_state_of_another_kind_is_refused(kind, other):
    with pytest.raises(ValueError, match=r"the state of \w+ is .*; expected "):
        make(kind).load_state_dict(make(other).state_dict())


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_state_of_another_number_of_tasks_is_refused(tasks):
    with pytest.raises((ValueError, RuntimeError)):
        PercentileAdvantage(3).load_state_dict(PercentileAdvantage(tasks).state_dict())
