"""The promise: learning doesn't depend on the unit of the reward, nor, once adopted, on its zero."""

from functools import partial

import pytest
import torch
from family import KINDS, LEVEL, SCALAR, each, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.values import SIGNED_SQRT, TransformValueHead

D, K = 5, 2
law = settings(deadline=None, max_examples=15)
every_level_kind = each(LEVEL)
MOVES = pytest.mark.parametrize("move", ["update", "observe"])


def train(kind, move, seed, dtype, scale=1.0, shift=0.0, **clip):
    """A trunk and a head after a few rounds of targets that grow; what they predict, and all of their state."""
    torch.manual_seed(seed)
    trunk = torch.nn.Sequential(torch.nn.Linear(3, D, dtype=dtype), torch.nn.Tanh())
    head = kind(D, K, 0.9, dtype=dtype)
    modules = torch.nn.Sequential(trunk, head)
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.01, eps=1e-3)  # a small eps magnifies rounding errors
    head.track(optimizer)
    for growth in (1, 3, 40, 0.5):
        x = torch.randn(16, 3, dtype=dtype)
        raw = growth * (torch.randn(16, K, dtype=dtype) + x[:, :1]) + 0.25
        mask = torch.rand(16, K) < 0.8
        targets = raw * scale + shift
        old = {"old_values": modules(x).detach(), **clip} if clip else {}
        getattr(head, move)(targets, mask=mask)
        for _ in range(3):
            optimizer.zero_grad()
            head.loss(trunk(x), targets, mask=mask, **old).mean().backward()
            optimizer.step()
    features = trunk(torch.randn(9, 3, dtype=dtype)).detach()
    return head, head(features).detach(), head.forward_normalized(features).detach(), dict(modules.named_parameters())


@every_level_kind
@MOVES
@law
@given(seeds, st.integers(-60, 60), st.booleans())
def test_a_power_of_two_in_the_reward_changes_not_one_bit_of_what_is_learned(kind, move, seed, power, clipped):
    clip, scale = {"clip": 0.2} if clipped and kind in SCALAR else {}, 2.0**power
    head, value, z, parameters = train(kind, move, seed, torch.float32, **clip)
    scaled_head, scaled_value, scaled_z, scaled_parameters = train(kind, move, seed, torch.float32, scale, **clip)
    for name, parameter in parameters.items():
        assert torch.equal(scaled_parameters[name], parameter), name
    assert torch.equal(scaled_z, z)
    assert torch.equal(scaled_value, value * scale)
    assert torch.equal(scaled_head.mean, head.mean * scale)
    assert torch.equal(scaled_head.std, head.std * scale)


@every_level_kind
@MOVES
@law
@given(seeds, st.floats(-30, 30))
def test_any_factor_scales_the_values_and_leaves_the_normalized_ones(kind, move, seed, exponent):
    scale = 10.0**exponent
    _, value, z, _ = train(kind, move, seed, torch.float64)
    _, scaled_value, scaled_z, _ = train(kind, move, seed, torch.float64, scale)
    assert_close(scaled_z, z, rtol=1e-7, atol=1e-7)
    assert_close(scaled_value / scale, value, rtol=1e-7, atol=1e-7)


@every_level_kind
@law
@given(seeds, st.floats(-1e3, 1e3), st.floats(-9, 9))
def test_with_adoption_a_shift_of_the_targets_shifts_the_values_and_nothing_else(kind, seed, shift, exponent):
    scale = 10.0**exponent
    head, value, z, _ = train(kind, "observe", seed, torch.float64)
    moved, shifted, shifted_z, _ = train(kind, "observe", seed, torch.float64, scale, scale * shift)
    assert_close(shifted_z, z, rtol=1e-7, atol=1e-7)
    assert_close(shifted / scale, value + shift, rtol=1e-7, atol=1e-7)
    assert_close(moved.std / scale, head.std, rtol=1e-9, atol=0)


SQUARE_ROOT = pytest.param(partial(TransformValueHead, transform=SIGNED_SQRT), id="signed_sqrt")


@each([*(kind for kind in KINDS if kind not in LEVEL), SQUARE_ROOT])
def test_a_head_whose_layer_or_loss_sees_reward_units_is_outside_the_promise(kind):
    one, other = (train(kind, "update", 0, torch.float64, scale) for scale in (1.0, 2.0**10))
    assert not torch.allclose(other[1] / 2.0**10, one[1], rtol=0.1)
    assert not one[0].scale_free
