"""Returns by native code equal torch's up to rounding, and where nothing may flow nothing does."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead import native
from levelhead.accelerate import NativeGAE, natively
from levelhead.builders import build_policy, build_trainer
from levelhead.estimators import GAE, NStep, VTrace
from levelhead.networks import State
from levelhead.rollout import Rollout
from toys import Noise, config

pytestmark = pytest.mark.skipif(not native.available(), reason="built without a compiler")
law = settings(deadline=None, max_examples=60)
unit = st.floats(0, 1) | st.sampled_from([0.0, 1.0])


def rollout_of(shape=(5, 2), seed=0, shares=(0.2, 0.2, 0.2), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, *shape, generator=generator).to(dtype)
    terminated, truncated, invalid = torch.rand(3, *shape, generator=generator) < torch.tensor(shares).view(3, 1, 1)
    nothing = torch.empty(0)
    return Rollout(
        nothing, nothing, None, nothing, nothing, reward, terminated, truncated, ~invalid, nothing,
        State((), (), ()), value, next_value, nothing,
    )  # fmt: skip


@law
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 9)),
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.sampled_from([0.0, 0.2, 0.6])] * 3),
    unit,
    unit,
)
def test_it_equals_torch(shape, seed, shares, gamma, lam):
    rollout = rollout_of(shape, seed, shares)
    masks = rollout.masks(1)
    for given_, expected in zip(
        NativeGAE(gamma, lam=lam)(rollout, masks), GAE(gamma, lam=lam)(rollout, masks), strict=True
    ):
        assert_close(given_, expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_where_nothing_flows():
    rollout = rollout_of((30, 4), 1)
    over = rollout.terminated | ~rollout.valid
    broken = replace(
        rollout,
        reward=torch.where(rollout.valid, rollout.reward, torch.nan),
        next_value=torch.where(over, torch.inf, rollout.next_value),
    )
    masks = rollout.masks(1)
    for given_, expected in zip(NativeGAE(0.9)(broken, masks), NativeGAE(0.9)(rollout, masks), strict=True):
        assert torch.equal(given_, expected)
    rollout.reward[20] = torch.nan
    native_, torch_ = (estimator(rollout, masks)[0].isfinite() for estimator in (NativeGAE(0.9), GAE(0.9)))
    assert torch.equal(native_, torch_)
    assert not native_.all()


def test_rows_that_do_not_lie_side_by_side_are_read_as_they_are():
    rollout, wide = rollout_of((6, 4), 2), rollout_of((6, 8), 3)
    spread = replace(rollout, reward=wide.reward[:, ::2], valid=wide.valid[:, ::2])
    together = replace(spread, reward=spread.reward.contiguous(), valid=spread.valid.contiguous())
    for given_, expected in zip(NativeGAE(0.9)(spread, []), NativeGAE(0.9)(together, []), strict=True):
        assert torch.equal(given_, expected)


def test_double_precision_goes_to_torch():
    rollout = rollout_of(dtype=torch.float64)
    for given_, expected in zip(NativeGAE(0.9)(rollout, []), GAE(0.9)(rollout, []), strict=True):
        assert torch.equal(given_, expected)


def test_other_estimators_stay_what_they_are():
    assert natively(GAE(0.9, "mean", "episode", 0.5)) == NativeGAE(0.9, "mean", "episode", 0.5)
    for other in (NStep(0.9), VTrace(0.9)):
        assert natively(other) is other


@pytest.mark.parametrize(("engine", "kind"), [("torch", GAE), ("native", NativeGAE), ("auto", NativeGAE)])
def test_the_engine_decides(engine, kind):
    env = Noise()
    policy = build_policy(config(env), env.observation_space, env.action_space)
    assert type(build_trainer(replace(config(env), engine=engine), env, policy).estimator) is kind
