"""One choice out of n, against torch.distributions and against enumeration."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from levelhead.actions import CategoricalHead

D, N = 3, 5
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def head_with(seed=0, spread=1.0):
    torch.manual_seed(seed)
    head = CategoricalHead(D, N).double()
    torch.nn.init.normal_(head.linear.weight, std=spread)
    torch.nn.init.normal_(head.linear.bias, std=spread)
    return head


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_log_probability_entropy_and_kl_are_those_of_torch(shape, spread):
    head = head_with(spread=spread)
    features, other = torch.randn(2, *shape, D, dtype=torch.float64)
    action = torch.randint(N, shape)
    log_prob, entropy, logits = head.evaluate(features, action)
    reference, moved = Categorical(logits=head.linear(features)), Categorical(logits=head.linear(other))
    assert_close(log_prob, reference.log_prob(action), **EXACT)
    assert_close(entropy, reference.entropy(), **EXACT)
    assert_close(head.log_prob(logits, action), log_prob, **EXACT)
    new = head.evaluate(other, action).parameters
    assert_close(head.kl(logits, new), kl_divergence(reference, moved), rtol=1e-9, atol=1e-12)
    assert (head.kl(logits, new) >= 0).all()
    assert_close(head.kl(new, new), torch.zeros(shape, dtype=torch.float64), **EXACT)


def test_entropy_and_kl_are_what_summing_over_every_action_gives():
    head = head_with()
    features, other = torch.randn(2, 4, D, dtype=torch.float64)

    def every_log_prob(x):
        return torch.stack([head.evaluate(x, torch.full((4,), a)).log_prob for a in range(N)])

    p, q = every_log_prob(features), every_log_prob(other)
    old, new = (head.evaluate(x, torch.zeros(4, dtype=torch.int64)) for x in (features, other))
    assert_close(p.exp().sum(0), torch.ones(4, dtype=torch.float64), **EXACT)
    assert_close(old.entropy, -(p.exp() * p).sum(0), **EXACT)
    assert_close(head.kl(old.parameters, new.parameters), (p.exp() * (p - q)).sum(0), **EXACT)


def test_samples_come_as_often_as_their_probability_says():
    head, count = head_with(), 20_000
    features = torch.randn(D, dtype=torch.float64).expand(count, D)
    noise = head.noise((count,), torch.Generator().manual_seed(0))
    action, logits = head.sample(features, noise)
    expected = count * logits[0].softmax(-1)
    chi_square = ((torch.bincount(action, minlength=N) - expected).square() / expected).sum()
    assert chi_square < 23.5  # 4 degrees of freedom: one seed in ten thousand lies beyond
    assert chi_square > 0.05


def test_the_parameters_kept_with_a_sample_are_those_it_was_drawn_from():
    head = head_with()
    features = torch.randn(6, 2, D, dtype=torch.float64)
    action, parameters = head.sample(features, head.noise((6, 2), torch.Generator().manual_seed(1)))
    evaluated = head.evaluate(features, action)
    assert torch.equal(parameters, evaluated.parameters)
    assert_close(head.log_prob(parameters, action), evaluated.log_prob, **EXACT)


def test_the_mode_is_the_most_probable_action():
    head = head_with()
    features = torch.randn(20, D, dtype=torch.float64)
    every = torch.stack([head.evaluate(features, torch.full((20,), a)).log_prob for a in range(N)])
    assert torch.equal(head.mode(features), every.argmax(0))


@pytest.mark.parametrize("start", [0, 3, -2])
def test_actions_are_counted_from_the_environments_first_one_and_stored_from_zero(start):
    head = CategoricalHead(D, N, start)
    action, _ = head.sample(torch.zeros(200, D), head.noise((200,), torch.Generator().manual_seed(0)))
    assert set(action.tolist()) == set(range(N))
    assert set(head.to_environment(action).tolist()) == set(range(start, start + N))


def test_a_new_head_is_nearly_uniform():
    probabilities = CategoricalHead(64, N).linear(torch.randn(100, 64)).softmax(-1)
    assert_close(probabilities, torch.full_like(probabilities, 1 / N), rtol=0, atol=0.05)


def test_noise_is_a_function_of_the_generator_alone():
    first, again, other = (head_with(0).noise((4, 2), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (4, 2, N)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_gradients_are_those_of_finite_differences():
    head = head_with()
    action = torch.randint(N, (3,))
    old = torch.randn(3, N, dtype=torch.float64)

    def outputs(features, *_):
        new = head.evaluate(features, action)
        return new.log_prob, new.entropy, head.kl(old, new.parameters), head.log_prob(new.parameters, action)

    features = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (features, *head.parameters()))
