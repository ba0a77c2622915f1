"""One choice out of n and several at once, against torch.distributions and against enumeration, masked and not."""

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from levelhead.actions import CategoricalHead, MultiCategoricalHead
from levelhead.errors import ConfigError

D, N = 3, 5
EXACT = {"rtol": 1e-12, "atol": 1e-12}
HEADS = {
    "one": lambda: CategoricalHead(D, N),
    "one of one": lambda: CategoricalHead(D, 1),
    "several": lambda: MultiCategoricalHead(D, (2, 4, 1, 3)),
    "in a grid": lambda: MultiCategoricalHead(D, (3, 2, 2, 2, 1, 4), shape=(2, 3)),
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])


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
    new = head.evaluate(features, action)
    log_prob, entropy, logits = new.log_prob, new.entropy, new.parameters
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


# -- masks, and several choices at once --------------------------------------------------------------------------------


def drawn(make, seed=0, spread=1.0):
    """A head in double precision whose logits differ."""
    torch.manual_seed(seed)
    head = make().double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return head


def counts_of(head):
    return getattr(head, "actions", (head.code_dim,))


def every_action(head):
    """`[A, ...]`: all there are, legal or not."""
    actions = torch.tensor(list(itertools.product(*map(range, counts_of(head)))))
    return actions if isinstance(head, MultiCategoricalHead) else actions.squeeze(1)


def some_mask(head, *shape):
    """Random masks that leave at least one choice everywhere, and forbid some."""
    parts = []
    for n in counts_of(head):
        must = torch.nn.functional.one_hot(torch.randint(n, shape), n).bool()
        parts.append((torch.rand(*shape, n) < 0.4) | must)
    return torch.cat(parts, -1)


def enumerated(head, features, mask):
    """`[L, A]`: log-probability of every action, from the logits of all of them at once; -inf where illegal."""
    counts = torch.tensor(counts_of(head))
    column = every_action(head).view(-1, len(counts)) + counts.cumsum(0) - counts
    score = head.linear(features)[..., column].sum(-1)
    return score.masked_fill(~mask[..., column].all(-1), -torch.inf).log_softmax(-1)


def told(head, features, mask):
    """The same, as the head tells it."""
    actions = every_action(head)
    shape = features.shape[:-1]
    return torch.stack([head.evaluate(features, a.expand((*shape, *a.shape)), mask).log_prob for a in actions], -1)


def setting(make, masked, *shape):
    head = drawn(make)
    features = torch.randn(*shape, D, dtype=torch.float64)
    given = some_mask(head, *shape) if masked else None
    return head, features, given, torch.ones(*shape, head.code_dim, dtype=torch.bool) if given is None else given


@every_head
@masked_or_not
@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_every_legal_action_has_the_probability_that_enumeration_gives_and_every_other_none(make, masked, shape):
    head, features, given, legal = setting(make, masked, *shape)
    expected, log_probs = enumerated(head, features, legal), told(head, features, given)
    possible = expected > -torch.inf
    assert log_probs.shape == expected.shape
    assert_close(log_probs[possible], expected[possible], **EXACT)
    assert_close(log_probs.exp().sum(-1), torch.ones(shape, dtype=torch.float64), **EXACT)
    assert (log_probs.exp()[~possible] == 0).all()
    assert log_probs.isfinite().all()


@every_head
@masked_or_not
def test_entropy_and_kl_are_what_summing_over_legal_actions_gives(make, masked):
    head, features, given, legal = setting(make, masked, 4)
    other = torch.randn_like(features)
    p, q = (enumerated(head, x, legal) for x in (features, other))
    any_action = torch.zeros_like(every_action(head)[:1]).expand(4, *every_action(head).shape[1:])
    old, new = (head.evaluate(x, any_action, given) for x in (features, other))
    assert_close(old.entropy, -torch.where(p.exp() > 0, p.exp() * p, 0.0).sum(-1), **EXACT)
    divergence = torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1)
    assert_close(head.kl(old.parameters, new.parameters), divergence, **EXACT)
    assert_close(head.kl(old.parameters, old.parameters), torch.zeros(4, dtype=torch.float64), **EXACT)


@every_head
@masked_or_not
def test_stored_parameters_say_what_evaluating_says(make, masked):
    head, features, given, _ = setting(make, masked, 5, 2)
    action, parameters = head.sample(features, head.noise((5, 2), torch.Generator().manual_seed(1)), given)
    evaluated = head.evaluate(features, action, given)
    assert action.dtype == torch.int64
    assert torch.equal(parameters, evaluated.parameters)
    assert torch.equal(head.log_prob(parameters, action), evaluated.log_prob)


@every_head
@masked_or_not
def test_actions_come_as_often_as_their_probability_says_and_illegal_ones_never(make, masked):
    count = 20_000
    head, features, given, legal = setting(make, masked)
    noise = head.noise((count,), torch.Generator().manual_seed(0))
    rows = None if given is None else given.expand(count, -1)
    action, _ = head.sample(features.expand(count, D), noise, rows)
    matches = (action.view(count, 1, -1) == every_action(head).view(1, -1, len(counts_of(head)))).all(-1)
    assert (matches.sum(-1) == 1).all()
    seen, expected = matches.sum(0), count * enumerated(head, features, legal).exp()
    assert (seen[expected == 0] == 0).all()
    # Actions that hardly ever come are counted together.
    rare = expected < 10
    seen = torch.cat((seen[~rare].double(), seen[rare].sum().view(1)))
    expected = torch.cat((expected[~rare], expected[rare].sum().view(1)))
    chi_square = ((seen - expected).square() / expected)[expected > 0].sum()
    freedom = int((expected > 0).sum()) - 1
    assert chi_square <= freedom + 4 * (2 * freedom) ** 0.5 + 8


@every_head
def test_the_mode_is_the_most_probable_legal_action(make):
    head, features, given, legal = setting(make, True, 200)
    assert torch.equal(head.mode(features, given), every_action(head)[enumerated(head, features, legal).argmax(-1)])
    assert torch.equal(head.mode(features), every_action(head)[enumerated(head, features, legal | True).argmax(-1)])


@every_head
@masked_or_not
def test_gradients_under_masks_are_those_of_finite_differences(make, masked):
    head, features, given, _ = setting(make, masked, 3)
    with torch.no_grad():
        action, old = head.sample(torch.randn_like(features), head.noise((3,), torch.Generator().manual_seed(0)), given)

    def outputs(features, *_):
        new = head.evaluate(features, action, given)
        return new.log_prob, new.entropy, head.kl(old, new.parameters), head.log_prob(new.parameters, action)

    assert torch.autograd.gradcheck(outputs, (features.requires_grad_(), *head.parameters()))


@every_head
def test_no_gradient_reaches_an_illegal_logit_whatever_was_done(make):
    head = drawn(make)
    features, old = torch.randn(D, dtype=torch.float64), torch.randn(head.code_dim, dtype=torch.float64)
    mask = some_mask(head)
    for action in every_action(head):  # illegal ones too
        head.zero_grad()
        new = head.evaluate(features, action, mask)
        (new.log_prob + new.entropy + head.kl(new.parameters.detach(), new.parameters)).backward()
        assert head.linear.bias.grad.isfinite().all()
        assert (head.linear.bias.grad[~mask] == 0).all()
        assert (head.linear.weight.grad[~mask] == 0).all()
    assert head.kl(old, new.parameters).isfinite()  # even where the old policy had more to choose from


@every_head
def test_a_row_without_a_legal_choice_is_reported_and_does_no_harm_where_its_action_is_ignored(make):
    head, features, given, _ = setting(make, True, 4)
    first = counts_of(head)[0]
    given[1, :first] = False
    given[2] = False
    assert head.legal(given).tolist() == [True, False, False, True]
    action, parameters = head.sample(features, head.noise((4,), torch.Generator().manual_seed(0)), given)
    for chosen in (action, head.mode(features, given)):
        assert (chosen.view(4, -1) >= 0).all()
        assert (chosen.view(4, -1) < torch.tensor(counts_of(head))).all()
    new = head.evaluate(features, action, given)
    total = new.log_prob + new.entropy + head.kl(parameters, new.parameters)
    total.sum().backward()
    assert total.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@every_head
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda n: torch.ones(4, n), r"torch\.float32 \(4, {n}\); expected torch\.bool \(\.\.\., {n}\)"),
        (lambda n: torch.ones(4, n, dtype=torch.int8), "torch.int8"),
        (lambda n: torch.ones(4, n + 1, dtype=torch.bool), r"torch\.bool \(4, {m}\)"),
        (lambda n: torch.tensor(True), r"torch\.bool \(\)"),
        (lambda n: {"": torch.ones(4, n, dtype=torch.bool)}, "tensor"),
        (lambda n: np.ones((4, n), bool), "array"),
    ],
)
def test_a_mask_of_another_kind_is_refused(make, wrong, said):
    head = make()
    n = head.code_dim
    with pytest.raises(ConfigError, match=said.replace("{n}", str(n)).replace("{m}", str(n + 1))):
        head.legal(wrong(n))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "make", [lambda: CategoricalHead(1, 4), lambda: MultiCategoricalHead(1, (4, 2))], ids=["one", "several"]
)
def test_nothing_turns_infinite_or_undefined_at_extreme_logits(make, sign, dtype):
    head = make().to(dtype)
    mask = torch.tensor([True, True, False, True, *[True] * (head.code_dim - 4)])
    with torch.no_grad():
        head.linear.bias[:4] = sign * torch.tensor([1e4, -1e4, 1e4, 0.0])
    features = torch.ones(1, dtype=dtype)
    for action in every_action(head):
        for new in (head.evaluate(features, action), head.evaluate(features, action, mask)):
            divergence = head.kl(new.parameters.detach().flip(-1), new.parameters) + head.kl(
                new.parameters.detach(), new.parameters
            )
            assert new.log_prob.isfinite()
            assert new.entropy.isfinite()
            assert divergence.isfinite()
            head.zero_grad()
            (new.log_prob + new.entropy + divergence).backward()
            assert all(p.grad.isfinite().all() for p in head.parameters())
    noise = head.noise((1000,), torch.Generator().manual_seed(0))
    action, _ = head.sample(features.expand(1000, 1), noise, mask.expand(1000, -1))
    assert (action.view(1000, -1)[:, 0] != 2).all()


@pytest.mark.parametrize("scale", [1e30, 1e35])
def test_logits_near_the_lowest_number_leave_illegal_actions_impossible_and_everything_finite(scale):
    head = CategoricalHead(1, 3)
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([-scale, scale / 2, scale]))
    mask, features = torch.tensor([True, False, True]), torch.zeros(1)
    for action, probability in enumerate((0, 0, 1)):
        new = head.evaluate(features, torch.tensor(action), mask)
        assert new.log_prob.exp() == probability
        assert torch.stack((new.log_prob, new.entropy, head.kl(new.parameters, new.parameters))).isfinite().all()


def test_noise_is_finite():
    noise = MultiCategoricalHead(1, (2, 3)).noise((200_000,), torch.Generator().manual_seed(0))
    assert noise.shape == (200_000, 2, 3)
    assert noise.isfinite().all()


def test_the_code_of_an_action_is_the_one_hot_codes_of_its_choices_side_by_side():
    assert CategoricalHead(D, 3).code(torch.tensor([[2, 0]])).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    head = MultiCategoricalHead(D, (2, 3, 1), start=(5, -1, 0)).double()
    code = head.code(torch.tensor([[1, 0, 0], [0, 2, 0]]))
    assert code.dtype == torch.float64
    assert code.tolist() == [[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 1]]
    assert head.code(torch.zeros(4, 2, 3, dtype=torch.int64)).shape == (4, 2, head.code_dim)


def test_several_choices_reach_the_environment_in_its_shape_counted_from_its_first_ones():
    head = MultiCategoricalHead(D, (2, 3, 4, 5), start=(0, 10, -3, 2), shape=(2, 2))
    actions = head.to_environment(torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]]))
    assert actions.tolist() == [[[0, 10], [-3, 2]], [[1, 12], [0, 6]]]
    assert head.to_environment(torch.zeros(7, 5, 4, dtype=torch.int64)).shape == (7, 5, 2, 2)
    assert head.to_environment(torch.zeros(4, dtype=torch.int64)).tolist() == [[0, 10], [-3, 2]]
    assert MultiCategoricalHead(D, (2, 3)).to_environment(torch.tensor([[1, 2]])).tolist() == [[1, 2]]


def test_a_shape_that_does_not_hold_the_choices_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\) does not hold 3"):
        MultiCategoricalHead(D, (2, 3, 4), shape=(2, 2))


def test_several_choices_are_as_many_heads_of_one_choice_side_by_side():
    head = drawn(HEADS["several"])
    singles, first = [], 0
    for n in head.actions:
        single = CategoricalHead(D, n).double()
        single.load_state_dict({f"linear.{k}": v[first : first + n] for k, v in head.linear.state_dict().items()})
        singles.append(single)
        first += n
    features, mask = torch.randn(6, D, dtype=torch.float64), some_mask(head, 6)
    masks = mask.split(head.actions, -1)
    noise = head.noise((6,), torch.Generator().manual_seed(0))
    action, _ = head.sample(features, noise, mask)
    apart = [s.sample(features, noise[:, i, : s.code_dim], masks[i])[0] for i, s in enumerate(singles)]
    assert torch.equal(action, torch.stack(apart, -1))
    evaluated = [s.evaluate(features, action[:, i], masks[i]) for i, s in enumerate(singles)]
    assert_close(head.evaluate(features, action, mask).log_prob, sum(x.log_prob for x in evaluated), **EXACT)


def test_buffers_are_not_saved_and_a_saved_head_comes_back():
    one, other = drawn(HEADS["several"], 0), drawn(HEADS["several"], 1)
    assert set(one.state_dict()) == {"linear.weight", "linear.bias"}
    other.load_state_dict(one.state_dict())
    features = torch.randn(4, D, dtype=torch.float64)
    assert torch.equal(one.mode(features), other.mode(features))
