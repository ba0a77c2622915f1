"""Beta-distributed actions, against torch.distributions and numerical integration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import AffineTransform, Beta, TransformedDistribution, kl_divergence
from torch.testing import assert_close

from levelhead.actions.beta import PROPOSALS, BetaHead, BetaParameters, GammaNoise, gamma

FEATURES, D = 4, 2
BOUNDS = torch.tensor([-1.5, 2.0]), torch.tensor([0.25, 7.0])
LOG_VOLUME = math.log(1.75 * 5)


def head_with(seed=0):
    torch.manual_seed(seed)
    head = BetaHead(FEATURES, *BOUNDS).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def single(alpha, beta, low=-1.5, high=0.25):
    """A head for one dimension whose distribution is known, as `features` are zero."""
    head = BetaHead(1, torch.tensor([low]), torch.tensor([high])).double()
    with torch.no_grad():
        excess = torch.tensor([alpha - 1, beta - 1], dtype=torch.float64)
        head.linear.bias.copy_(excess + (-torch.expm1(-excess)).log())
    return head


def evaluated(head, x):
    return head.evaluate(torch.zeros(*x.shape, 1, dtype=torch.float64), x.unsqueeze(-1))


def cells(count=100_000):
    """Middles of cells of equal width in (0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def distance_from_uniform(x):
    """Kolmogorov and Smirnov's, times the root of the number of samples: above 2.2 once in ten thousand."""
    x = x.sort().values
    rank = torch.arange(len(x), dtype=torch.float64)
    return torch.maximum((x - rank / len(x)).max(), ((rank + 1) / len(x) - x).max()) * math.sqrt(len(x))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_log_probability_entropy_and_kl_are_those_of_torch_in_the_environments_units(shape):
    head = head_with()
    features, other = torch.randn(2, *shape, FEATURES, dtype=torch.float64)
    action = torch.rand(*shape, D, dtype=torch.float64)
    log_prob, entropy, old, _ = head.evaluate(features, action)
    new = head.evaluate(other, action).parameters
    low, high = (bound.double() for bound in BOUNDS)
    to_box = AffineTransform(low, high - low)
    reference = TransformedDistribution(Beta(*old), to_box, validate_args=False)
    assert (old.alpha >= 1).all()
    assert (old.beta >= 1).all()
    assert log_prob.shape == shape
    assert_close(log_prob, reference.log_prob(to_box(action)).sum(-1), rtol=1e-9, atol=1e-9)
    assert_close(head.log_prob(old, action), log_prob, rtol=1e-12, atol=1e-12)
    assert_close(entropy, Beta(*old).entropy().sum(-1) + LOG_VOLUME, rtol=1e-9, atol=1e-9)
    assert_close(head.kl(old, new), kl_divergence(Beta(*old), Beta(*new)).sum(-1), rtol=1e-9, atol=1e-9)
    assert (head.kl(old, new) >= 0).all()
    assert_close(head.kl(old, old), torch.zeros(shape, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.001, 1.001), (1.7, 1.7), (1.2, 6.0), (40.0, 3.0), (300.0, 500.0)])
def test_density_entropy_and_kl_are_those_of_numerical_integration(alpha, beta):
    x = cells()
    head, other = single(alpha, beta), single(2.5, 4.0)
    log_prob, entropy, old, _ = evaluated(head, x)
    weight = log_prob.exp() * 1.75 / len(x)
    new = evaluated(other, x)
    assert weight.sum().item() == pytest.approx(1, abs=1e-4)
    assert entropy[0].item() == pytest.approx(-(weight @ log_prob).item(), abs=1e-4)
    expected = weight @ (log_prob - new.log_prob)
    assert head.kl(old, new.parameters)[0].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("concentration", [1.0, 1.3, 2.0, 10.0, 1e3, 1e6])
def test_gamma_samples_are_spread_as_the_distribution_says(concentration):
    count = 20_000
    noise = BetaHead(1, torch.zeros(1), torch.ones(1)).noise((count,), torch.Generator().manual_seed(0))
    shape = torch.full((count, 2, 1), concentration, dtype=torch.float64)
    first, second = gamma(shape, GammaNoise(*(x.double() for x in noise)))[..., 0].unbind(-1)
    for sample in (first, second):
        assert distance_from_uniform(torch.special.gammainc(shape[:, 0, 0], sample)) < 2.2
    assert torch.stack((first, second)).corrcoef()[0, 1].abs() < 4.5 / math.sqrt(count)


def test_the_first_accepted_proposal_counts_and_the_last_where_none_is():
    shape = torch.tensor([2.0])
    d = 2 - 1 / 3
    # An exponential variable of 0 rejects all but x = 0, whose proposal is d itself; a large one accepts.
    normal = torch.tensor([[0.5, 1.0, -0.5, 0.8, 0.3, -1.0]])
    proposal = d * (1 + normal / math.sqrt(9 * d)) ** 3
    for accepted in range(PROPOSALS):
        exponential = torch.zeros(1, PROPOSALS)
        exponential[:, accepted:] = 10.0
        assert_close(gamma(shape, GammaNoise(normal, exponential)), proposal[:, accepted])
    assert_close(gamma(shape, GammaNoise(normal, torch.zeros(1, PROPOSALS))), proposal[:, -1])
    # Below zero no proposal is one, however large the exponential variable; as the last one it still gives a number.
    negative = torch.full((1, PROPOSALS), -20.0)
    assert 0 < gamma(shape, GammaNoise(negative, torch.full((1, PROPOSALS), 1e6))).item() < 1e-30


def test_proposals_are_rejected_one_time_in_twenty_at_most():
    normal = torch.randn(100_000, 1, 1, generator=torch.Generator().manual_seed(0))
    exponential = torch.empty_like(normal).exponential_(generator=torch.Generator().manual_seed(1))
    # With a second proposal that is recognised, what it is chosen for was rejected.
    marked = GammaNoise(torch.cat((normal, torch.full_like(normal, 9.0)), -1), exponential.expand(-1, -1, 2))
    for concentration in (1.0, 1.5, 30.0):
        d = concentration - 1 / 3
        mark = d * (1 + 9 / math.sqrt(9 * d)) ** 3
        rejected = (gamma(torch.full((100_000, 1), concentration), marked) > 0.999 * mark).double().mean().item()
        assert rejected < 0.05
        assert rejected > 0 or concentration > 1.5


@pytest.mark.parametrize(("alpha", "beta"), [(1.0001, 1.0001), (1.7, 1.7), (1.2, 6.0), (40.0, 3.0), (300.0, 500.0)])
def test_samples_are_spread_as_the_density_says(alpha, beta):
    head, count = single(alpha, beta), 20_000
    noise = head.noise((count,), torch.Generator().manual_seed(0))
    features = torch.zeros(count, 1, dtype=torch.float64)
    action, _ = head.sample(features, GammaNoise(*(x.double() for x in noise)))
    x = cells()
    share = (evaluated(head, x).log_prob.exp() * 1.75 / len(x)).cumsum(0)
    assert distance_from_uniform(share[(action[:, 0] * len(x)).long()]) < 2.2
    received = head.to_environment(action)
    assert_close(received, -1.5 + 1.75 * action, rtol=0, atol=1e-6)


def test_noise_is_a_function_of_the_generator_alone():
    first, again, other = (head_with().noise((4, 2), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    for x, y, z in zip(first, again, other, strict=True):
        assert x.shape == (4, 2, 2, D, PROPOSALS)
        assert torch.equal(x, y)
        assert not torch.equal(x, z)


def test_the_parameters_kept_with_a_sample_are_those_it_was_drawn_from():
    head = head_with()
    features = torch.randn(6, 2, FEATURES, dtype=torch.float64)
    noise = GammaNoise(*(x.double() for x in head.noise((6, 2), torch.Generator().manual_seed(1))))
    action, parameters = head.sample(features, noise)
    one, _ = head.sample(features[3], GammaNoise(*(x[3] for x in noise)))
    assert action.shape == (6, 2, D)
    assert torch.equal(one, action[3])
    evaluated = head.evaluate(features, action)
    for x, y in zip(parameters, evaluated.parameters, strict=True):
        assert torch.equal(x, y)
    assert_close(head.log_prob(parameters, action), evaluated.log_prob, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.7, 1.7), (1.2, 6.0), (40.0, 3.0)])
def test_the_mode_is_the_most_probable_action(alpha, beta):
    head, x = single(alpha, beta), cells()
    best = x[evaluated(head, x).log_prob.argmax()]
    assert head.mode(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(best.item(), abs=1e-5)


def test_the_mode_of_a_uniform_distribution_is_its_middle_and_that_of_a_falling_one_next_to_its_bound():
    head = BetaHead(1, torch.zeros(3), torch.ones(3))
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([-200.0, -200.0, 1.0, -200.0, 1.0, -200.0]))  # softplus(-200) is 0
    mode = head.mode(torch.zeros(1))
    assert mode[0] == 0.5
    assert 0 < mode[1] < 1e-6
    assert 1 > mode[2] > 1 - 1e-6
    assert head.evaluate(torch.zeros(1), mode).log_prob.isfinite()


@pytest.mark.parametrize("excess", [(-200.0, -200.0), (1e6, 1e6), (1e8, -200.0), (-200.0, 1e8), (300.0, 1e5)])
def test_however_narrow_all_is_finite_in_float32_and_samples_lie_strictly_inside(excess):
    head = BetaHead(1, torch.zeros(1), torch.ones(1))
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor(excess))
    features = torch.zeros(1000, 1)
    action, parameters = head.sample(features, head.noise((1000,), torch.Generator().manual_seed(0)))
    assert action.dtype == torch.float32
    assert ((action > 0) & (action < 1)).all()
    log_prob, entropy, new, _ = head.evaluate(features, action)
    moved = BetaParameters(parameters.alpha * 1.1, parameters.beta)
    kl = head.kl(moved, new)
    for x in (log_prob, entropy, kl):
        assert x.dtype == torch.float32
        assert x.isfinite().all()
    (log_prob + entropy + kl).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_log_probabilities_of_narrow_distributions_are_as_good_as_the_parameters_in_float32():
    head = BetaHead(1, torch.zeros(1), torch.ones(1))
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([1e5, 2e5]))
    features = torch.zeros(100, 1)
    action, parameters = head.sample(features, head.noise((100,), torch.Generator().manual_seed(0)))
    expected = Beta(*(x.double() for x in parameters)).log_prob(action.double())[:, 0]
    assert_close(head.log_prob(parameters, action).double(), expected, rtol=1e-5, atol=1e-5)


@given(st.floats(-1e6, 1e6), st.floats(1, 1e6), st.lists(st.floats(0, 1) | st.just(1e-7), min_size=1, max_size=8))
@settings(deadline=None)
def test_what_the_environment_receives_lies_within_bounds_that_float32_may_not_hold(start, width, actions):
    low = torch.tensor([[start]], dtype=torch.float64)
    received = BetaHead(1, low, low + width).to_environment(torch.tensor(actions).unsqueeze(-1))
    assert received.shape == (len(actions), 1, 1)
    assert (received.double() >= low).all()
    assert (received.double() <= low + width).all()


@pytest.mark.parametrize("bound", [math.inf, math.nan, -1.0])
def test_a_dimension_without_a_range_is_named(bound):
    with pytest.raises(ValueError, match=f"dimension 1 .* from 0.0 to {bound}"):
        BetaHead(1, torch.zeros(2), torch.tensor([1.0, bound]))


def test_the_code_is_the_action_between_minus_one_and_one():
    head = BetaHead(FEATURES, *BOUNDS)
    action = torch.rand(9, D)
    low, high = BOUNDS
    assert head.code_dim == D
    assert_close(low + (high - low) * (head.code(action) + 1) / 2, head.to_environment(action))


def test_a_new_head_is_nearly_the_same_everywhere_with_its_mode_near_the_middle():
    torch.manual_seed(0)
    head = BetaHead(64, *BOUNDS)
    parameters = head.evaluate(torch.randn(100, 64), torch.full((100, D), 0.5)).parameters
    for x in parameters:
        assert_close(x, torch.full_like(x, 1 + math.log(2)), rtol=0, atol=0.05)
    assert_close(head.mode(torch.randn(100, 64)), torch.full((100, D), 0.5), rtol=0, atol=0.05)


def test_gradients_are_those_of_finite_differences():
    head = head_with()
    action = torch.rand(3, D, dtype=torch.float64)
    old = BetaParameters(*(1 + torch.rand(2, 3, D, dtype=torch.float64)))

    def outputs(features, *_):
        new = head.evaluate(features, action)
        return new.log_prob, new.entropy, head.kl(old, new.parameters), head.log_prob(new.parameters, action)

    features = torch.randn(3, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (features, *head.parameters()))
