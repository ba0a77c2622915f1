"""The fixed maps between raw values and a squeezed axis."""

import pytest
import torch
from family import D, features, randomized
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.values import SIGNED_SQRT, SYMLOG, Transform, TransformValueHead

law = settings(deadline=None, max_examples=100)
MAPS = {
    "symlog": SYMLOG.forward,
    "symexp": SYMLOG.inverse,
    "signed_sqrt": SIGNED_SQRT.forward,
    "signed_square": SIGNED_SQRT.inverse,
}
every_map = pytest.mark.parametrize("name", MAPS)
every_transform = pytest.mark.parametrize("transform", [SYMLOG, SIGNED_SQRT], ids=["symlog", "signed_sqrt"])


def numbers(most=8.0):
    """Of either sign and any magnitude between 1e-300 and 10^most."""
    return st.builds(lambda sign, exponent: sign * 10.0**exponent, st.sampled_from([-1, 1]), st.floats(-300, most))


def f64(*x):
    return torch.tensor(x, dtype=torch.float64)


@every_transform
@law
@given(numbers())
def test_a_transform_and_its_inverse_undo_each_other_at_any_magnitude(transform, x):
    assert transform.inverse(transform.forward(f64(x))).item() == pytest.approx(x, rel=1e-13, abs=0)
    z = x if transform is SIGNED_SQRT else max(-700.0, min(x, 700.0))
    assert transform.forward(transform.inverse(f64(z))).item() == pytest.approx(z, rel=1e-13, abs=0)


@every_map
@law
@given(x=numbers(2.0))
def test_each_map_is_odd_to_the_last_bit(name, x):
    assert torch.equal(MAPS[name](f64(-x)), -MAPS[name](f64(x)))


@every_map
@law
@given(x=numbers(2.0), gap=st.floats(1e-9, 10.0))
def test_each_map_increases(name, x, gap):
    low, high = MAPS[name](f64(x, x + gap * abs(x)))
    assert low < high


@law
@given(numbers())
def test_symlog_is_the_logarithm_of_1_plus_the_magnitude(x):
    assert_close(SYMLOG.forward(f64(x)), f64(x).sign() * f64(x).abs().log1p(), rtol=1e-15, atol=0)


@law
@given(st.floats(-1e8, 1e8))
def test_the_signed_square_root_is_the_one_of_r2d2(x):
    x = f64(x)
    formula = x.sign() * ((x.abs() + 1).sqrt() - 1) + 1e-3 * x
    assert_close(SIGNED_SQRT.forward(x), formula, rtol=1e-12, atol=1e-15)


@every_map
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_0_stays_0_and_the_slope_there_is_that_of_the_formula(name, dtype):
    x = torch.tensor([0.0, -0.0], dtype=dtype, requires_grad=True)
    y = MAPS[name](x)
    slope = {"symlog": 1.0, "symexp": 1.0, "signed_sqrt": 0.501, "signed_square": 1 / 0.501}[name]
    assert not y.any()
    assert_close(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, slope), rtol=1e-6, atol=0)


@every_map
def test_gradients_are_those_of_finite_differences(name):
    x = f64(-30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0).requires_grad_()
    assert torch.autograd.gradcheck(MAPS[name], x, eps=1e-7, rtol=1e-6)


@every_map
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_are_finite_wherever_the_map_is(name, dtype):
    magnitudes = torch.logspace(-300, 308, 609, dtype=torch.float64).to(dtype)
    x = torch.cat((-magnitudes, magnitudes))
    x = x[x.isfinite()].requires_grad_()
    y = MAPS[name](x)
    finite = y.isfinite()
    gradient = torch.autograd.grad(y.sum(), x)[0][finite]
    assert not y.isnan().any()
    assert finite.sum() > 600
    assert gradient.isfinite().all()
    assert (gradient >= 0).all()


@pytest.mark.parametrize(
    "transform", [SIGNED_SQRT, Transform("asinh", torch.asinh, torch.sinh)], ids=["signed_sqrt", "asinh"]
)
def test_a_head_takes_any_transform(transform):
    torch.manual_seed(0)
    head, x, y = randomized(TransformValueHead, 2, transform=transform), features(5), 100 * torch.randn(5, 2).double()
    assert_close(head(x), transform.inverse(head.linear(x)), rtol=1e-14, atol=0)
    assert_close(head.loss(x, y), (head.linear(x) - transform.forward(y)).square(), rtol=1e-14, atol=0)
    assert torch.equal(TransformValueHead(D, transform=transform)(torch.randn(3, D)), torch.zeros(3, 1))
