"""PopArt preserves outputs at every update; the other heads do what the table of the family says."""

import pytest
import torch
from family import KINDS, MOVING, STATISTICS, D, each, randomized, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.values import (
    HLGaussValueHead,
    LinearValueHead,
    PopArtValueHead,
    RunningNormHead,
    TransformValueHead,
    TwoHotValueHead,
    ValueNormHead,
)

K = 3
law = settings(deadline=None, max_examples=60)
every_rival = each([kind for kind in KINDS if kind is not PopArtValueHead])


def layer(head):
    return head.linear.weight.detach().clone(), head.linear.bias.detach().clone()


@st.composite
def updates(draw):
    """Keyword arguments of `update` for K outputs, at any scale and shift, with or without tasks, masks and weights."""
    torch.manual_seed(draw(seeds))
    rows, scale, shift = draw(st.integers(1, 5)), 10.0 ** draw(st.integers(-12, 12)), draw(st.sampled_from([0, 1, 100]))
    task = draw(st.booleans())
    shape = (rows,) if task else (rows, K)
    batch = {"targets": scale * (torch.randn(shape, dtype=torch.float64) + shift)}
    if task:
        batch["task"] = torch.randint(K, shape)
    if draw(st.booleans()):
        batch["mask"] = torch.rand(shape) < 0.7
    if draw(st.booleans()):
        batch["weights"] = torch.rand(rows)
    return batch


histories = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.98]), updates()), min_size=1, max_size=5)


def sizes(head, x):
    """What rounding errors of the head's outputs are proportional to, per output."""
    weight, bias = (parameter.abs() for parameter in layer(head))
    return (head.std * (x.abs() @ weight.T + bias) + head.mean.abs()).amax(0)


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@law
@given(histories, seeds)
def test_every_update_preserves_every_output_the_first_included(epsilon, history, seed):
    torch.manual_seed(seed)
    head, x = randomized(PopArtValueHead, K, epsilon=epsilon), torch.randn(7, D, dtype=torch.float64)
    for beta, batch in history:
        head.beta = beta
        before, size = head(x), sizes(head, x)
        head.update(**batch)
        error = (head(x) - before).abs().amax(0)
        assert (error <= 1e-13 * (size + sizes(head, x))).all()


@law
@given(updates(), updates(), seeds)
def test_the_layer_is_rewritten_by_the_law(first, second, seed):
    torch.manual_seed(seed)
    head = randomized(PopArtValueHead, K)
    head.update(**first)
    (weight, bias), m, s = layer(head), head.mean.clone(), head.std.clone()
    head.update(**second)
    assert_close(head.linear.weight, weight * (s / head.std)[:, None], rtol=1e-12, atol=0)
    error = head.std * head.linear.bias - (s * bias + m - head.mean)
    assert (error.abs() <= 1e-14 * (s * bias.abs() + m.abs() + head.mean.abs())).all()


@law
@given(updates())
def test_a_new_head_still_predicts_0_after_its_first_update(batch):
    head = PopArtValueHead(D, K, dtype=torch.float64)
    head.update(**batch)
    assert not head.linear.weight.any()
    assert (head(torch.randn(5, D).double()).abs() <= 1e-15 * head.mean.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_outputs_are_preserved_as_well_as_the_dtype_of_the_layer_can(dtype):
    torch.manual_seed(0)
    head, x = randomized(PopArtValueHead, K, dtype=dtype), torch.randn(7, D).to(dtype)
    head.update(torch.randn(9, K) + 1)
    for scale in (1.0, 10.0, 100.0):
        before = head(x)
        head.update(scale * torch.randn(9, K))
        assert ((head(x) - before).abs() <= 16 * torch.finfo(dtype).eps * sizes(head, x)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_rewrite_is_computed_in_float64_and_rounded_once(dtype):
    torch.manual_seed(0)
    head = randomized(PopArtValueHead, K, dtype=dtype)
    head.update(torch.randn(9, K) + 1)
    (weight, bias), m, s = layer(head.double()), head.mean.clone(), head.std.clone()
    head.to(dtype).update(30 * torch.randn(9, K))
    assert torch.equal(head.linear.weight, (weight * (s / head.std)[:, None]).to(dtype))
    assert torch.equal(head.linear.bias, (bias * (s / head.std) + (m - head.mean) / head.std).to(dtype))


@each(MOVING)
@law
@given(histories, seeds)
def test_adoption_moves_statistics_as_update_does_and_leaves_the_layer(kind, history, seed):
    torch.manual_seed(seed)
    adopting, updating = randomized(kind, K), randomized(kind, K)
    before = layer(adopting)
    for beta, batch in history:
        adopting.beta = updating.beta = beta
        adopting.adopt(**batch)
        updating.update(**batch)
    assert_close(layer(adopting), before, rtol=0, atol=0)
    for name in STATISTICS:
        assert torch.equal(adopting.get_buffer(name), updating.get_buffer(name))


def test_observe_adopts_until_an_output_has_had_a_real_spread_and_preserves_from_then_on():
    torch.manual_seed(0)
    head, x = randomized(PopArtValueHead, 2, beta=0.0), torch.randn(7, D, dtype=torch.float64)
    ramp, flat, constant = torch.arange(4.0), torch.zeros(4), torch.full((4,), 9.0)
    preserved = [
        (ramp, flat, (False, False)),  # an output adopts the batch that brings its first spread
        (constant, constant, (True, False)),  # a spread once seen is enough
        (ramp * 50, ramp * 1e-3, (True, False)),
        (ramp + 7, ramp - 1e6, (True, True)),
    ]
    for *columns, expected in preserved:
        values, before = head(x), layer(head)
        assert head.observe(torch.stack(columns, 1)).all()
        for k, kept in enumerate(expected):
            if kept:
                assert_close(head(x)[:, k], values[:, k], rtol=0, atol=1e-12 * sizes(head, x)[k].item())
                assert not torch.equal(head.linear.bias[k], before[1][k])
            else:
                assert torch.equal(head.linear.weight[k], before[0][k])
                assert torch.equal(head.linear.bias[k], before[1][k])


@every_rival
@law
@given(histories, seeds)
def test_no_other_head_rewrites_its_layer(kind, history, seed):
    torch.manual_seed(seed)
    head = randomized(kind, K)
    before = layer(head)
    for _, batch in history:
        head.update(**batch)
        head.observe(**batch)
    assert_close(layer(head), before, rtol=0, atol=0)


# What the layer of each head stands for: its axis, and the way from there to reward units.
TABLE = {
    LinearValueHead: ("raw", lambda head, out: out),
    TransformValueHead: ("normalized", lambda head, out: out.sign() * out.abs().expm1()),
    ValueNormHead: ("raw", lambda head, out: out),
    RunningNormHead: ("normalized", lambda head, out: head.std * out + head.mean),
    PopArtValueHead: ("normalized", lambda head, out: head.std * out + head.mean),
    TwoHotValueHead: ("logits", lambda head, out: bins(out) @ head.atoms),
    HLGaussValueHead: ("logits", lambda head, out: head.std * (bins(out) @ head.atoms) + head.mean),
}


def bins(logits):
    return logits.unflatten(-1, (K, -1)).softmax(-1)


@pytest.mark.parametrize(("kind", "axis", "raw"), [(kind, *row) for kind, row in TABLE.items()])
def test_the_layer_predicts_on_the_axis_of_the_table(kind, axis, raw):
    torch.manual_seed(0)
    head, x = randomized(kind, K), torch.randn(7, D, dtype=torch.float64)
    head.update(30 * torch.randn(9, K) + 100)
    output = head.linear(x)
    assert_close(head(x), raw(head, output), rtol=1e-12, atol=1e-12)
    assert_close(head.forward_normalized(x), head.normalize(head(x)), rtol=1e-9, atol=1e-9)
    if axis != "logits":
        assert torch.equal(output, head(x) if axis == "raw" else head.forward_normalized(x))


@each([RunningNormHead, HLGaussValueHead])
def test_outputs_jump_where_they_follow_the_statistics(kind):
    torch.manual_seed(0)
    head, x = randomized(kind, K), torch.randn(7, D, dtype=torch.float64)
    before, z = head(x), head.forward_normalized(x)
    head.update(30 * torch.randn(9, K) + 100)
    assert torch.equal(head.forward_normalized(x), z)
    assert_close(head(x), head.std * before + head.mean, rtol=1e-12, atol=1e-12)


@each([LinearValueHead, TransformValueHead, ValueNormHead, TwoHotValueHead])
def test_outputs_stay_where_they_are_raw(kind):
    torch.manual_seed(0)
    head, x = randomized(kind, K), torch.randn(7, D, dtype=torch.float64)
    before = head(x)
    head.update(30 * torch.randn(9, K) + 100)
    assert torch.equal(head(x), before)


@pytest.mark.parametrize(("kind", "power"), [(LinearValueHead, 0), (ValueNormHead, 2), (PopArtValueHead, 1)])
def test_gradients_of_the_layer_shrink_by_the_std_to_this_power(kind, power):
    torch.manual_seed(0)
    head, x, y = kind(D, dtype=torch.float64), torch.randn(9, D).double(), torch.randn(9).double()
    head.update(1000 * y)
    gradient = torch.autograd.grad(head.loss(x, y).sum(), head.linear.weight)[0][0]
    residual = (head(x)[:, 0] - y).detach()
    assert_close(gradient, (2 * residual / head.std**power) @ x, rtol=1e-9, atol=1e-12)
