"""The squared error with Huber's bound."""

import pytest
import torch
from family import trained
from torch.nn.functional import huber_loss
from torch.testing import assert_close

from levelhead.values import HLGaussValueHead, PopArtValueHead, TwoHotValueHead, value_loss

WIDTHS = [0.1, 1.0, 7.5]


def errors(seed=0, size=200):
    z, y, old = 3 * torch.randn(3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z.requires_grad_(), y, old


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_it_is_twice_that_of_torch(width, as_tensor):
    z, y, _ = errors()
    given = torch.tensor(width, dtype=torch.float64) if as_tensor else width
    loss = value_loss(z, y, huber=given)
    assert_close(loss, 2 * huber_loss(z, y, reduction="none", delta=width))
    beyond = (z - y).abs() > width
    assert 0 < beyond.sum() < len(z)
    assert_close(loss[~beyond], (z - y).square()[~beyond])


@pytest.mark.parametrize("width", WIDTHS)
def test_its_slope_grows_no_further(width):
    z, y, _ = errors()
    value_loss(z, y, huber=width).sum().backward()
    assert_close(z.grad, 2 * (z - y).detach().clamp(-width, width))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("clip", [0.2, 2.0])
def test_with_a_clip_it_is_the_larger_of_both(width, clip):
    z, y, old = errors()
    loss = value_loss(z, y, old, clip, width)
    clipped = z.clamp(old - clip, old + clip)
    both = [2 * huber_loss(x, y, reduction="none", delta=width) for x in (z, clipped)]
    assert_close(loss, torch.maximum(*both))
    loss.sum().backward()
    stands = (clipped - y).abs() > (z - y).abs()
    assert 0 < stands.sum() < len(z)
    assert (z.grad[stands] == 0).all()
    assert_close(z.grad[~stands], 2 * (z - y).detach().clamp(-width, width)[~stands])


def test_an_error_of_nothing_has_no_slope():
    z = torch.ones(3, requires_grad=True)
    value_loss(z, torch.ones(3), huber=0.5).sum().backward()
    assert (z.grad == 0).all()


def test_a_head_takes_its_bound_on_the_normalized_axis():
    head = trained(PopArtValueHead)
    x, y = torch.randn(6, head.input_dim, dtype=torch.float64), 1e3 * torch.randn(6, dtype=torch.float64)
    z, target = head.forward_normalized(x).squeeze(-1), head.normalize(y)
    assert_close(head.loss(x, y, huber=0.3), 2 * huber_loss(z, target, reduction="none", delta=0.3))
    assert_close(head.loss_normalized(x, target, huber=0.3), head.loss(x, y, huber=0.3))


@pytest.mark.parametrize("kind", [HLGaussValueHead, TwoHotValueHead])
def test_a_cross_entropy_takes_no_bound(kind):
    head = trained(kind)
    x, y = torch.randn(3, head.input_dim, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="Huber"):
        head.loss(x, y, huber=1.0)
    assert head.loss(x, y).isfinite().all()
