"""Layers in half precision, by cast or by autocast: statistics, normalisation and losses are not."""

import copy

import pytest
import torch
from family import KINDS, LEVEL, MOVING, D, each, every_kind

from levelhead.values import LinearValueHead, ValueNormHead

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
K, N = 2, 6
RAW = (LinearValueHead, ValueNormHead)  # their layers themselves reach for the raw value


def model(kind, dtype=torch.float32, scale=1e6):
    """A head with a random layer on targets of this scale; features and targets for it."""
    torch.manual_seed(0)
    head = kind(D, K, dtype=dtype)
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    y = scale * (torch.randn(50, K) + 3)
    head.adopt(y)
    return head, torch.randn(N, D).to(dtype), y[:N]


def exactly(head, output):
    """A float64 twin of `head` whose layer outputs row `i` of `output` for the one-hot features `i`."""
    twin = copy.deepcopy(head).double()
    twin.linear = torch.nn.Linear(N, output.shape[-1], dtype=torch.float64)
    with torch.no_grad():
        twin.linear.weight.copy_(output.T)
        twin.linear.bias.zero_()
    return twin


def close(values, expected):
    return ((values.double() - expected).abs() <= 1e-5 * expected.abs().amax()).all()


ONE_HOT = torch.eye(N, dtype=torch.float64)


@HALVES
@each([kind for kind in KINDS if kind not in RAW])
def test_only_the_layer_is_in_half_precision_targets_may_be_beyond_its_range(kind, dtype):
    head, x, y = model(kind, dtype)
    assert y.abs().max() > torch.finfo(torch.float16).max
    exact = exactly(head, head.linear(x))
    assert head(x).dtype == head.both(x)[0].dtype == head.loss(x, y).dtype == torch.float32
    assert close(head(x), exact(ONE_HOT))
    assert close(head.loss(x, y), exact.loss(ONE_HOT, y.double()))


@HALVES
@each(MOVING)
def test_statistics_of_a_half_precision_head_are_those_of_a_float64_one(kind, dtype):
    torch.manual_seed(0)
    half, double = kind(D, K, dtype=dtype), kind(D, K, dtype=torch.float64)
    y = 1e6 * (torch.randn(20, K) + 3)
    for head in (half, double):
        head.update(y)
        head.observe(-2 * y)
    for name in ("mean", "var", "std", "count"):
        assert torch.equal(half.get_buffer(name), double.get_buffer(name)), name
    assert torch.equal(half.normalize(y), double.normalize(y))
    assert half.normalize(y).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "scale"), [*((kind, 1.0) for kind in KINDS), *((kind, scale) for kind in LEVEL for scale in (1e-3, 1e6))]
)
def test_a_model_in_bf16_learns(kind, scale):
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh())
    network = torch.nn.Sequential(trunk, kind(32)).to(torch.bfloat16)
    head = network[1]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    head.track(optimizer)
    x = torch.randn(64, 3)
    y = scale * (x.sum(1).sin() * 3 + 1)
    head.observe(y)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(trunk(x.to(torch.bfloat16)), y).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    error = (network(x.to(torch.bfloat16))[:, 0] - y).square().mean().sqrt() / y.std()
    assert head.mean.dtype == torch.float64
    assert all(parameter.dtype == torch.bfloat16 for parameter in network.parameters())
    assert losses[-1] < losses[0]
    assert error < 0.5


@every_kind
def test_under_autocast_values_are_exact_given_the_output_of_the_layer(kind):
    head, x, _ = model(kind)
    with torch.autocast("cpu", torch.bfloat16):
        output, value, (detached, _) = head.linear(x), head(x), head.both(x)
    assert output.dtype == torch.bfloat16
    assert value.dtype == detached.dtype == torch.float32
    assert close(value, exactly(head, output)(ONE_HOT))
    assert torch.equal(detached, value)


@every_kind
def test_under_autocast_losses_are_exact_given_the_output_of_the_layer(kind):
    head, x, y = model(kind)
    with torch.autocast("cpu", torch.bfloat16):
        output, loss, z = head.linear(x), head.loss(x, y), head.normalize(y)
        loss.sum().backward()
    assert loss.dtype == z.dtype == torch.float32
    assert torch.equal(z, head.normalize(y))
    assert close(loss, exactly(head, output).loss(ONE_HOT, y.double()))
    assert head.linear.weight.grad.dtype == torch.float32
    assert head.linear.weight.grad.isfinite().all()


@every_kind
def test_under_autocast_an_update_is_the_same_to_the_last_bit(kind):
    (inside, _, y), (outside, _, _) = model(kind), model(kind)
    with torch.autocast("cpu", torch.bfloat16):
        inside.update(-3 * y)
    outside.update(-3 * y)
    for name, x in outside.state_dict().items():
        assert torch.equal(inside.state_dict()[name], x), name
