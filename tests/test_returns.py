"""Advantages and targets: the recursions, their limits, and what must not flow."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.returns import earlier_rewards, gae, mean_of_others, n_step, v_trace

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


@pytest.mark.parametrize("estimate", [gae, n_step, partial(v_trace, ratio=torch.ones(4, 3))])
@pytest.mark.parametrize("name", ["terminated", "truncated", "valid"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32])
def test_flags_must_be_bool(estimate, name, kind):
    flags = {flag: torch.zeros(4, 3, dtype=torch.bool) for flag in ("terminated", "truncated", "valid")}
    flags[name] = flags[name].to(kind)
    with pytest.raises(ValueError, match=f"{name} must be bool, not {kind}"):
        estimate(*[torch.zeros(4, 3)] * 3, **flags)


# -- n steps -----------------------------------------------------------------------------------------------------


def connected(rollout):
    """The same with successors valued as the rows that follow them, wherever there is one in the same episode."""
    reward, value, next_value, terminated, truncated, valid = rollout
    goes_on = (~(terminated | truncated) & valid)[:-1] & valid[1:]
    next_value = torch.cat((torch.where(goes_on, value[1:], next_value[:-1]), next_value[-1:]))
    return reward, value, next_value, terminated, truncated, valid


def scalar_n_step(reward, value, next_value, terminated, truncated, valid, gamma, n):
    """Every return by itself: up to n rewards, then the value of where they lead, unless the episode is over."""
    target = value.clone()
    for env in range(reward.shape[1]):
        for start in range(len(reward)):
            if not valid[start, env]:
                continue
            total = 0.0
            for k, t in enumerate(range(start, min(start + n, len(reward)))):
                total += gamma**k * float(reward[t, env])
                if terminated[t, env]:
                    break
                last = k == n - 1 or t == len(reward) - 1
                if last or truncated[t, env] or not valid[t + 1, env]:
                    total += gamma ** (k + 1) * float(next_value[t, env])
                    break
            target[start, env] = total
    return target


@law
@given(rollouts(), unit, st.integers(1, 25))
def test_a_return_of_n_steps_is_so_many_rewards_and_a_value(rollout, gamma, n):
    # Rows that are not valid follow the end of an episode, or the data is cut there.
    *data, valid = connected(rollout)
    advantage, target = n_step(*data, gamma, n, valid)
    assert_close(target, scalar_n_step(*data, valid, gamma, n), **EXACT)
    assert_close(advantage, target - data[1], **EXACT)
    assert (advantage[~valid] == 0).all()


@law
@given(rollouts(), unit, st.booleans())
def test_one_step_is_lambda_0_and_as_many_as_there_are_is_lambda_1(rollout, gamma, one):
    # Whatever the values of successors are: with n of 1 each is used once, with all of them only at the cuts.
    *data, valid = rollout
    n, lam = (1, 0.0) if one else (len(data[0]), 1.0)
    if not one:
        *data, valid = connected(rollout)
    for ours, theirs in zip(n_step(*data, gamma, n, valid), gae(*data, gamma, lam, valid), strict=True):
        assert_close(ours, theirs, **EXACT)


def test_more_steps_than_there_are_change_nothing():
    generator = torch.Generator().manual_seed(0)
    data = [*torch.randn(3, 6, 2, generator=generator), *torch.zeros(2, 6, 2, dtype=torch.bool)]
    for ours, theirs in zip(n_step(*data, n=6), n_step(*data, n=10**9), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("n", [0, -1])
def test_a_return_of_no_step_is_refused(n):
    with pytest.raises(ValueError, match="at least 1 step"):
        n_step(*torch.zeros(3, 4, 2), *torch.zeros(2, 4, 2, dtype=torch.bool), n=n)


# -- V-trace -----------------------------------------------------------------------------------------------------

clips = st.sampled_from([0.5, 1.0, 1.7, math.inf])
seeds = st.integers(0, 2**32 - 1)


def ratios_for(rollout, seed):
    """Probability ratios on both sides of 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rollout[0].shape, generator=generator, dtype=rollout[0].dtype).exp()


def scalar_v_trace(reward, value, next_value, terminated, truncated, valid, ratio, gamma, lam, rho_clip, c_clip):
    """Equation 1 of the paper as the sum that it is: products of weights up to each step's error."""
    advantage, target = torch.zeros_like(reward), value.clone()

    def error(t, n):
        future = 0.0 if terminated[t, n] else gamma * float(next_value[t, n])
        return float(reward[t, n]) + future - float(value[t, n])

    def correction(start, n):
        total, weight = 0.0, 1.0
        for t in range(start, len(reward)):
            if not valid[t, n]:
                break
            total += weight * min(rho_clip, float(ratio[t, n])) * error(t, n)
            weight *= gamma * lam * min(c_clip, float(ratio[t, n]))
            if terminated[t, n] or truncated[t, n]:
                break
        return total

    for n in range(reward.shape[1]):
        for t in range(len(reward)):
            if valid[t, n]:
                cut = t == len(reward) - 1 or terminated[t, n] or truncated[t, n]
                target[t, n] += correction(t, n)
                advantage[t, n] = error(t, n) + (0.0 if cut else gamma * lam * correction(t + 1, n))
    return advantage, target


@law
@given(rollouts(), seeds, unit, unit, clips, clips)
def test_v_trace_is_the_sum_that_defines_it(rollout, seed, gamma, lam, rho_clip, c_clip):
    *data, valid = rollout
    ratio = ratios_for(rollout, seed)
    got = v_trace(*data, ratio, gamma, lam, rho_clip, c_clip, valid)
    for ours, theirs in zip(got, scalar_v_trace(*rollout, ratio, gamma, lam, rho_clip, c_clip), strict=True):
        assert_close(ours, theirs, **EXACT)


@law
@given(rollouts(), unit, unit)
def test_with_a_ratio_of_1_v_trace_is_gae(rollout, gamma, lam):
    *data, valid = rollout
    got = v_trace(*data, torch.ones_like(data[0]), gamma, lam, valid=valid)
    for ours, theirs in zip(got, gae(*data, gamma, lam, valid), strict=True):
        assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize(
    ("ratio", "rho_clip", "c_clip", "expected"),
    [
        # Errors of 1 and 10, gamma 1/2: rho_0 1 + c_0 rho_1 10 / 2, with c_0 = rho_0 = rho_1 but for the clips.
        (1.0, 1.0, 1.0, 6.0),
        (4.0, 1.0, 1.0, 6.0),
        (4.0, 2.0, 1.0, 2 + 10.0),
        (4.0, 1.0, 2.0, 1 + 10.0),
        (4.0, math.inf, math.inf, 4 + 80.0),
        (0.5, 1.0, 1.0, 0.5 + 1.25),
        (0.5, 0.25, 1.0, 0.25 + 0.625),
        (0.5, 1.0, 0.25, 0.5 + 0.625),
    ],
)
def test_either_clip_bounds_its_own_weight_from_above_alone(ratio, rho_clip, c_clip, expected):
    off = torch.zeros(2, 1, dtype=torch.bool)
    data = torch.tensor([[1.0], [10.0]]), torch.zeros(2, 1), torch.zeros(2, 1), off, off
    _, target = v_trace(*data, torch.full((2, 1), ratio), 0.5, 1.0, rho_clip, c_clip)
    assert target[0].item() == expected


@law
@given(rollouts(), seeds, unit)
def test_the_advantage_carries_no_weight_for_its_own_action(rollout, seed, lam):
    *data, valid = rollout
    ratio = ratios_for(rollout, seed)
    before, _ = v_trace(*data, ratio, 0.9, lam, valid=valid)
    for t in range(len(ratio)):
        changed = ratio.clone()
        changed[t] = 0.1
        after, _ = v_trace(*data, changed, 0.9, lam, valid=valid)
        assert torch.equal(before[t:], after[t:])


# -- what all of them promise ------------------------------------------------------------------------------------


def with_seven_steps(*data, valid, ratio):
    return n_step(*data, 0.9, 7, valid)


def with_weights(*data, valid, ratio):
    return v_trace(*data, ratio, 0.9, 0.8, valid=valid)


others = pytest.mark.parametrize("estimate", [with_seven_steps, with_weights])
BAD = [float("nan"), float("inf"), -float("inf")]


@others
@law
@given(rollout=rollouts(), seed=seeds, bad=st.sampled_from(BAD))
def test_rows_that_are_not_valid_may_hold_anything(estimate, rollout, seed, bad):
    *data, valid = rollout
    ratio = ratios_for(rollout, seed)
    advantage, target = estimate(*data, valid=valid, ratio=ratio)
    filled = [torch.where(valid, x, bad) for x in data[:3]]
    dirty, dirty_target = estimate(*filled, *data[3:], valid=valid, ratio=torch.where(valid, ratio, bad))
    assert torch.equal(advantage, dirty)
    assert (advantage[~valid] == 0).all()
    assert torch.equal(target[valid], dirty_target[valid])
    assert torch.equal(target[~valid], data[1][~valid])


@others
@law
@given(rollout=rollouts(), seed=seeds, end=st.integers(0, 19), real=st.booleans(), bad=st.sampled_from(BAD))
def test_what_lies_beyond_an_end_stays_there(estimate, rollout, seed, end, real, bad):
    *data, valid = rollout
    end, ratio = min(end, len(valid) - 1), ratios_for(rollout, seed)
    (data[3] if real else data[4])[end] = True
    before = estimate(*data, valid=valid, ratio=ratio)
    for x in (*data[:3], ratio):
        x[end + 1 :] = bad
    if real:
        data[2][end] = bad  # nothing follows
    after = estimate(*data, valid=valid, ratio=ratio)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[: end + 1], other[: end + 1])


@others
@law
@given(rollout=rollouts(torch.float32), seed=seeds, exponent=st.integers(-20, 20))
def test_a_power_of_two_passes_through_all_of_them(estimate, rollout, seed, exponent):
    *data, valid = rollout
    ratio = ratios_for(rollout, seed)
    scaled = [x * 2.0**exponent for x in data[:3]]
    one = estimate(*data, valid=valid, ratio=ratio)
    for ours, theirs in zip(one, estimate(*scaled, *data[3:], valid=valid, ratio=ratio), strict=True):
        assert torch.equal(ours * 2.0**exponent, theirs)


@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3,), (4, 3, 1)])
def test_nothing_broadcasts_in_any_of_them(shape):
    numbers, flags = torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="one shape"):
        n_step(torch.zeros(shape), numbers, numbers, flags, flags)
    with pytest.raises(ValueError, match="one shape"):
        v_trace(*[numbers] * 3, flags, flags, torch.zeros(shape))
    with pytest.raises(ValueError, match="one shape"):
        earlier_rewards(torch.zeros(shape), flags, flags)


# -- what came before, and what others got -----------------------------------------------------------------------


@law
@given(rollouts(), st.sampled_from([0.0, *BAD]))
def test_earlier_rewards_are_those_since_the_episode_began(rollout, filler):
    reward, _, _, terminated, truncated, valid = rollout
    ended = terminated | truncated
    got = earlier_rewards(torch.where(valid, reward, filler), ended, valid)
    for n in range(reward.shape[1]):
        total = 0.0
        for t in range(len(reward)):
            assert got[t, n].item() == pytest.approx(total, rel=1e-12, abs=1e-12)
            total += float(reward[t, n]) if valid[t, n] else 0.0
            if ended[t, n]:
                total = 0.0


@law
@given(rollouts(), st.integers(1, 3), seeds, st.sampled_from([0.0, *BAD]))
def test_the_mean_of_others_is_that_of_the_task_in_all_other_environments(rollout, tasks, seed, filler):
    x, *_, valid = rollout
    task = torch.randint(tasks, x.shape, generator=torch.Generator().manual_seed(seed))
    got = mean_of_others(torch.where(valid, x, filler), [valid & (task == k) for k in range(tasks)])
    steps, envs = x.shape
    for t in range(steps):
        for n in range(envs):
            peers = [
                float(x[s, m])
                for m in range(envs)
                for s in range(steps)
                if m != n and valid[s, m] and task[s, m] == task[t, n]
            ]
            expected = sum(peers) / len(peers) if valid[t, n] and peers else 0.0
            assert got[t, n].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@law
@given(rollouts(torch.float32), st.integers(-20, 20))
def test_a_power_of_two_passes_through_what_others_got_and_what_came_before(rollout, exponent):
    x, *_, terminated, truncated, valid = rollout
    scale = 2.0**exponent
    assert torch.equal(mean_of_others(x * scale, [valid]), mean_of_others(x, [valid]) * scale)
    ended = terminated | truncated
    assert torch.equal(earlier_rewards(x * scale, ended, valid), earlier_rewards(x, ended, valid) * scale)
