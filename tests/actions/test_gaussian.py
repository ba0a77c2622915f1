"""Real-valued actions, against torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from levelhead.actions.gaussian import GaussianHead, GaussianParameters
from levelhead.actions.noise import colored_noise
from levelhead.actions.sigma import ConditionedSigma, IndependentSigma, ScheduledSigma
from levelhead.schedules import Schedule

FEATURES, D = 4, 3
EXACT = {"rtol": 1e-12, "atol": 1e-12}
BOUNDS = torch.tensor([-1.0, -0.5, -math.inf]), torch.tensor([1.0, 0.25, math.inf])
FINITE = torch.tensor([-1.0, -0.5, 3.0]), torch.tensor([1.0, 0.25, 40.0])
SIGMAS = {
    "independent": lambda: IndependentSigma(D),
    "bounded": lambda: IndependentSigma(D, bounds=(-3.0, 1.0)),
    "conditioned": lambda: ConditionedSigma(FEATURES, D),
    "layered": lambda: ConditionedSigma(FEATURES, D, hidden=(5,)),
    "scheduled": lambda: ScheduledSigma(D, Schedule(0.7, 0.1)),
}


def randomized(head, seed=0):
    torch.manual_seed(seed)
    for parameter in head.double().parameters():
        torch.nn.init.normal_(parameter)
    return head


def head_with(log_std=(0.3, -1.0, 2.0), seed=0):
    head = randomized(GaussianHead(FEATURES, *BOUNDS), seed)
    with torch.no_grad():
        head.sigma.log_std.copy_(torch.tensor(log_std))
    return head


def reference(parameters):
    return Independent(Normal(parameters.mean, parameters.log_std.exp()), 1)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("log_std", [(0.3, -1.0, 2.0), (-5.0, -5.0, 4.0)])
def test_log_probability_entropy_and_kl_are_those_of_torch(shape, log_std):
    head = head_with(log_std)
    features, other = torch.randn(2, *shape, FEATURES, dtype=torch.float64)
    action = torch.randn(*shape, D, dtype=torch.float64)
    log_prob, entropy, old, _ = head.evaluate(features, action)
    assert_close(old.mean, head.linear(features), **EXACT)
    assert_close(log_prob, reference(old).log_prob(action), rtol=1e-10, atol=1e-10)
    assert_close(entropy, reference(old).entropy(), **EXACT)
    assert_close(head.log_prob(old, action), log_prob, rtol=1e-10, atol=1e-10)
    new = GaussianParameters(head.linear(other), old.log_std + torch.randn(D, dtype=torch.float64))
    assert_close(head.kl(old, new), kl_divergence(reference(old), reference(new)), rtol=1e-9, atol=1e-9)
    assert (head.kl(old, new) >= 0).all()
    assert_close(head.kl(old, old), torch.zeros(shape, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_whatever_the_sigma_the_distribution_is_the_one_that_it_says(sigma, shape):
    head = randomized(GaussianHead(FEATURES, *BOUNDS, SIGMAS[sigma]()))
    features = torch.randn(*shape, FEATURES, dtype=torch.float64)
    noise = torch.randn(*shape, D, dtype=torch.float64)
    action, parameters = head.sample(features, noise)
    evaluated = head.evaluate(features, action)
    expected = Independent(Normal(head.linear(features), head.sigma(features).exp().expand(*shape, D)), 1)
    assert_close((action - parameters.mean) / parameters.log_std.exp(), noise, rtol=1e-9, atol=1e-9)
    assert_close(evaluated.log_prob, expected.log_prob(action), rtol=1e-10, atol=1e-10)
    assert_close(evaluated.entropy, expected.entropy(), **EXACT)
    assert_close(head.log_prob(parameters, action), evaluated.log_prob, rtol=1e-10, atol=1e-10)
    for x, y in zip(parameters, evaluated.parameters, strict=True):
        assert x.shape == (*shape, D)
        assert torch.equal(x, y)


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
    assert_close(action.std(0), head.sigma.log_std.exp(), rtol=0.03, atol=0.0)


@pytest.mark.parametrize("color", [0.0, 1.0])
def test_noise_has_the_color_asked_for_along_the_first_axis(color):
    head = GaussianHead(FEATURES, *BOUNDS, color=color)
    noise = head.noise((50, 4), torch.Generator().manual_seed(3))
    assert torch.equal(noise, colored_noise((50, 4, D), color, torch.Generator().manual_seed(3)))
    white = torch.randn(50, 4, D, generator=torch.Generator().manual_seed(3))
    assert torch.equal(noise, white) == (color == 0)


def test_the_noise_of_a_single_sample_has_no_time_to_be_colored_over():
    noise = GaussianHead(FEATURES, *BOUNDS, color=2.0).noise((), torch.Generator().manual_seed(3))
    assert torch.equal(noise, torch.randn(D, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("color", [-0.1, math.inf, math.nan])
def test_a_color_that_is_none_is_refused(color):
    with pytest.raises(ValueError, match="color"):
        GaussianHead(FEATURES, *BOUNDS, color=color)


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


def test_rescaled_actions_go_from_minus_one_to_one_and_keep_their_density():
    head = randomized(GaussianHead(FEATURES, *FINITE, bounds="rescale"))
    rows = torch.tensor([[-1.0] * D, [0.0] * D, [0.5] * D, [1.0] * D, [-1.5] * D, [1e6] * D], dtype=torch.float64)
    low, high = (bound.double() for bound in FINITE)
    share = torch.tensor([[0.0], [0.5], [0.75], [1.0], [0.0], [1.0]], dtype=torch.float64)
    assert_close(head.to_environment(rows), low + share * (high - low), rtol=1e-6, atol=1e-6)
    features = torch.randn(len(rows), FEATURES, dtype=torch.float64)
    log_prob, entropy, parameters, _ = head.evaluate(features, rows)
    assert_close(log_prob, reference(parameters).log_prob(rows), rtol=1e-10, atol=1e-10)
    assert_close(entropy, reference(parameters).entropy(), **EXACT)


@pytest.mark.parametrize(("low", "high"), [(-math.inf, 1.0), (0.0, math.inf), (0.5, 0.5), (1.0, -1.0), (0.0, math.nan)])
def test_a_dimension_that_cannot_be_rescaled_is_named(low, high):
    with pytest.raises(ValueError, match=f"dimension 1 .* from {low} to {high}"):
        GaussianHead(FEATURES, torch.tensor([0.0, low]), torch.tensor([1.0, high]), bounds="rescale")


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(1, 1e6)), min_size=1, max_size=4),
    st.lists(st.floats(-1e9, 1e9) | st.floats(-1, 1), min_size=1, max_size=8),
    st.sampled_from(["clip", "rescale"]),
)
@settings(deadline=None)
def test_what_the_environment_receives_lies_within_bounds_that_float32_may_not_hold(ranges, actions, bounds):
    low = torch.tensor([start for start, _ in ranges], dtype=torch.float64)
    high = low + torch.tensor([width for _, width in ranges], dtype=torch.float64)
    action = torch.tensor(actions).unsqueeze(-1).expand(-1, len(ranges))
    received = GaussianHead(FEATURES, low, high, bounds=bounds).to_environment(action)
    assert received.dtype == torch.float32
    assert (received.double() >= low).all()
    assert (received.double() <= high).all()


def test_the_largest_bounds_do_not_overflow():
    limit = torch.finfo(torch.float32).max
    head = GaussianHead(FEATURES, torch.full((1,), -limit), torch.full((1,), limit), bounds="rescale")
    received = head.to_environment(torch.tensor([[-2.0], [-0.5], [0.0], [1.0]]))
    assert_close(received, torch.tensor([[-limit], [-0.5 * limit], [0.0], [limit]]))


@pytest.mark.parametrize("bounds", ["clip", "rescale"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 2, 1)])
def test_actions_are_stored_flat_and_reach_the_environment_in_its_shape(shape, bounds):
    low = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    head = GaussianHead(FEATURES, low, low + 0.5, bounds=bounds)
    action, _ = head.sample(torch.randn(5, 2, FEATURES), head.noise((5, 2), torch.Generator()))
    assert action.shape == (5, 2, math.prod(shape))
    received = head.to_environment(action)
    assert received.shape == (5, 2, *shape)
    assert ((received >= low) & (received <= low + 0.5)).all()
    assert head.to_environment(action[0, 0]).shape == shape


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\) differ"):
        GaussianHead(FEATURES, torch.zeros(3), torch.ones(1))
    with pytest.raises(ValueError, match="sigma of 1 dimensions"):
        GaussianHead(FEATURES, *BOUNDS, IndependentSigma(1))


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=2))
@settings(deadline=None)
def test_the_code_of_an_action_is_within_one_and_in_the_actions_order(actions):
    head = GaussianHead(FEATURES, torch.full((1,), -math.inf), torch.full((1,), math.inf))
    code = head.code(torch.tensor(sorted(actions)).unsqueeze(-1))
    assert code.shape == (2, head.code_dim)
    assert code.abs().max() <= 1
    assert code[0] <= code[1]


def test_codes_of_actions_far_out_still_differ():
    head = GaussianHead(FEATURES, *BOUNDS)
    code = head.code(torch.tensor([[-1e4] * D, [-20.0] * D, [0.0] * D, [20.0] * D, [1e4] * D]))
    assert (code.diff(dim=0) > 0).all()


def test_the_mode_is_the_mean():
    head = head_with()
    features = torch.randn(5, FEATURES, dtype=torch.float64)
    assert torch.equal(head.mode(features), head.evaluate(features, head.mode(features)).parameters.mean)


def test_without_a_sigma_the_std_is_a_free_parameter_that_starts_at_one():
    head = GaussianHead(FEATURES, *BOUNDS)
    assert torch.equal(head.sigma.log_std.detach(), torch.zeros(D))
    names = [name for name, _ in head.named_parameters()]
    assert names == ["sigma.log_std", "linear.weight", "linear.bias"]


def test_advancing_the_head_moves_the_schedule_of_its_sigma():
    head = GaussianHead(FEATURES, *BOUNDS, ScheduledSigma(D, Schedule(1.0, 0.1)))
    features, noise = torch.randn(5, FEATURES), torch.ones(5, D)
    before, _ = head.sample(features, noise)
    head.advance(1.0)
    after, parameters = head.sample(features, noise)
    assert_close(before - after, torch.full((5, D), 0.9))
    assert_close(parameters.log_std.exp(), torch.full((5, D), 0.1))


def test_evaluate_and_stored_parameters_agree_in_float32_too():
    head = head_with((0.0, -4.0, 3.0)).float()
    features = torch.randn(1000, FEATURES)
    action, parameters = head.sample(features, head.noise((1000,), torch.Generator().manual_seed(0)))
    assert_close(head.evaluate(features, action).log_prob, head.log_prob(parameters, action), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gradients_are_those_of_finite_differences(sigma):
    head = randomized(GaussianHead(FEATURES, *BOUNDS, SIGMAS[sigma]()))
    action = torch.randn(3, D, dtype=torch.float64)
    old = GaussianParameters(*torch.randn(2, 3, D, dtype=torch.float64))

    def outputs(features, *_):
        new = head.evaluate(features, action)
        return new.log_prob, new.entropy, head.kl(old, new.parameters), head.log_prob(new.parameters, action)

    features = torch.randn(3, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (features, *head.parameters()))
