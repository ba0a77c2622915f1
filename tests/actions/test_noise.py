"""Coloured noise, against what its spectrum says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.actions.noise import colored_noise

COLORS = [0.0, 0.5, 1.0, 2.0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(5,), (7, 2), (6, 3, 4)])
def test_white_noise_is_what_torch_draws(shape):
    assert torch.equal(colored_noise(shape, 0.0, generator()), torch.randn(*shape, generator=generator()))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    st.floats(0, 3),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=50)
def test_it_is_finite_of_the_shape_asked_for_and_a_function_of_the_generator(shape, color, seed):
    noise = colored_noise(shape, color, generator(seed))
    assert noise.shape == shape
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert torch.equal(noise, colored_noise(shape, color, generator(seed)))
    assert not torch.equal(noise, colored_noise(shape, color, generator(seed ^ 1)))


@pytest.mark.parametrize("steps", [1, 2, 33])
@pytest.mark.parametrize("color", COLORS)
def test_every_number_is_standard_normal_by_itself(steps, color):
    count = 40_000
    noise = colored_noise((steps, count), color, generator()).double()
    assert_close(noise.mean(1), torch.zeros(steps).double(), rtol=0, atol=4.5 / math.sqrt(count))
    assert_close(noise.square().mean(1), torch.ones(steps).double(), rtol=0, atol=4.5 * math.sqrt(2 / count))
    assert_close(noise.pow(4).mean(1), torch.full((steps,), 3.0).double(), rtol=0, atol=4.5 * math.sqrt(96 / count))


@pytest.mark.parametrize("color", COLORS)
def test_power_falls_with_frequency_to_the_color(color):
    steps = 512
    noise = colored_noise((steps, 1000), color, generator()).double()
    # A window, lest the slow parts leak into the fast ones.
    window = torch.hann_window(steps, dtype=torch.float64).unsqueeze(1)
    power = torch.fft.rfft(noise * window, dim=0).abs().square().mean(1)[4:-4].log()
    frequency = torch.arange(4, 4 + len(power), dtype=torch.float64).log()
    slope = torch.stack((frequency, power)).cov()[0, 1] / frequency.var()
    assert slope.item() == pytest.approx(-color, abs=0.02)


@pytest.mark.parametrize("color", COLORS)
def test_columns_are_independent(color):
    noise = colored_noise((16, 20_000, 2), color, generator()).double()
    # Every step of one column against every step of the other.
    products = noise[..., 0] @ noise[..., 1].T / 20_000
    assert products.abs().max() < 4.5 / math.sqrt(20_000)


def test_steps_are_the_further_apart_the_less_alike_and_the_ends_not_tied():
    steps, count = 32, 20_000
    noise = colored_noise((steps, count), 1.0, generator()).double()
    correlation = (noise[0] * noise).mean(1)
    assert 0.5 < correlation[1] < 1
    assert correlation[8] < correlation[1] - 0.2
    # A whole period would bring the last step as near to the first as the second.
    assert correlation[-1] < correlation[8] - 0.1


@pytest.mark.parametrize("color", COLORS[1:])
def test_steps_covary_as_the_spectrum_says_frequency_zero_included(color):
    steps, count = 16, 40_000
    noise = colored_noise((steps, count), color, generator()).double()
    power = torch.tensor([max(abs(k), 1) ** -color for k in range(-steps + 1, steps + 1)], dtype=torch.float64)
    lag = torch.arange(steps).unsqueeze(1) - torch.arange(steps)
    waves = torch.stack([torch.cos(math.pi * k * lag) for k in torch.arange(-steps + 1, steps + 1) / steps], -1)
    expected = waves.double() @ (power / power.sum())
    assert_close(noise @ noise.T / count, expected, rtol=0, atol=4.5 * math.sqrt(2 / count))
