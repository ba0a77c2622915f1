"""The protocol that every value head keeps."""

import pytest
import torch
import torch.nn.functional as F
from family import (
    DISTRIBUTIONAL,
    FIXED,
    KINDS,
    LEVEL,
    SCALAR,
    D,
    each,
    every_kind,
    features,
    seeds,
    state,
    trained,
    unchanged,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from levelhead.values import TransformValueHead, ValueNormHead, value_loss

NAN = float("nan")
law = settings(deadline=None, max_examples=20)
every_scalar_kind, every_distributional_kind = each(SCALAR), each(DISTRIBUTIONAL)


@every_kind
def test_a_head_says_what_it_is(kind):
    head = trained(kind)
    assert head.has_statistics == (kind not in FIXED)
    assert head.predicts_normalized == head.scale_free == (kind in LEVEL)
    assert head.squared == (kind in SCALAR)
    assert not trained(kind, epsilon=1e-3).scale_free


@every_kind
@pytest.mark.parametrize("output_dim", [1, 3])
@pytest.mark.parametrize("shape", [(), (7,), (7, 1), (5, 2), (5, 2, 3)])
def test_values_have_the_leading_shape_of_the_features(kind, output_dim, shape):
    head, x = trained(kind, output_dim), features(*shape)
    value, z = head.both(x)
    assert value.shape == z.shape == (*shape, output_dim)
    assert_close(value, head(x), rtol=1e-14, atol=1e-14)
    assert torch.equal(z, head.forward_normalized(x))
    assert not value.requires_grad
    assert z.requires_grad


@every_kind
@pytest.mark.parametrize(
    ("output_dim", "shape", "task"),
    [
        (1, (6,), False),
        (1, (6, 1), False),
        (1, (4, 3), False),
        (1, (4, 3, 1), False),
        (1, (6,), True),
        (3, (6, 3), False),
        (3, (4, 2, 3), False),
        (3, (6,), True),
        (3, (4, 2), True),
        (3, (), True),
    ],
)
def test_answers_have_the_shape_of_the_question(kind, output_dim, shape, task):
    head = trained(kind, output_dim)
    leading = shape[:-1] if not task and shape[-1] == output_dim else shape
    y, x = torch.randn(shape).double(), features(*leading)
    ids = {"task": torch.randint(output_dim, shape)} if task else {}
    assert head.normalize(y, **ids).shape == head.denormalize(y, **ids).shape == shape
    assert head.loss(x, y, **ids).shape == shape
    for mask in (y > 0, *([] if task else [torch.ones(leading) > 0])):
        assert head.loss(x, y, **ids, mask=mask, weights=mask.double()).shape == shape
        head.update(y, **ids, mask=mask, weights=mask.double())


def dummies(shapes):
    """Arguments that are right in everything but, perhaps, their shape."""
    dtypes = {"task": torch.int64, "mask": torch.bool}
    return {name: torch.ones(shape, dtype=dtypes.get(name, torch.float64)) for name, shape in shapes.items()}


@every_kind
@pytest.mark.parametrize(
    ("output_dim", "shape", "others"),
    [
        (3, (6,), {}),
        (3, (6, 1), {}),
        (3, (6, 3), {"task": (6,)}),
        (3, (6,), {"task": (6, 1)}),
        (3, (6, 3), {"mask": (3,)}),
        (3, (6, 3), {"weights": (6, 1)}),
        (3, (6, 2), {"task": (6, 2), "mask": (6,)}),
        (1, (6, 2), {"mask": (6,)}),
        (1, (6, 2), {"weights": (6,)}),
        (1, (6,), {"weights": (1,)}),
        (1, (6,), {"mask": (6, 1)}),
    ],
)
def test_no_argument_broadcasts_over_the_targets(kind, output_dim, shape, others):
    head, y, others = trained(kind, output_dim), torch.randn(shape).double(), dummies(others)
    before, x = state(head), features(*((6, 2) if shape == (6, 2) else (6,)))
    for method in (head.update, head.adopt, head.observe, lambda *args, **named: head.loss(x, *args, **named)):
        with pytest.raises(ValueError, match=r"\("):
            method(y, **others)
    if "mask" not in others and "weights" not in others:
        for method in (head.normalize, head.denormalize):
            with pytest.raises(ValueError, match=r"\("):
                method(y, **others)
    assert unchanged(head, before)


@every_kind
@pytest.mark.parametrize(
    ("output_dim", "leading", "shape", "others"),
    [
        (1, (6,), (5,), {}),
        (1, (6,), (6, 6), {}),
        (1, (6,), (1, 6), {}),
        (1, (6,), (6, 1, 1), {}),
        (1, (6, 1), (6,), {}),
        (3, (3,), (3,), {}),
        (3, (6,), (5,), {"task": (5,)}),
        (3, (6, 2), (6,), {"task": (6,)}),
    ],
)
def test_targets_do_not_broadcast_over_values(kind, output_dim, leading, shape, others):
    head = trained(kind, output_dim)
    with pytest.raises(ValueError, match=r"\("):
        head.loss(features(*leading), torch.randn(shape).double(), **dummies(others))


@every_scalar_kind
@pytest.mark.parametrize(
    ("output_dim", "shape", "old"), [(1, (6,), (6, 1)), (1, (6, 1), (6,)), (3, (6, 3), (1, 3)), (3, (6, 3), (6, 1))]
)
def test_old_values_do_not_broadcast_over_targets(kind, output_dim, shape, old):
    head = trained(kind, output_dim)
    with pytest.raises(ValueError, match=r"\("):
        head.loss(features(6), torch.ones(shape).double(), old_values=torch.ones(old).double(), clip=0.2)


@every_kind
@pytest.mark.parametrize("task", [-1, 3])
def test_a_task_that_does_not_exist_is_refused(kind, task):
    head, y, task = trained(kind, 3), torch.ones(2), torch.tensor([0, task])
    before = state(head)
    for method in (head.update, head.adopt):
        with pytest.raises(ValueError, match=r"0\.\.2"):
            method(y, task=task)
    assert unchanged(head, before)


@every_kind
@pytest.mark.parametrize(
    "wrong", [{"mask": torch.ones(2)}, {"weights": torch.tensor([1.0, -1.0])}, {"weights": torch.tensor([1.0, NAN])}]
)
def test_a_mask_is_boolean_and_a_weight_is_a_number_not_below_0(kind, wrong):
    head = trained(kind)
    before = state(head)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        head.update(torch.ones(2), **wrong)
    assert unchanged(head, before)


@every_scalar_kind
@law
@given(seeds)
def test_loss_is_the_squared_error_on_the_normalized_axis(kind, seed):
    head, x = trained(kind, 3, seed), features(8)
    y = torch.randn(8, 3).double()
    z, target = head.forward_normalized(x), head.normalize(y)
    loss = head.loss(x, y)
    assert torch.equal(loss, (z - target).square())
    assert_close(loss.mean(), F.mse_loss(z, target), rtol=1e-14, atol=0)


@every_kind
@law
@given(seeds)
def test_a_task_selects_its_column_of_values_and_losses(kind, seed):
    head, x = trained(kind, 3, seed), features(8)
    y, task = torch.randn(8, 3).double(), torch.randint(3, (8,))
    entries = torch.arange(8), task
    assert torch.equal(head.loss(x, y[entries], task=task), head.loss(x, y)[entries])
    assert torch.equal(head.normalize(y[entries], task=task), head.normalize(y)[entries])
    assert torch.equal(head.denormalize(y[entries], task=task), head.denormalize(y)[entries])


@every_kind
@law
@given(seeds)
def test_weights_multiply_the_loss_and_targets_may_be_normalized_beforehand(kind, seed):
    head, x = trained(kind, 3, seed), features(8)
    y, weights = torch.randn(8, 3).double(), torch.rand(8, 3).double()
    loss = head.loss(x, y)
    assert torch.equal(head.loss(x, y, weights=weights), loss * weights)
    assert torch.equal(head.loss(x, y, weights=weights[:, 0]), loss * weights[:, :1])
    assert torch.equal(head.loss_normalized(x, head.normalize(y)), loss)


@pytest.mark.parametrize(("kind", "clipped"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in SCALAR)])
@law
@given(seeds, st.booleans())
def test_masked_entries_give_zero_loss_and_no_gradient_even_where_nan(kind, clipped, seed, per_entry):
    head, x = trained(kind, 2, seed), features(6)
    y, old = torch.randn(2, 6, 2).double()
    mask = torch.rand(6, 2) < 0.5 if per_entry else torch.rand(6) < 0.5
    entries = mask if per_entry else mask[:, None].expand(6, 2)
    clip = {"clip": 0.1} if clipped else {}
    old_values = {"old_values": old.where(entries, NAN)} if clipped else {}
    x.requires_grad_()
    loss = head.loss(x, y.where(entries, NAN), mask=mask, **old_values, **clip)
    clean = head.loss(x, y, **({"old_values": old} if clipped else {}), **clip) * entries
    assert torch.equal(loss, clean)
    sources = [x, *head.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(one.sum(), sources) for one in (loss, clean)), strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


CLIP_CASES = pytest.mark.parametrize(("new", "loss"), [(1.5, 0.64), (0.7, 1.69), (1.1, 0.81), (2.5, 0.64)])


@CLIP_CASES
def test_the_clipped_loss_is_the_larger_of_both(new, loss):
    z, y, old = (torch.tensor([v], dtype=torch.float64) for v in (new, 2.0, 1.0))
    assert value_loss(z, y, old, 0.2).item() == pytest.approx(loss, rel=1e-12)
    assert value_loss(z, y, old, torch.tensor(0.2)).item() == pytest.approx(loss, rel=1e-6)


@CLIP_CASES
@every_scalar_kind
def test_the_clip_acts_on_the_normalized_axis_under_the_statistics_of_today(kind, new, loss):
    head = trained(kind)
    old_values = head.denormalize(torch.ones(5, dtype=torch.float64))
    head.update(torch.tensor([-40.0, 900.0]))
    z = head.normalize(old_values)[0]  # where the old value lies now
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(z + new - 1)
        if kind is ValueNormHead:
            head.linear.bias.copy_(head.denormalize(head.linear.bias))
    got = head.loss(features(5), head.denormalize((z + 1).expand(5)), old_values=old_values, clip=0.2)
    assert_close(got, torch.full_like(got, loss), rtol=1e-10, atol=0)


@every_scalar_kind
def test_a_clip_needs_old_values_and_old_values_a_clip(kind):
    head, x, y = trained(kind), features(3), torch.ones(3).double()
    for half in ({"clip": 0.2}, {"old_values": y}):
        with pytest.raises(ValueError, match="both"):
            head.loss(x, y, **half)


@every_distributional_kind
@pytest.mark.parametrize("names", [("clip",), ("old_values",), ("clip", "old_values")])
def test_a_distributional_head_refuses_a_clip(kind, names):
    head, x, y = trained(kind), features(3), torch.ones(3).double()
    given = {"clip": 0.2, "old_values": y}
    with pytest.raises(ValueError, match=f"{kind.__name__} .* no value clip"):
        head.loss(x, y, **{name: given[name] for name in names})


@every_kind
def test_what_is_masked_may_hold_any_task_and_any_weight(kind):
    head, plain = trained(kind, 3), trained(kind, 3)
    x, y, task, weights = features(6), torch.randn(6).double(), torch.arange(6) % 3, torch.rand(6).double()
    mask = torch.tensor([True, False, True, True, False, True])
    spoilt = {"task": task.where(mask, -1), "weights": weights.where(mask, NAN), "mask": mask}
    assert torch.equal(head.loss(x, y, **spoilt), plain.loss(x, y, task=task, weights=weights, mask=mask))
    for method in ("update", "adopt", "observe"):
        getattr(head, method)(y.where(mask, NAN), **spoilt)
        getattr(plain, method)(y, task=task, weights=weights, mask=mask)
        assert unchanged(head, state(plain))


@each(SCALAR)
@pytest.mark.parametrize("shape", [(1,), (8, 1), ()])
def test_old_values_do_not_broadcast_behind_a_mask(kind, shape):
    head, mask = trained(kind), torch.ones(8) > 0
    with pytest.raises(ValueError, match="old values"):
        head.loss(features(8), torch.ones(8).double(), mask=mask, old_values=torch.ones(shape).double(), clip=0.2)


@every_kind
def test_a_head_made_on_the_meta_device_is_reset_to_a_new_one(kind):
    with torch.device("meta"):
        head = kind(D, 3, 0.9, dtype=torch.float64)
    assert head.mean.is_meta
    head.to_empty(device="cpu")
    head.reset_parameters()
    new = kind(D, 3, 0.9, dtype=torch.float64)
    assert unchanged(head, state(new))
    y = torch.randn(5, 3).double()
    head.update(y)
    new.update(y)
    assert unchanged(head, state(new))
    assert torch.equal(head.loss(features(5).zero_(), y), new.loss(features(5).zero_(), y))


@pytest.mark.parametrize("transform", ["symlog", (torch.asinh, torch.sinh), None])
def test_a_transform_is_a_transform(transform):
    with pytest.raises(ValueError, match=r"levelhead\.SYMLOG"):
        TransformValueHead(D, transform=transform)
