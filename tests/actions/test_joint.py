"""Several heads as one, against enumeration of every action that can be told from the others."""

import copy
import itertools
import math
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from levelhead.actions import (
    CategoricalHead,
    Gate,
    GaussianHead,
    JointHead,
    MultiCategoricalHead,
    Part,
    ScheduledSigma,
    in_order,
)
from levelhead.errors import ConfigError
from levelhead.schedules import Schedule
from levelhead.tree import by_path, tree_leaves, tree_map
from parts import HostReads

D = 3
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def one(n, start=0):
    return lambda dim: CategoricalHead(dim, n, start)


def several(*counts):
    return lambda dim: MultiCategoricalHead(dim, counts)


def gaussian(size=1):
    return lambda dim: GaussianHead(dim, torch.full((size,), -math.inf), torch.full((size,), math.inf))


def after(path, *rows):
    """A mask that says for each choice of another part what it leaves."""
    return lambda choices: torch.tensor(rows, dtype=torch.bool)[choices[path]]


SETUPS = {
    "independent": {"a": Part(one(2)), "b": Part(one(3)), "c": Part(several(2, 3))},
    "gated": {
        "kind": Part(one(4, start=1)),
        "x": Part(one(3), gate=Gate("kind", (1, 3))),
        "y": Part(several(2, 2), gate=Gate("kind", (3, 4))),
    },
    "gates in gates": {
        "kind": Part(one(3)),
        "sub": Part(one(3, start=-1), gate=Gate("kind", (0, 2))),
        "leaf": Part(one(2), gate=Gate("sub", (-1,))),
        "leaf of leaf": Part(several(2, 3), gate=Gate("leaf", (1,))),
    },
    "seen": {
        "a": Part(one(3)),
        "b": Part(several(2, 2), sees=("a",)),
        "c": Part(one(3), sees=("a", "b")),
    },
    "masked by choices": {
        "a": Part(one(3)),
        "b": Part(one(4), mask=after("a", [1, 1, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0])),
        "c": Part(several(2, 2), mask=after("b", [1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0], [1, 0, 1, 0])),
    },
    "gates on heads that see, and heads that see behind gates": {
        "kind": Part(one(3)),
        "sub": Part(one(2), gate=Gate("kind", (1, 2))),
        "pick": Part(one(3), sees=("kind",), gate=Gate("sub", (1,))),
        "deep": Part(one(2), gate=Gate("pick", (0, 2))),
        "last": Part(one(2), sees=("sub", "deep")),
    },
    "everything": {
        "kind": Part(one(3, start=1)),
        "sub": Part(one(2), gate=Gate("kind", (1, 3))),
        "leaf": Part(one(2), gate=Gate("sub", (1,))),
        "pair": Part(several(2, 2), sees=("kind", "sub"), gate=Gate("kind", (2, 3))),
        "mode": Part(one(3), mask=after("kind", [1, 1, 0], [1, 0, 1], [1, 0, 0])),
        "tail": Part(one(2), gate=Gate("mode", (1,))),
        "end": Part(
            one(2), sees=("leaf", "mode"), gate=Gate("mode", (0, 1)), mask=after("kind", *[[1, 1]] * 2, [1, 0])
        ),
    },
}
every_setup = pytest.mark.parametrize("name", SETUPS)
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])


def joint(parts, seed=0, **options):
    """A head in double precision whose logits differ, acting in a flat dict."""
    torch.manual_seed(seed)
    head = JointHead(D, parts, {path: path for path in parts}, **{"embedding_dim": 4, **options}).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    head.spec = dict(parts)
    return head


def counts_of(head):
    return getattr(head, "actions", (head.code_dim,))


def some_masks(head, *shape):
    """Random masks of most parts, which leave the first choice everywhere: those that choices leave do so too."""
    masks = {}
    for path in list(head.spec)[:-1]:
        counts = counts_of(head._head(path))
        masks[path] = torch.rand(*shape, sum(counts)) < 0.5
        masks[path][..., [sum(counts[:i]) for i in range(len(counts))]] = True
    return masks


def setting(name, masked, *shape):
    head = joint(SETUPS[name])
    return head, torch.randn(*shape, D, dtype=torch.float64), some_masks(head, *shape) if masked else None


# -- by hand -------------------------------------------------------------------------------------------------------


def is_open(head, path, choices):
    """Whether a part matters; one that doesn't has chosen None."""
    gate = head.spec[path].gate
    if gate is None:
        return True
    chosen = choices[gate.head]
    return chosen is not None and chosen[0] + head._head(gate.head).start in gate.values


def as_tensor(head, path, chosen):
    chosen = (0,) * len(counts_of(head._head(path))) if chosen is None else chosen
    return torch.tensor(chosen if isinstance(head._head(path), MultiCategoricalHead) else chosen[0])


def enumerate_actions(head, features, masks):
    """Every action for one row, as choices by path with None for parts that don't matter, and its log-probability."""
    found = [({}, torch.zeros((), dtype=torch.float64))]
    for path, part in head.spec.items():
        grown = []
        for choices, log_prob in found:
            if not is_open(head, path, choices):
                grown.append(({**choices, path: None}, log_prob))
                continue
            inner = head._head(path)
            counts, x = counts_of(inner), features
            for seen in part.sees:
                weight = head._at(path).embeddings[head.parts[path].sees.index(seen)].weight
                if choices[seen] is None:
                    x = torch.cat((x, torch.zeros_like(weight[:, 0])))
                else:
                    sizes = counts_of(head._head(seen))
                    columns = [sum(sizes[:i]) + c for i, c in enumerate(choices[seen])]
                    x = torch.cat((x, weight[:, columns].sum(1)))
            logits = inner.linear.weight @ x + inner.linear.bias
            legal = torch.ones(sum(counts), dtype=torch.bool)
            if masks and path in masks:
                legal = legal & masks[path]
            if part.mask:
                legal = legal & part.mask({p: as_tensor(head, p, c) for p, c in choices.items()})
            log_probs = [a.log_softmax(-1) for a in logits.masked_fill(~legal, -torch.inf).split(counts)]
            for chosen in itertools.product(*map(range, counts)):
                gained = sum(a[c] for a, c in zip(log_probs, chosen, strict=True))
                if gained > -torch.inf:
                    grown.append(({**choices, path: chosen}, log_prob + gained))
        found = grown
    return [c for c, _ in found], torch.stack([p for _, p in found])


def batch(head, actions, seed=0):
    """Actions as a tree, with anything in the parts that don't matter."""
    generator = torch.Generator().manual_seed(seed)

    def column(path):
        counts = torch.tensor(counts_of(head._head(path)))
        rows = (torch.rand(len(actions), len(counts), generator=generator) * counts).long()
        for i, choices in enumerate(actions):
            if choices[path] is not None:
                rows[i] = torch.tensor(choices[path])
        return rows if isinstance(head._head(path), MultiCategoricalHead) else rows.squeeze(1)

    return {path: column(path) for path in head.spec}


def rows(tree, count):
    return None if tree is None else tree_map(lambda x: x.expand(count, *x.shape), tree)


@every_setup
@masked_or_not
def test_probabilities_are_those_of_enumeration_and_add_up_to_one(name, masked):
    head, features, masks = setting(name, masked)
    actions, expected = enumerate_actions(head, features, masks)
    new = head.evaluate(rows(features, len(actions)), batch(head, actions), rows(masks, len(actions)))
    assert_close(expected.exp().sum().item(), 1.0, **EXACT)
    assert_close(new.log_prob, expected, **EXACT)
    assert_close(head.log_prob(new.parameters, batch(head, actions, 1)), expected, **EXACT)
    assert_close(torch.stack(new.entropies).sum(0), new.entropy, **EXACT)
    assert list(head.names) == list(head.spec)


@every_setup
@masked_or_not
def test_entropy_and_kl_are_those_of_enumeration_where_exact_and_in_the_mean_where_not(name, masked):
    head, features, masks = setting(name, masked)
    actions, p = enumerate_actions(head, features, masks)
    others, q = enumerate_actions(head, other := features.flip(0) + 0.5, masks)
    assert actions == others
    a, given = batch(head, actions), rows(masks, len(actions))
    old, new = (head.evaluate(rows(x, len(actions)), a, given) for x in (features, other))
    entropy, divergence = -(p.exp() * p).sum(), (p.exp() * (p - q)).sum()
    kl = head.kl(old.parameters, new.parameters)
    assert_close((p.exp() * old.entropy).sum(), entropy, **EXACT)
    assert_close((p.exp() * kl).sum(), divergence, **EXACT)
    assert (kl >= -1e-12).all()
    assert head.exact == all(not part.sees and part.mask is None for part in head.spec.values())
    if head.exact:
        assert_close(old.entropy, entropy.expand_as(p), **EXACT)
        assert_close(kl, divergence.expand_as(p), **EXACT)
    assert (head.kl(old.parameters, old.parameters).abs() < 1e-12).all()


@every_setup
@masked_or_not
def test_choices_behind_a_shut_gate_change_nothing(name, masked):
    head, features, masks = setting(name, masked)
    actions, _ = enumerate_actions(head, features, masks)
    x, given = rows(features, len(actions)), rows(masks, len(actions))
    first, again = (head.evaluate(x, batch(head, actions, seed), given) for seed in (0, 1))
    for ours, theirs in zip(tree_leaves(first), tree_leaves(again), strict=True):
        assert torch.equal(ours, theirs)


@every_setup
@masked_or_not
def test_actions_come_as_often_as_enumeration_says_and_illegal_ones_never(name, masked):
    count = 4_000
    head, features, masks = setting(name, masked)
    actions, expected = enumerate_actions(head, features, masks)
    noise = head.noise((count,), torch.Generator().manual_seed(0))
    action, parameters = head.sample(rows(features, count), noise, rows(masks, count))
    columns = {path: x.view(count, -1).tolist() for path, x in action.items()}

    def told(i):
        choices = {}
        for path in head.spec:
            choices[path] = tuple(columns[path][i]) if is_open(head, path, choices) else None
        return tuple(choices.values())

    seen = Counter(map(told, range(count)))
    often = {tuple(a.values()): count * p for a, p in zip(actions, expected.exp().tolist(), strict=True)}
    assert seen.keys() <= often.keys()
    pairs = [(seen[a], n) for a, n in often.items() if n >= 10]
    pairs.append((count - sum(s for s, _ in pairs), max(count - sum(n for _, n in pairs), 1.0)))
    freedom = len(pairs) - 1
    assert sum((s - n) ** 2 / n for s, n in pairs) <= freedom + 4 * (2 * freedom) ** 0.5 + 8
    assert torch.equal(head.log_prob(parameters, action).isfinite(), torch.ones(count, dtype=torch.bool))


@every_setup
@masked_or_not
def test_what_is_kept_with_a_sample_says_what_evaluating_says(name, masked):
    head, features, masks = setting(name, masked, 5, 2)
    action, parameters = head.sample(features, head.noise((5, 2), torch.Generator().manual_seed(0)), masks)
    new = head.evaluate(features, action, masks)
    assert_close(head.log_prob(parameters, action), new.log_prob, **EXACT)
    for ours, theirs in zip(tree_leaves(parameters), tree_leaves(new.parameters), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.shape[:2] == (5, 2)


@every_setup
@masked_or_not
def test_any_leading_shape_is_as_many_rows(name, masked):
    head, features, masks = setting(name, masked, 4, 3)
    action, _ = head.sample(features, head.noise((4, 3), torch.Generator().manual_seed(0)), masks)

    def flat(tree):
        return None if tree is None else tree_map(lambda x: x.flatten(0, 1), tree)

    whole, by_row = head.evaluate(features, action, masks), head.evaluate(flat(features), flat(action), flat(masks))
    assert whole.log_prob.shape == whole.entropy.shape == head.kl(whole.parameters, whole.parameters).shape == (4, 3)
    for ours, theirs in zip(tree_leaves(flat(tuple(whole))), tree_leaves(tuple(by_row)), strict=True):
        assert_close(ours, theirs, **EXACT)


@every_setup
@masked_or_not
def test_the_mode_is_the_most_probable_choice_given_those_before(name, masked):
    head, features, masks = setting(name, masked, 20)
    mode = head.mode(features, masks)
    for i in range(20):
        one_row = None if masks is None else tree_map(lambda x, i=i: x[i], masks)
        actions, log_probs = enumerate_actions(head, features[i], one_row)
        greedy = {}
        for path in head.spec:
            shares = Counter()
            for a, p in zip(actions, log_probs.exp().tolist(), strict=True):
                if all(a[before] == chosen for before, chosen in greedy.items()):
                    shares[a[path]] += p
            greedy[path] = shares.most_common(1)[0][0]
            if greedy[path] is not None:
                assert tuple(mode[path][i].view(-1).tolist()) == greedy[path]


@every_setup
@masked_or_not
def test_gradients_are_those_of_finite_differences(name, masked):
    head, features, masks = setting(name, masked, 3)
    with torch.no_grad():
        noise = head.noise((3,), torch.Generator().manual_seed(0))
        action, old = head.sample(torch.randn_like(features), noise, masks)

    def outputs(features, *_):
        new = head.evaluate(features, action, masks)
        return new.log_prob, new.entropy, head.kl(old, new.parameters)

    inputs = (features.requires_grad_(), *head.parameters())
    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)


# -- gates ---------------------------------------------------------------------------------------------------------

HYBRID = {"kind": Part(one(3)), "size": Part(gaussian(2), gate=Gate("kind", (0, 2)))}


def test_a_real_number_behind_a_gate_counts_where_it_is_open():
    head, features = joint(HYBRID), torch.randn(3, D, dtype=torch.float64)
    size = torch.randn(3, 2, dtype=torch.float64)
    action = {"kind": torch.tensor([0, 1, 2]), "size": size}
    logits = head._head("kind").linear(features)
    inner = head._head("size")
    normal = torch.distributions.Normal(inner.linear(features), inner.sigma(features).exp())
    new = head.evaluate(features, action)
    chosen = logits.log_softmax(-1).diagonal()
    opened = logits.softmax(-1)[:, [0, 2]].sum(-1)
    expected = chosen + torch.tensor([1, 0, 1]) * normal.log_prob(size).sum(-1)
    assert_close(new.log_prob, expected, **EXACT)
    assert_close(head.log_prob(new.parameters, action), expected, **EXACT)
    choosing = torch.distributions.Categorical(logits=logits)
    entropy = choosing.entropy() + opened * normal.entropy().sum(-1)
    assert_close(new.entropy, entropy, **EXACT)
    other = torch.randn_like(features)
    moved = head.evaluate(other, action)
    kl = torch.distributions.kl_divergence
    after = torch.distributions.Normal(inner.linear(other), inner.sigma(other).exp())
    choosing_after = torch.distributions.Categorical(logits=head._head("kind").linear(other))
    expected = kl(choosing, choosing_after) + opened * kl(normal, after).sum(-1)
    assert_close(head.kl(new.parameters, moved.parameters), expected, **EXACT)
    # The gate's probability has a gradient of its own: opening it more brings the head's entropy.
    ours, theirs = (
        torch.autograd.grad(x.sum(), list(head.parameters()), retain_graph=True, allow_unused=True)
        for x in (new.entropy, entropy)
    )
    assert_close([x for x in ours if x is not None], [x for x in theirs if x is not None], **EXACT)


@pytest.mark.parametrize("name", ["gated", "gates in gates", "everything"])
def test_log_probability_has_no_gradient_for_heads_behind_shut_gates(name):
    head, features, _ = setting(name, False)
    actions, _ = enumerate_actions(head, features, None)
    for i, choices in enumerate(actions[:: max(len(actions) // 30, 1)]):
        head.zero_grad()
        head.evaluate(rows(features, 1), batch(head, [choices], i)).log_prob.sum().backward()
        for path, chosen in choices.items():
            gradient = head._head(path).linear.weight.grad
            assert (gradient == 0).all() if chosen is None else (gradient != 0).any() or chosen == (0,) * len(chosen)


def test_a_real_number_is_seen_squashed_and_not_at_all_behind_a_shut_gate():
    head = joint({**HYBRID, "end": Part(one(2), sees=("size",))})
    features, size = torch.randn(2, D, dtype=torch.float64), torch.tensor([[1e6, -0.5], [3.0, 0.1]]).double()
    action = {"kind": torch.tensor([2, 1]), "size": size, "end": torch.tensor([1, 0])}
    seen = head._at("end").embeddings[0](size / (1 + size.abs())) * torch.tensor([[1.0], [0.0]])
    logits = head._head("end").linear(torch.cat((features, seen), -1))
    expected = joint(HYBRID).log_prob(head.evaluate(features, action).parameters, action)
    expected = expected + logits.log_softmax(-1)[[0, 1], [1, 0]]
    assert_close(head.evaluate(features, action).log_prob, expected, **EXACT)


def test_a_gate_that_names_a_value_twice_is_the_same_gate():
    once, twice = ({**SETUPS["gated"], "x": Part(one(3), gate=Gate("kind", v))} for v in ((1, 3), (1, 3, 1)))
    features = torch.randn(4, D, dtype=torch.float64)
    action, _ = joint(once).sample(features, joint(once).noise((4,), torch.Generator().manual_seed(0)))
    a, b = (joint(parts).evaluate(features, action) for parts in (once, twice))
    assert_close(a.entropy, b.entropy, **EXACT)


def test_masks_made_of_choices_do_not_hang_on_those_behind_a_shut_gate():
    parts = {
        "kind": Part(one(2)),
        "sub": Part(one(2), gate=Gate("kind", (1,))),
        "end": Part(one(2), mask=after("sub", [1, 1], [0, 1])),
    }
    head, features = joint(parts), torch.randn(2, D, dtype=torch.float64)
    action = {"kind": torch.zeros(2).long(), "sub": torch.tensor([0, 1]), "end": torch.ones(2).long()}
    log_prob = head.evaluate(features[:1].expand(2, D), action).log_prob
    assert_close(log_prob[0], log_prob[1], **EXACT)


# -- masks ---------------------------------------------------------------------------------------------------------


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_masks_of_every_part_are_asked_for_by_path():
    head = joint(SETUPS["independent"])
    assert head.legal({"a": bools([1, 0], [0, 0], [1, 1])}).tolist() == [True, False, True]
    both = {"a": bools([1, 0], [0, 1], [1, 1]), "c": bools([1, 0, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0])}
    assert head.legal(both).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ({"d": bools([1, 1])}, r"\['d'\]; expected a dict with some of \['a', 'b', 'c'\]"),
        ({"a": bools([1, 1]), "d": bools([1, 1])}, r"\['a', 'd'\]"),
        ({}, r"\[\]"),
        (bools([1, 1]), "Tensor"),
        ((bools([1, 1]), bools([1, 1, 1])), "tuple"),
        ({"a": bools([1, 1, 1])}, r"\(1, 3\); expected torch\.bool \(\.\.\., 2\)"),
        ({"b": torch.ones(1, 3)}, "torch.float32"),
    ],
)
def test_masks_that_fit_no_part_are_refused(mask, said):
    with pytest.raises(ConfigError, match=said):
        joint(SETUPS["independent"]).legal(mask)


def test_a_part_that_takes_no_masks_refuses_one():
    with pytest.raises(ConfigError, match="GaussianHead takes no mask"):
        joint(HYBRID).legal({"size": bools([1, 1])})


def test_a_part_may_have_nothing_to_choose_where_its_gate_has_to_stay_shut():
    head = joint(SETUPS["gated"])  # x opens for the first and the third of four
    nothing = bools(*[[0, 0, 0]] * 4)
    kinds = bools([0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0])
    assert head.legal({"kind": kinds, "x": nothing}).tolist() == [True, False, False, True]
    assert head.legal({"x": nothing}).tolist() == [False] * 4
    assert head.legal({"kind": kinds & False, "x": nothing}).tolist() == [False] * 4


def test_a_part_may_have_nothing_to_choose_where_an_outer_gate_has_to_stay_shut():
    head = joint(SETUPS["gates in gates"])  # sub opens for the first and the last of three, leaf for the first of sub
    kinds, nothing = bools([0, 1, 0], [1, 1, 0]), bools([0, 0], [0, 0])
    assert head.legal({"kind": kinds, "leaf": nothing}).tolist() == [True, False]
    assert head.legal({"kind": kinds, "sub": bools(*[[1, 1, 1]] * 2), "leaf": nothing}).tolist() == [True, False]


def test_a_part_without_anything_to_choose_does_no_harm_behind_a_shut_gate():
    head = joint(SETUPS["gated"])
    masks = {"kind": bools(*[[0, 1, 0, 0]] * 50), "x": bools(*[[0, 0, 0]] * 50), "y": bools(*[[0, 0, 0, 0]] * 50)}
    features = torch.randn(50, D, dtype=torch.float64)
    action, parameters = head.sample(features, head.noise((50,), torch.Generator().manual_seed(0)), masks)
    for chosen in (action, head.mode(features, masks)):
        assert (chosen["kind"] == 1).all()
        assert all(((x >= 0) & (x < n)).all() for x, n in ((chosen["x"], 3), (chosen["y"], 2)))
    new = head.evaluate(features, action, masks)
    assert_close(new.log_prob, torch.zeros_like(new.log_prob))
    assert_close(new.entropy, torch.zeros_like(new.entropy))
    (new.log_prob + new.entropy + head.kl(parameters, new.parameters)).sum().backward()
    assert all((p.grad == 0).all() for p in head.parameters())


def test_an_illegal_logit_has_no_gradient():
    head, features, masks = setting("everything", True, 1)
    action, old = head.sample(features, head.noise((1,), torch.Generator().manual_seed(0)), masks)
    new = head.evaluate(features + 1, action, masks)
    (new.log_prob + new.entropy + head.kl(old, new.parameters)).sum().backward()
    for path, mask in masks.items():
        assert (head._head(path).linear.bias.grad[~mask[0]] == 0).all()


def stuck():
    """The second kind leaves nothing to the other part."""
    return joint({"kind": Part(one(2)), "x": Part(one(2), mask=after("kind", [1, 0], [0, 0]))})


def test_choices_that_leave_nothing_legal_name_the_environments():
    head, features = stuck(), torch.zeros(4, D, dtype=torch.float64)
    noise = head.noise((4,), torch.Generator().manual_seed(0))
    noise["kind"] = torch.tensor([[50.0, 0.0], [0.0, 50.0], [50.0, 0.0], [0.0, 50.0]])
    with pytest.raises(ConfigError, match=r"mask of 'x' leaves no legal choice in environments \[1, 3\]"):
        head.sample(features, noise)
    masks = {"x": bools([0, 1], [1, 1], [1, 1], [1, 1])}
    noise["kind"] = torch.tensor([[50.0, 0.0]] * 4)
    with pytest.raises(ConfigError, match=r"environments \[0\]"):
        head.sample(features, noise, masks)


def test_the_most_probable_choices_must_leave_something_legal_too():
    head = stuck()
    with torch.no_grad():
        head._head("kind").linear.bias.copy_(torch.tensor([0.0, 50.0]))
    with pytest.raises(ConfigError, match=r"mask of 'x' leaves no legal choice in environments \[0, 1\]"):
        head.mode(torch.zeros(2, D, dtype=torch.float64))


def test_choices_may_leave_nothing_to_a_part_whose_gate_they_shut():
    parts = {
        "kind": Part(one(2)),
        "x": Part(one(2), gate=Gate("kind", (0,)), mask=after("kind", [0, 1], [0, 0])),
    }
    head, features = joint(parts), torch.randn(200, D, dtype=torch.float64)
    action, parameters = head.sample(features, head.noise((200,), torch.Generator().manual_seed(0)))
    assert (action["x"][action["kind"] == 0] == 1).all()
    assert 0 < action["kind"].sum() < 200
    assert_close(head.log_prob(parameters, action), head._head("kind").evaluate(features, action["kind"]).log_prob)


# -- what cannot be joined -----------------------------------------------------------------------------------------

WRONG = {
    "an unknown part": (
        {"a": Part(one(2)), "b": Part(one(2), sees=("c",))},
        r"'b' depends on 'c'; heads before it: 'a'",
    ),
    "a later part": ({"a": Part(one(2), sees=("b",)), "b": Part(one(2))}, r"'a' depends on 'b'; heads before it: none"),
    "itself": ({"a": Part(one(2), sees=("a",))}, "'a' depends on 'a'"),
    "a later gate": ({"a": Part(one(2), gate=Gate("b", (0,))), "b": Part(one(2))}, "'a' depends on 'b'"),
    "a gate of several choices": (
        {"a": Part(several(2, 2)), "b": Part(one(2), gate=Gate("a", (0,)))},
        "'b' is gated by 'a', which is no single choice",
    ),
    "a gate of real numbers": ({"a": Part(gaussian()), "b": Part(one(2), gate=Gate("a", (0,)))}, "no single choice"),
    "a value too large": (
        {"a": Part(one(3, 1)), "b": Part(one(2), gate=Gate("a", (1, 4)))},
        r"'b' opens for values \(1, 4\) of 'a', which has 1 to 3",
    ),
    "a value too small": ({"a": Part(one(3, 1)), "b": Part(one(2), gate=Gate("a", (0,)))}, "which has 1 to 3"),
    "no value": ({"a": Part(one(3)), "b": Part(one(2), gate=Gate("a", ()))}, r"opens for values \(\)"),
    "a joint part": ({"a": Part(lambda dim: JointHead(dim, {"": Part(one(2))}, ""))}, "'a' is joint itself"),
}


@pytest.mark.parametrize(("parts", "reason"), WRONG.values(), ids=WRONG)
def test_parts_that_do_not_fit_each_other_are_refused(parts, reason):
    with pytest.raises(ConfigError, match=reason):
        joint(parts)


@pytest.mark.parametrize(
    "structure",
    [{"a": "a"}, {"a": "a", "b": "b", "c": "c"}, {"a": "a", "b": "a"}, ("a", "b"), {"x": "a", "y": "b"}, "a"],
)
def test_a_structure_whose_leaves_are_not_the_paths_of_the_parts_is_refused(structure):
    with pytest.raises(ConfigError):
        JointHead(D, {"a": Part(one(2)), "b": Part(one(2))}, structure)


def test_parts_are_put_in_an_order_in_which_they_can_choose_and_else_left_as_they_come():
    parts = {
        "z": Part(one(2), sees=("a", "m")),
        "c": Part(one(2)),
        "a": Part(one(2), gate=Gate("m", (0,))),
        "m": Part(one(2)),
        "b": Part(one(2)),
    }
    ordered = in_order(parts)
    assert list(ordered) == ["c", "m", "a", "z", "b"]
    assert all(ordered[path] is part for path, part in parts.items())
    assert list(in_order(SETUPS["everything"])) == list(SETUPS["everything"])
    assert in_order({}) == {}


@pytest.mark.parametrize(
    "parts",
    [
        {"a": Part(one(2), sees=("b",)), "b": Part(one(2), sees=("a",)), "c": Part(one(2))},
        {"a": Part(one(2), gate=Gate("b", (0,))), "b": Part(one(2), sees=("a",)), "c": Part(one(2))},
        {"a": Part(one(2), sees=("a",)), "b": Part(one(2), sees=("a",))},
        {"a": Part(one(2), sees=("gone",)), "b": Part(one(2), sees=("a",))},
    ],
)
def test_parts_that_wait_for_each_other_or_for_nobody_are_refused_by_name(parts):
    with pytest.raises(ConfigError, match=r"'a': \['(a|b|gone)'\].*in a circle or in vain") as caught:
        in_order(parts)
    assert "'c': " not in str(caught.value)


# -- the environment's side ----------------------------------------------------------------------------------------


def test_actions_come_in_the_environments_structure_and_its_numbers():
    parts = {
        "0": Part(one(3, start=5)),
        "1/keys": Part(several(2, 2)),
        "1/more/0": Part(gaussian(2)),
        "1/more/1": Part(lambda dim: MultiCategoricalHead(dim, (2, 3), (1, -1), (2, 1))),
    }
    structure = ("0", {"keys": "1/keys", "more": ("1/more/0", "1/more/1")})
    head = JointHead(D, parts, structure)
    features = torch.randn(4, 6, D)
    action, _ = head.sample(features, head.noise((4, 6), torch.Generator().manual_seed(0)))
    for given in (action, head.mode(features)):
        assert tree_map(lambda path, x: tuple(x.shape), structure, given) == (
            (4, 6),
            {"keys": (4, 6, 2), "more": ((4, 6, 2), (4, 6, 2))},
        )
        sent = head.to_environment(given)
        assert tree_map(lambda path, x: tuple(x.shape), structure, sent) == (
            (4, 6),
            {"keys": (4, 6, 2), "more": ((4, 6, 2), (4, 6, 2, 1))},
        )
        assert torch.equal(sent[0], given[0] + 5)
        assert torch.equal(sent[1]["more"][1].squeeze(-1), given[1]["more"][1] + torch.tensor([1, -1]))
        assert torch.equal(sent[1]["keys"], given[1]["keys"])
    code = head.code(action)
    assert code.shape == (4, 6, head.code_dim)
    own = by_path(action)
    assert torch.equal(code, torch.cat([head._head(path).code(own[path]) for path in parts], -1))


NAMES = ("keys", "items", "values", "pop", "a.b", "a b", "forward", "training", "0")


def test_parts_may_have_any_name():
    parts = {"kind": Part(one(2))}
    for name in NAMES:
        parts[name] = Part(one(2), sees=tuple(parts), gate=Gate("kind", (1,)))
    head, features = joint(parts), torch.randn(4, D, dtype=torch.float64)
    action, parameters = head.sample(features, head.noise((4,), torch.Generator().manual_seed(0)))
    assert list(action) == ["kind", *NAMES]
    assert_close(head.evaluate(features, action).log_prob, head.log_prob(parameters, action), **EXACT)
    assert len(list(head.parameters())) == 2 * len(parts) + sum(range(len(parts)))


def test_names_that_differ_in_punctuation_are_different_parts():
    head = joint({"a.b": Part(one(2)), "a\N{MIDDLE DOT}b": Part(one(3)), "end": Part(one(2), sees=("a.b",))})
    assert [head._head(path).code_dim for path in head.spec] == [2, 3, 2]


def test_a_saved_head_comes_back_and_a_copy_is_another():
    first, second = joint(SETUPS["everything"], 0), joint(SETUPS["everything"], 1)
    features = torch.randn(30, D, dtype=torch.float64)
    noise = first.noise((30,), torch.Generator().manual_seed(0))
    twin = copy.deepcopy(first)
    second.load_state_dict(first.state_dict())
    expected = first.sample(features, noise)
    for other in (second, twin):
        for ours, theirs in zip(tree_leaves(other.sample(features, noise)), tree_leaves(expected), strict=True):
            assert torch.equal(ours, theirs)
    with torch.no_grad():
        twin._head("kind").linear.bias.add_(1.0)
    assert not torch.equal(twin._head("kind").linear.bias, first._head("kind").linear.bias)


def test_noise_is_a_function_of_the_generator_alone_and_every_part_has_its_own():
    def noise(seed):
        return joint(SETUPS["seen"], seed).noise((3, 2), torch.Generator().manual_seed(7))

    one_, other = noise(0), noise(1)
    assert {path: tuple(x.shape) for path, x in one_.items()} == {"a": (3, 2, 3), "b": (3, 2, 2, 2), "c": (3, 2, 3)}
    assert all(torch.equal(x, other[path]) for path, x in one_.items())
    assert not torch.equal(one_["a"], one_["c"])


def test_progress_reaches_every_part():
    limits = torch.full((1,), -math.inf), torch.full((1,), math.inf)

    def scheduled(dim):
        return GaussianHead(dim, *limits, ScheduledSigma(1, Schedule(1.0, 0.1)))

    head = joint({"a": Part(scheduled), "b": Part(scheduled, sees=("a",))})
    for progress in (0.0, 1.0):
        head.advance(progress)
        _, (_, log_std) = head._head("b").sample(torch.zeros(1, D + 4).double(), torch.zeros(1, 1).double())
        assert_close(log_std.exp().item(), 1.0 if progress == 0 else 0.1)


@pytest.mark.parametrize("name", ["gated", "seen", "everything"])
def test_learning_reads_nothing_back_to_the_host(name):
    head, features, masks = setting(name, True, 5)
    action, old = head.sample(features, head.noise((5,), torch.Generator().manual_seed(0)), masks)
    with HostReads() as counter:
        new = head.evaluate(features, action, masks)
        (new.log_prob + new.entropy + head.kl(old, new.parameters)).sum().backward()
    assert counter.operations > 0
    assert counter.reads == []
