"""Heads that predict a distribution: what their targets are, what their values mean, and that they learn."""

import math

import pytest
import torch
from family import DISTRIBUTIONAL, each, features, randomized, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.values import SYMLOG, HLGaussValueHead, TwoHotValueHead

law = settings(deadline=None, max_examples=30)
every_kind = each(DISTRIBUTIONAL)
BINS = pytest.mark.parametrize(("bins", "limit"), [(255, 20.0), (64, 10.0), (3, 2.0), (2, 0.5)])


def target_distributions(kind, y, dtype=torch.float64, **options):
    """The distributions `[n, bins]` that targets `[n]` stand for, read off the gradient of the loss.

    A cross-entropy's gradient with respect to the logits is prediction minus target. One-hot features make each sample
    see a column of the weight alone, and a new head predicts the uniform distribution.
    """
    head = kind(len(y), dtype=dtype, **options)
    (gradient,) = torch.autograd.grad(head.loss(torch.eye(len(y), dtype=dtype), y).sum(), head.linear.weight)
    return 1 / head.bins - gradient.T


def predicting(kind, p, **options):
    """A head that predicts the distribution `p` whatever it sees."""
    head = kind(4, dtype=torch.float64, bins=len(p), **options)
    with torch.no_grad():
        head.linear.bias.copy_(p.clamp(min=1e-300).log())
    return head


def values_of_bins(bins, limit):
    return SYMLOG.inverse(torch.linspace(-limit, limit, bins, dtype=torch.float64))


def two_hot(y, values):
    """By hand: the two values around `y` share it such that their mean is `y`."""
    p, y = torch.zeros_like(values), min(max(y, values[0].item()), values[-1].item())
    k = next(k for k in range(len(values) - 1) if y <= values[k + 1])
    p[k + 1] = (y - values[k]) / (values[k + 1] - values[k])
    p[k] = 1 - p[k + 1]
    return p


def gaussian(z, bins, limit, smoothing):
    """By hand: a Gaussian around `z`, cut into bins, the tails outside cut off."""
    edges = torch.linspace(-limit, limit, bins + 1, dtype=torch.float64)
    deviation = smoothing * 2 * limit / bins
    z = min(max(z, -limit), limit)
    mass = 0.5 * torch.special.erf((edges - z) / (deviation * math.sqrt(2))).diff()
    return mass / mass.sum()


# -- two-hot -----------------------------------------------------------------------------------------------------


@BINS
@law
@given(data=st.data())
def test_a_two_hot_target_lies_on_the_two_neighbours_and_has_the_targets_mean(bins, limit, data):
    values = values_of_bins(bins, limit)
    y = SYMLOG.inverse(torch.tensor([data.draw(st.floats(-limit, limit))], dtype=torch.float64))
    p = two_hot(y.item(), values)
    assert (p @ values).item() == pytest.approx(y.item(), rel=1e-12, abs=1e-15)
    assert_close(target_distributions(TwoHotValueHead, y, bins=bins, limit=limit)[0], p, rtol=0, atol=1e-10)


@BINS
def test_a_two_hot_target_at_a_bin_is_that_bin_and_one_beyond_the_ends_is_the_end(bins, limit):
    values = values_of_bins(bins, limit)
    beyond = torch.tensor([-1e30, 1.5 * values[0], 1.5 * values[-1], 1e30], dtype=torch.float64)
    p = target_distributions(TwoHotValueHead, torch.cat((values, beyond)), bins=bins, limit=limit)
    expected = torch.eye(bins, dtype=torch.float64)
    assert_close(p, torch.cat((expected, expected[[0, 0, -1, -1]])), rtol=0, atol=1e-12)


@law
@given(seeds)
def test_the_two_hot_loss_is_the_cross_entropy_against_the_dense_target(seed):
    torch.manual_seed(seed)
    head, x = randomized(TwoHotValueHead, bins=41, limit=8.0), features(6)
    y = SYMLOG.inverse(9 * torch.randn(6, dtype=torch.float64))
    p = torch.stack([two_hot(v, values_of_bins(41, 8.0)) for v in y.tolist()])
    dense = torch.nn.functional.cross_entropy(head.linear(x), p, reduction="none")
    assert_close(head.loss(x, y), dense, rtol=1e-11, atol=1e-11)


@law
@given(seeds, st.floats(-11, 11))
def test_the_two_hot_loss_is_least_where_the_prediction_is_the_target_and_the_value_is_then_exact(seed, z):
    torch.manual_seed(seed)
    x, y = features(1), SYMLOG.inverse(torch.tensor([z], dtype=torch.float64))
    p = two_hot(y.item(), values_of_bins(25, 12.0))
    best, other = predicting(TwoHotValueHead, p, limit=12.0), randomized(TwoHotValueHead, bins=25, limit=12.0)
    loss = best.loss(x, y)
    assert loss.item() == pytest.approx(torch.special.entr(p).sum().item(), rel=1e-9, abs=1e-12)
    assert loss < other.loss(x, y)
    assert torch.autograd.grad(loss, best.linear.bias)[0].abs().max() < 1e-12
    assert best(x).item() == pytest.approx(y.item(), rel=1e-10, abs=1e-10)


def test_the_two_hot_value_is_a_mean_in_reward_units_and_its_normalized_value_symlog_of_that():
    p = torch.tensor([0.0, 0.25, 0.25, 0.0, 0.5], dtype=torch.float64)
    head, values = predicting(TwoHotValueHead, p, limit=4.0), values_of_bins(5, 4.0)
    mean = (0.25 * values[1] + 0.5 * values[4]).item()
    assert head(torch.zeros(4)[None].double()).item() == pytest.approx(mean, rel=1e-14)
    assert head.forward_normalized(torch.zeros(1, 4).double()).item() == pytest.approx(math.log1p(mean), rel=1e-14)


# -- histogram of a Gaussian -------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.1, 0.75, 3.0])
@BINS
@law
@given(data=st.data())
def test_an_hl_gauss_target_is_a_gaussian_cut_into_bins(bins, limit, smoothing, data):
    z = data.draw(st.floats(-1.2 * limit, 1.2 * limit))
    y = torch.tensor([z], dtype=torch.float64)
    (p,) = target_distributions(HLGaussValueHead, y, bins=bins, limit=limit, smoothing=smoothing)
    assert_close(p, gaussian(z, bins, limit, smoothing), rtol=0, atol=1e-12)
    assert p.sum().item() == pytest.approx(1, rel=1e-12)


@law
@given(seeds, st.floats(-9, 9))
def test_the_hl_gauss_loss_is_the_cross_entropy_against_the_dense_target_under_the_statistics(seed, exponent):
    torch.manual_seed(seed)
    head, x = randomized(HLGaussValueHead, bins=41, limit=8.0), features(6)
    y = 10**exponent * (torch.randn(30, dtype=torch.float64) + 3)
    head.update(y)
    z = (y[:6] - y.mean()) / y.std(correction=0)
    p = torch.stack([gaussian(v, 41, 8.0, 0.75) for v in z.tolist()])
    dense = torch.nn.functional.cross_entropy(head.linear(x), p, reduction="none")
    assert_close(head.loss(x, y[:6]), dense, rtol=1e-9, atol=1e-9)


@law
@given(st.floats(-7, 7))
def test_the_mean_of_an_hl_gauss_target_is_the_target(z):
    (p,) = target_distributions(HLGaussValueHead, torch.tensor([z], dtype=torch.float64))
    centres = torch.linspace(-10 + 10 / 101, 10 - 10 / 101, 101, dtype=torch.float64)
    width = 20 / 101
    assert (p @ centres).item() == pytest.approx(z, abs=1e-4 * width)
    assert (p @ (centres - z).square()).item() == pytest.approx((0.75**2 + 1 / 12) * width**2, rel=1e-3)


def test_hl_gauss_targets_beyond_the_ends_count_as_the_ends():
    y = torch.tensor([-10.0, -11.0, -1e30, 10.0, 11.0, 1e30], dtype=torch.float64)
    p = target_distributions(HLGaussValueHead, y)
    assert torch.equal(p[1:3], p[:1].expand(2, -1))
    assert torch.equal(p[4:], p[3:4].expand(2, -1))
    assert_close(p[0], p[3].flip(0), rtol=0, atol=1e-15)
    assert p[0].argmax() == 0


@pytest.mark.parametrize("z", [-4.0, 0.3, 5.0])
def test_the_hl_gauss_value_is_exact_where_the_prediction_is_the_target(z):
    head = predicting(HLGaussValueHead, gaussian(z, 101, 10.0, 0.75))
    head.adopt(torch.tensor([50.0, 150.0]))
    assert head(features(1)).item() == pytest.approx(100 + 50 * z, abs=1e-3)
    assert head.forward_normalized(features(1)).item() == pytest.approx(z, abs=2e-5)


# -- both --------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("bins", [2, 3, 100, 255])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_new_distributional_head_predicts_exactly_0_whatever_its_bins(kind, bins, dtype):
    head = kind(4, 2, bins=bins, dtype=dtype)
    assert not head(1e3 * torch.randn(5, 4).to(dtype)).any()
    assert head.linear.out_features == 2 * bins
    assert head.logits(torch.randn(5, 3, 4).to(dtype)).shape == (5, 3, 2, bins)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distributions_are_computed_in_float32_at_least(kind, dtype):
    y = torch.tensor([-900.0, -3.7, 0.01, 3.3, 41.5, 900.0])
    p = target_distributions(kind, y, dtype)
    exact = target_distributions(kind, y.double())
    assert_close(p.double(), exact, rtol=0, atol=2e-4 if dtype == torch.float32 else torch.finfo(dtype).eps)
    assert kind(6, dtype=dtype).logits(torch.eye(6, dtype=dtype)).dtype == torch.float32


@every_kind
@pytest.mark.parametrize(
    "option", [{"bins": 1}, {"bins": 0}, *({"limit": v} for v in (0.0, -1.0, math.inf, math.nan))], ids=str
)
def test_bins_and_limits_out_of_range_are_refused(kind, option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"{name} must be .* not {value}"):
        kind(4, **option)


@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.inf, math.nan])
def test_a_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match="smoothing must be finite and positive"):
        HLGaussValueHead(4, smoothing=smoothing)


@each([TwoHotValueHead, HLGaussValueHead])
def test_a_target_that_is_not_a_number_gives_a_loss_that_is_not(kind):
    head = kind(4)
    assert head.loss(torch.randn(3, 4), torch.tensor([1.0, math.nan, 2.0])).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("kind", "scale"), [(TwoHotValueHead, 100.0), (HLGaussValueHead, 1e-6), (HLGaussValueHead, 1e6)]
)
def test_a_distributional_head_learns_a_known_function(kind, scale):
    torch.manual_seed(0)
    x = torch.rand(256, 1) * 6 - 3
    trunk = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh())
    head = kind(64, bins=51, limit=8.0)
    y = scale * (x.sin() + 0.5 * x)
    head.observe(y)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(trunk(x), y).mean().backward()
        optimizer.step()
    error = (head(trunk(x)) - y).square().mean().sqrt() / y.std()
    assert error < 0.03
