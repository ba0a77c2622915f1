"""Squashed Gaussian actions, against numerical integration and torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from levelhead.actions.gaussian import GaussianHead, GaussianParameters
from levelhead.actions.noise import colored_noise
from levelhead.actions.sigma import ConditionedSigma, IndependentSigma, ScheduledSigma
from levelhead.actions.tanh_gaussian import TanhGaussianHead, log_slope
from levelhead.schedules import Schedule

FEATURES, D = 4, 2
BOUNDS = torch.tensor([-1.5, 2.0]), torch.tensor([0.25, 7.0])
SIGMAS = {
    "independent": lambda: IndependentSigma(D),
    "conditioned": lambda: ConditionedSigma(FEATURES, D, hidden=(5,)),
    "scheduled": lambda: ScheduledSigma(D, Schedule(0.7, 0.1)),
}


def randomized(head, seed=0):
    torch.manual_seed(seed)
    for parameter in head.double().parameters():
        torch.nn.init.normal_(parameter)
    return head


def single(mean=0.0, log_std=0.0, low=-1.5, high=0.25):
    """A head for one dimension whose distribution is known, as `features` are zero."""
    head = TanhGaussianHead(1, torch.tensor([low]), torch.tensor([high])).double()
    with torch.no_grad():
        head.linear.bias.fill_(mean)
        head.sigma.log_std.fill_(log_std)
    return head


def evaluated(head, u):
    return head.evaluate(torch.zeros(*u.shape, 1, dtype=torch.float64), u.unsqueeze(-1))


def grid(mean, std, count=4001):
    """Values of u around the mean, and the weight of each under the Gaussian."""
    z = torch.linspace(-12, 12, count, dtype=torch.float64)
    return mean + std * z, (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_probability_is_the_density_of_the_action_in_the_environments_units(sigma, shape):
    head = randomized(TanhGaussianHead(FEATURES, *BOUNDS, SIGMAS[sigma]()))
    features = torch.randn(*shape, FEATURES, dtype=torch.float64)
    action, parameters = head.sample(features, torch.randn(*shape, D, dtype=torch.float64))
    mean, std = parameters.mean, parameters.log_std.exp()
    low, high = (bound.double() for bound in BOUNDS)
    squash = [TanhTransform(cache_size=1), AffineTransform((low + high) / 2, (high - low) / 2, cache_size=1)]
    reference = TransformedDistribution(Normal(mean, std), squash)
    received = squash[1](squash[0](action))
    assert_close(head.to_environment(action), received, rtol=1e-6, atol=1e-6)
    expected = reference.log_prob(received).sum(-1)
    log_prob = head.evaluate(features, action).log_prob
    assert log_prob.shape == shape
    assert_close(log_prob, expected, rtol=1e-9, atol=1e-9)
    assert_close(head.log_prob(parameters, action), log_prob, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-2.0, 0.5), (0.3, 1.0)])
def test_the_density_integrates_to_one_over_the_box(mean, log_std):
    head = single(mean, log_std)
    # Cells that get smaller towards the bounds; the density in each, and its width in the environment's units.
    edges = torch.linspace(-17, 17, 20_001, dtype=torch.float64)
    density = evaluated(head, (edges[1:] + edges[:-1]) / 2).log_prob.exp()
    assert (density @ (0.875 * edges.tanh().diff())).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("log_std", [-3.0, -1.5, -0.5, 0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("mean", [-5.0, -1.2, 0.0, 0.4, 2.5, 5.0])
def test_entropy_is_that_of_numerical_integration(mean, log_std):
    head = single(mean, log_std)
    u, weight = grid(mean, math.exp(log_std))
    log_prob, entropy, *_ = evaluated(head, u)
    assert entropy[0].item() == pytest.approx(-(weight @ log_prob).item(), abs=1e-5)


@given(st.floats(-20, 20), st.floats(-10, 4))
@settings(deadline=None)
def test_the_gradient_of_entropy_is_that_of_numerical_integration(mean, log_std):
    head = single(mean, log_std)
    _, entropy, *_ = evaluated(head, torch.zeros(1, dtype=torch.float64))
    gradients = torch.autograd.grad(entropy.sum(), (head.linear.bias, head.sigma.log_std))
    u, weight = grid(mean, math.exp(log_std))
    # d/du log(1 - tanh(u)^2) = -2 tanh(u); each draw moves by 1 with the mean, and by u - mean with the log-std.
    by_mean, by_log_std = -2 * weight @ u.tanh(), 1 - 2 * weight @ (u.tanh() * (u - mean))
    assert gradients[0].item() == pytest.approx(by_mean.item(), abs=1e-4)
    assert gradients[1].item() == pytest.approx(by_log_std.item(), abs=1e-4, rel=1e-4)


def test_entropy_is_largest_where_the_action_is_nearly_uniform():
    entropy = {log_std: evaluated(single(0.0, log_std), torch.zeros(1)).entropy.item() for log_std in (-2, -0.15, 2)}
    uniform = math.log(0.25 + 1.5)
    assert entropy[-2] < entropy[-0.15] < uniform
    assert entropy[2] < entropy[-0.15]
    assert entropy[-0.15] == pytest.approx(uniform, abs=0.02)


@pytest.mark.parametrize(
    ("old", "new"), [((0.0, 0.0), (0.5, -0.3)), ((-1.0, 0.5), (1.0, 0.7)), ((3.0, -1.0), (3.1, -0.9))]
)
def test_kl_is_that_of_numerical_integration(old, new):
    u, weight = grid(old[0], math.exp(old[1]))
    first, second = evaluated(single(*old), u), evaluated(single(*new), u)
    expected = weight @ (first.log_prob - second.log_prob)
    assert_close(single().kl(first.parameters, second.parameters)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("color", [0.0, 1.0])
def test_samples_fall_below_a_value_as_often_as_the_gaussian_says(color):
    count = 20_000
    head = TanhGaussianHead(1, torch.tensor([-1.5]), torch.tensor([0.25]), color=color).double()
    with torch.no_grad():
        head.linear.bias.fill_(0.4)
        head.sigma.log_std.fill_(-0.5)
    noise = head.noise((2, count), torch.Generator().manual_seed(0))
    assert torch.equal(noise, colored_noise((2, count, 1), color, torch.Generator().manual_seed(0)))
    action, _ = head.sample(torch.zeros(2, count, 1, dtype=torch.float64), noise.double())
    received = head.to_environment(action)
    for step in received:
        for value in (-0.9, -0.4, 0.1):
            u = torch.tensor((value + 0.625) / 0.875, dtype=torch.float64).atanh()
            below = Normal(0.4, math.exp(-0.5)).cdf(u).item()
            spread = math.sqrt(below * (1 - below) / count)
            assert (step < value).double().mean().item() == pytest.approx(below, abs=4.5 * spread)


def test_the_mode_is_the_median():
    head = randomized(TanhGaussianHead(FEATURES, *BOUNDS))
    features = torch.randn(FEATURES, dtype=torch.float64).expand(20_000, FEATURES)
    action, _ = head.sample(features, head.noise((20_000,), torch.Generator().manual_seed(0)).double())
    below = head.to_environment(action) < head.to_environment(head.mode(features))
    assert_close(below.double().mean(0), torch.full((D,), 0.5).double(), rtol=0, atol=4.5 * 0.5 / math.sqrt(20_000))


@pytest.mark.parametrize("u", [0.0, 1e-20, 0.3, 9.0, 20.0, 100.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_of_the_squash_is_exact_however_far_out(u, dtype):
    x = torch.tensor([u, -u], dtype=dtype, requires_grad=True)
    value = log_slope(x)
    # By the exponential, which nothing is subtracted from.
    expected = math.log(4) - 2 * (u + math.log1p(math.exp(-2 * u)))
    assert value.tolist() == pytest.approx([expected] * 2, rel=2e-7, abs=3e-7)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert_close(gradient, -2 * x.detach().tanh(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("u", [30.0, 1e3, 1e5])
def test_far_out_all_is_finite_in_float32_and_log_probability_agrees_with_float64(u):
    head = randomized(TanhGaussianHead(FEATURES, *BOUNDS))
    features, action = torch.randn(2, FEATURES, dtype=torch.float64), torch.tensor([[u, -u], [-u, u]]).double()
    expected = head.evaluate(features, action).log_prob
    head = head.float()
    log_prob, entropy, parameters, _ = head.evaluate(features.float(), action.float())
    assert_close(log_prob.double(), expected, rtol=1e-5, atol=1e-3)
    assert_close(head.log_prob(parameters, action.float()), log_prob, rtol=1e-5, atol=1e-3)
    (log_prob + entropy).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("mean", [0.0, 40.0, 1e4])
@pytest.mark.parametrize("log_std", [-20.0, 0.0, 20.0])
def test_entropy_and_its_gradient_are_finite_for_any_mean_and_std_in_float32(mean, log_std):
    head = single(mean, log_std).float()
    entropy = head.evaluate(torch.zeros(1, 1), torch.zeros(1, 1)).entropy
    entropy.sum().backward()
    assert entropy.isfinite().all()
    assert head.linear.bias.grad.isfinite().all()
    assert head.sigma.log_std.grad.isfinite().all()


@given(
    st.floats(-1e6, 1e6), st.floats(1, 1e6), st.lists(st.floats(-1e3, 1e3) | st.floats(-5, 5), min_size=1, max_size=8)
)
@settings(deadline=None)
def test_what_the_environment_receives_lies_within_bounds_that_float32_may_not_hold(start, width, actions):
    low = torch.tensor([[start]], dtype=torch.float64)
    received = TanhGaussianHead(1, low, low + width).to_environment(torch.tensor(actions).unsqueeze(-1))
    assert received.shape == (len(actions), 1, 1)
    assert (received.double() >= low).all()
    assert (received.double() <= low + width).all()


@pytest.mark.parametrize("bound", [math.inf, math.nan, -1.0])
def test_a_dimension_without_a_range_is_named(bound):
    with pytest.raises(ValueError, match=f"dimension 1 .* from 0.0 to {bound}"):
        TanhGaussianHead(1, torch.zeros(2), torch.tensor([1.0, bound]))


def test_the_code_is_the_action_between_minus_one_and_one():
    head = TanhGaussianHead(FEATURES, *BOUNDS)
    action = torch.randn(9, D) * 3
    low, high = BOUNDS
    assert head.code_dim == D
    assert_close(low + (high - low) * (head.code(action) + 1) / 2, head.to_environment(action))


def test_what_is_stored_is_what_a_gaussian_head_draws():
    torch.manual_seed(0)
    squashed = TanhGaussianHead(FEATURES, *BOUNDS)
    torch.manual_seed(0)
    plain = GaussianHead(FEATURES, *BOUNDS)
    features, noise = torch.randn(5, FEATURES), torch.randn(5, D)
    assert torch.equal(squashed.sample(features, noise)[0], plain.sample(features, noise)[0])
    assert squashed.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gradients_are_those_of_finite_differences(sigma):
    head = randomized(TanhGaussianHead(FEATURES, *BOUNDS, SIGMAS[sigma]()))
    action = torch.randn(3, D, dtype=torch.float64)
    old = GaussianParameters(*torch.randn(2, 3, D, dtype=torch.float64))

    def outputs(features, *_):
        new = head.evaluate(features, action)
        return new.log_prob, new.entropy, head.kl(old, new.parameters), head.log_prob(new.parameters, action)

    features = torch.randn(3, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (features, *head.parameters()))
