"""Real-valued actions, against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from levelhead.actions import GaussianHead, GaussianParameters

FEATURES, D = 4, 3
EXACT = {"rtol": 1e-12, "atol": 1e-12}
BOUNDS = torch.tensor([-1.0, -0.5, -math.inf]), torch.tensor([1.0, 0.25, math.inf])


def head_with(log_std=(0.3, -1.0, 2.0), seed=0):
    torch.manual_seed(seed)
    head = GaussianHead(FEATURES, *BOUNDS).double()
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor(log_std))
    return head


def reference(parameters):
    return Independent(Normal(parameters.mean, parameters.log_std.exp()), 1)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("log_std", [(0.3, -1.0, 2.0), (-5.0, -5.0, 4.0)])
def test_log_probability_entropy_and_kl_are_those_of_torch(shape, log_std):
    head = head_with(log_std)
    features, other = torch.randn(2, *shape, FEATURES, dtype=torch.float64)
    action = torch.randn(*shape, D, dtype=torch.float64)
    log_prob, entropy, old = head.evaluate(features, action)
    assert_close(old.mean, head.linear(features), **EXACT)
    assert_close(log_prob, reference(old).log_prob(action), rtol=1e-10, atol=1e-10)
    assert_close(entropy, reference(old).entropy(), **EXACT)
    assert_close(head.log_prob(old, action), log_prob, rtol=1e-10, atol=1e-10)
    new = GaussianParameters(head.linear(other), old.log_std + torch.randn(D, dtype=torch.float64))
    assert_close(head.kl(old, new), kl_divergence(reference(old), reference(new)), rtol=1e-9, atol=1e-9)
    assert (head.kl(old, new) >= 0).all()
    assert_close(head.kl(old, old), torch.zeros(shape, dtype=torch.float64), **EXACT)


def test_entropy_is_summed_over_dimensions_then_averaged_over_samples():
    per_dimension = torch.tensor([[0.5, 0.6, 0.7], [0.4, 0.3, 0.2]], dtype=torch.float64)
    entropies = []
    for row in per_dimension:
        # The entropy of one dimension is its log-std plus that of a standard normal.
        head = head_with((row - 0.5 * math.log(2 * math.pi * math.e)).tolist())
        features, action = torch.randn(FEATURES, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
        entropies.append(head.evaluate(features, action).entropy)
    mean = torch.stack(entropies).mean()
    assert_close(mean, per_dimension.sum(1).mean(), rtol=1e-6, atol=0.0)
    assert mean.item() == pytest.approx(1.35, rel=1e-6)


def test_samples_have_the_mean_and_std_that_the_parameters_say():
    head, count = head_with(), 20_000
    features = torch.randn(FEATURES, dtype=torch.float64).expand(count, FEATURES)
    noise = head.noise((count,), torch.Generator().manual_seed(0)).double()
    action, parameters = head.sample(features, noise)
    deviation = (action - parameters.mean) / parameters.log_std.exp()
    assert_close(deviation, noise, rtol=1e-9, atol=1e-9)
    assert_close(deviation.mean(0), torch.zeros(D).double(), rtol=0, atol=4 / math.sqrt(count))
    assert_close(deviation.T.cov(), torch.eye(D).double(), rtol=0, atol=0.05)
    assert_close(action.std(0), head.log_std.exp(), rtol=0.03, atol=0.0)


def test_the_density_is_that_of_the_action_as_drawn_and_only_the_environment_sees_it_clipped():
    head = head_with()
    features = torch.randn(500, FEATURES, dtype=torch.float64)
    action, parameters = head.sample(features, head.noise((500,), torch.Generator().manual_seed(0)).double())
    low, high = (bound.double() for bound in BOUNDS)
    clipped = head.to_environment(action)
    outside = ((action < low) | (action > high)).any(-1)
    assert outside.any()
    assert torch.equal(clipped, action.clamp(low, high))
    assert torch.equal(clipped[~outside], action[~outside])
    as_drawn, as_clipped = reference(parameters).log_prob(action), reference(parameters).log_prob(clipped)
    for log_prob in (head.log_prob(parameters, action), head.evaluate(features, action).log_prob):
        assert_close(log_prob, as_drawn, rtol=1e-10, atol=1e-10)
        assert not torch.isclose(log_prob, as_clipped)[outside].any()


def test_the_mode_is_the_mean():
    head = head_with()
    features = torch.randn(5, FEATURES, dtype=torch.float64)
    assert torch.equal(head.mode(features), head.evaluate(features, head.mode(features)).parameters.mean)


def test_the_log_std_starts_where_it_is_told():
    head = GaussianHead(FEATURES, *BOUNDS, log_std=-0.7)
    assert_close(head.log_std.detach(), torch.full((D,), -0.7))


def test_evaluate_and_stored_parameters_agree_in_float32_too():
    head = head_with((0.0, -4.0, 3.0)).float()
    features = torch.randn(1000, FEATURES)
    action, parameters = head.sample(features, head.noise((1000,), torch.Generator().manual_seed(0)))
    assert_close(head.evaluate(features, action).log_prob, head.log_prob(parameters, action), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    head = head_with()
    action = torch.randn(3, D, dtype=torch.float64)
    old = GaussianParameters(*torch.randn(2, 3, D, dtype=torch.float64))

    def outputs(features, *_):
        new = head.evaluate(features, action)
        return new.log_prob, new.entropy, head.kl(old, new.parameters), head.log_prob(new.parameters, action)

    features = torch.randn(3, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (features, *head.parameters()))
