"""Generalised advantage estimation: the recursion, its limits, and what must not flow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.returns import gae

law = settings(deadline=None, max_examples=60)
unit = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@st.composite
def rollouts(draw, dtype=torch.float64):
    """Reward, value, next value, terminated, truncated, valid: each `[T, N]`."""
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    numbers = torch.randn(3, *shape, generator=generator, dtype=dtype)
    share = torch.tensor(draw(st.tuples(*[st.sampled_from([0.0, 0.2, 0.6])] * 3)))
    terminated, truncated, invalid = torch.rand(3, *shape, generator=generator) < share.view(3, 1, 1)
    return *numbers, terminated, truncated, ~invalid


def scalar_gae(reward, value, next_value, terminated, truncated, valid, gamma, lam):
    """One number at a time, from the last step to the first."""
    advantage = torch.zeros_like(reward)
    for n in range(reward.shape[1]):
        carried = 0.0
        for t in reversed(range(len(reward))):
            if not valid[t, n]:
                carried = 0.0
                continue
            future = 0.0 if terminated[t, n] else gamma * float(next_value[t, n])
            if terminated[t, n] or truncated[t, n]:
                carried = 0.0
            carried = float(reward[t, n]) + future - float(value[t, n]) + gamma * lam * carried
            advantage[t, n] = carried
    return advantage


@law
@given(rollouts(), unit, unit)
def test_the_recursion_holds_step_by_step(rollout, gamma, lam):
    *data, valid = rollout
    advantage, target = gae(*data, gamma, lam, valid)
    assert_close(advantage, scalar_gae(*rollout, gamma, lam), **EXACT)
    assert_close(target, advantage + data[1], **EXACT)


@law
@given(rollouts(), unit)
def test_lambda_1_is_monte_carlo_bootstrapped_where_the_data_is_cut(rollout, gamma):
    reward, value, next_value, terminated, truncated, _ = rollout
    going_on = ~(terminated | truncated)[:-1]
    next_value[:-1] = torch.where(going_on, value[1:], next_value[:-1])
    _, target = gae(*rollout[:5], gamma, 1.0)
    steps, envs = reward.shape
    for n in range(envs):
        for start in range(steps):
            total, factor = 0.0, 1.0
            for t in range(start, steps):
                total += factor * float(reward[t, n])
                factor *= gamma
                if terminated[t, n]:
                    break
                if truncated[t, n] or t == steps - 1:
                    total += factor * float(next_value[t, n])
                    break
            assert target[start, n] == pytest.approx(total, rel=1e-9, abs=1e-9)


@law
@given(rollouts(), unit)
def test_lambda_0_is_one_step_td(rollout, gamma):
    reward, _, next_value, terminated, *_ = rollout
    _, target = gae(*rollout[:5], gamma, 0.0)
    assert_close(target, reward + gamma * next_value * (~terminated), **EXACT)


@law
@given(rollouts(), st.integers(0, 19), st.booleans(), unit, unit)
def test_nothing_flows_back_across_the_end_of_an_episode(rollout, end, real, gamma, lam):
    reward, value, next_value, terminated, truncated, valid = rollout
    end = min(end, len(reward) - 1)
    (terminated if real else truncated)[end] = True
    before, _ = gae(*rollout[:5], gamma, lam, valid)
    for x in (reward, value, next_value):
        x[end + 1 :] += 1e3
    after, _ = gae(*rollout[:5], gamma, lam, valid)
    assert torch.equal(before[: end + 1], after[: end + 1])


def test_a_truncation_bootstraps_from_its_own_successor_and_a_termination_from_nothing():
    reward, value = torch.ones(3, 1), torch.zeros(3, 1)
    next_value = torch.tensor([[10.0], [20.0], [40.0]])
    off, middle = torch.zeros(3, 1, dtype=torch.bool), torch.tensor([[False], [True], [False]])
    cut, _ = gae(reward, value, next_value, off, middle, 0.5, 1.0)
    ended, _ = gae(reward, value, next_value, middle, off, 0.5, 1.0)
    # gamma 1/2 and value 0: the first step's delta is 1 + 10 / 2, and half of the second's is added.
    assert cut.flatten().tolist() == [6 + 11 / 2, 11, 21]
    assert ended.flatten().tolist() == [6 + 1 / 2, 1, 21]


@law
@given(rollouts(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), unit, unit)
def test_invalid_rows_may_hold_anything(rollout, bad, gamma, lam):
    *data, valid = rollout
    advantage, target = gae(*data, gamma, lam, valid)
    filled = [torch.where(valid, x, bad) for x in data[:3]]
    dirty, dirty_target = gae(*filled, *data[3:], gamma, lam, valid)
    assert torch.equal(advantage, dirty)
    assert (advantage[~valid] == 0).all()
    assert torch.equal(target[valid], dirty_target[valid])
    assert torch.equal(target[~valid], data[1][~valid])


@law
@given(rollouts(torch.float32), st.integers(-20, 20))
def test_a_power_of_two_passes_through_bit_for_bit(rollout, exponent):
    *data, valid = rollout
    scaled = [x * 2.0**exponent for x in data[:3]]
    for one, other in zip(gae(*data, valid=valid), gae(*scaled, *data[3:], valid=valid), strict=True):
        assert torch.equal(one * 2.0**exponent, other)


@pytest.mark.parametrize("argument", range(6))
@pytest.mark.parametrize("shape", [(4, 3, 1), (4, 1), (1, 3), (3,), (3, 4)])
def test_nothing_broadcasts(argument, shape):
    kinds = [torch.float32] * 3 + [torch.bool] * 3
    given = [torch.zeros(4, 3, dtype=kind) for kind in kinds]
    given[argument] = torch.zeros(shape, dtype=kinds[argument])
    with pytest.raises(ValueError, match="one shape"):
        gae(*given[:5], valid=given[5])


@pytest.mark.parametrize("shape", [(4,), (4, 3, 1)])
def test_only_time_by_environment_is_accepted(shape):
    with pytest.raises(ValueError, match="T, N"):
        gae(*[torch.zeros(shape)] * 3, *[torch.zeros(shape, dtype=torch.bool)] * 2)
