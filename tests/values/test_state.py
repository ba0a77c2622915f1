"""What a head holds: in which dtype, what may change it, and how it is copied, saved and kept in place."""

import copy
import io

import pytest
import torch
from family import FIXED, D, each, every_kind, state, trained, unchanged
from torch.testing import assert_close

from levelhead.numerics import moments
from levelhead.values import HLGaussValueHead, TwoHotValueHead, ValueNormalizer

K, NAN, INF = 3, float("nan"), float("inf")


@every_kind
def test_a_new_head_predicts_0_and_reports_mean_0_and_std_1(kind):
    head = kind(input_dim=D, output_dim=K)
    assert torch.equal(head(1e6 * torch.randn(5, D)), torch.zeros(5, K))
    assert (head.mean.tolist(), head.std.tolist(), head.var.tolist(), head.count.tolist()) == (
        [0] * K,
        [1] * K,
        [1] * K,
        [0] * K,
    )
    assert {"mean", "var", "std", "count"} <= head.state_dict().keys()


@each(FIXED)
def test_a_head_without_statistics_reports_mean_0_and_std_1_for_ever_and_counts(kind):
    head = trained(kind, K)
    head.update(torch.full((2,), 7.0), task=torch.tensor([0, 0]))
    assert (head.mean.tolist(), head.std.tolist(), head.count.tolist()) == ([0] * K, [1] * K, [2, 1, 1])
    assert not head.scaled.any()


@every_kind
@pytest.mark.parametrize(
    "options", [{"beta": 1.0}, {"beta": NAN}, {"epsilon": -1.0}, {"epsilon": INF}, {"output_dim": 0}, {"input_dim": 0}]
)
def test_arguments_out_of_range_are_refused(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**{"input_dim": D, **options})


CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "type": lambda m: m.type(torch.float16),
    "inside a module": lambda m: torch.nn.Sequential(m).half()[0],
    "there and back": lambda m: m.half().to("cpu").float(),
}


@every_kind
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_statistics_keep_their_dtype_and_every_bit_when_the_layer_is_cast(kind, cast):
    head = trained(kind, K, beta=0.9)
    before, names = {name: x.clone() for name, x in head.named_buffers()}, list(head.state_dict())
    head = cast(head)
    assert list(head.state_dict()) == names
    assert head.beta == 0.9
    for name, buffer in head.named_buffers():
        assert buffer.dtype in (torch.float64, torch.int64, torch.bool), name
        assert torch.equal(buffer, before[name]), name
    assert head.count.dtype == torch.int64
    assert head.std.dtype == head.mean.dtype == head.var.dtype == torch.float64
    head.update(torch.randn(5, K))
    x = torch.randn(2, D, dtype=head.linear.weight.dtype)
    assert head(x).dtype == head.both(x)[0].dtype == torch.promote_types(x.dtype, torch.float32)


@every_kind
def test_a_head_moves_to_a_device_as_a_whole_and_keeps_its_dtypes(kind):
    dtypes = {name: x.dtype for name, x in kind(D, K).named_buffers()}
    for head in (kind(D, K, device="meta"), kind(D, K).half().to("meta")):
        assert {x.device.type for x in (*head.parameters(), *head.buffers())} == {"meta"}
        assert {name: x.dtype for name, x in head.named_buffers()} == dtypes


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_map_answers_in_its_own_dtype(kind, dtype):
    head = trained(kind, K, dtype=dtype)
    assert head.linear.weight.dtype == dtype
    assert head.mean.dtype == torch.float64
    y = torch.randn(5, K).to(dtype)
    assert head.normalize(y).dtype == dtype
    assert head.denormalize(y).dtype == torch.promote_types(dtype, torch.float32)


def test_normalize_computes_in_float64_so_that_float32_far_from_zero_loses_nothing():
    norm, y = ValueNormalizer(), 1e6 + torch.tensor([-3.0, -1.0, 1.0, 3.0])
    norm.update(y.double() + 0.03)  # a mean and a std that float32 doesn't have
    expected = torch.tensor([-3.03, -1.03, 0.97, 2.97]) / 5**0.5
    assert_close(norm.normalize(y), expected, rtol=1e-6, atol=0)


@every_kind
@pytest.mark.parametrize("method", ["update", "adopt"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("task", [False, True])
def test_a_non_finite_target_names_its_output_and_changes_nothing(kind, method, bad, task):
    head, follower = trained(kind, K), trained(kind, K)
    optimizer = torch.optim.Adam(head.parameters())
    head.track(optimizer).mirror(follower)
    head.loss(torch.randn(6, D).double(), torch.randn(6, K).double()).sum().backward()
    optimizer.step()
    modules, moments = [head, follower], copy.deepcopy(optimizer.state_dict())
    before = [state(module) for module in modules]
    y, ids = 100 * torch.randn(6, K), {}
    y[2, 1] = bad
    if task:
        y, ids = y.flatten(), {"task": torch.arange(K).repeat(6)}
    with pytest.raises(ValueError, match=r"non-finite target for output 1\b"):
        getattr(head, method)(y, **ids)
    assert all(map(unchanged, modules, before))
    assert_close(optimizer.state_dict(), moments, rtol=0, atol=0)
    getattr(head, method)(y, **ids, mask=y.isfinite())
    assert (head.count - before[0]["count"]).tolist() == [1] * K


def test_a_normalizer_refuses_a_non_finite_target_and_keeps_its_state():
    norm = ValueNormalizer(output_dim=2)
    before = state(norm)
    with pytest.raises(ValueError, match=r"output 0\b"):
        norm.update(torch.tensor([[NAN, 1.0], [2.0, 2.0]]))
    assert unchanged(norm, before)


@every_kind
def test_observe_reports_a_non_finite_target_and_leaves_that_output_alone(kind):
    head = trained(kind, K)
    before, y = state(head), torch.randn(6, K)
    y[2, 1] = NAN
    assert head.observe(y).tolist() == [True, False, True]
    assert unchanged(head, before, 1)
    assert head.count.tolist() == [2, 1, 2]
    assert head.observe(y, mask=y.isfinite()).tolist() == [True] * K


@every_kind
@pytest.mark.parametrize("bad", [0.0, NAN])
def test_moments_of_targets_move_a_head_as_the_targets_themselves_do(kind, bad):
    one, other = trained(kind, K), trained(kind, K)
    y, mask = torch.randn(6, K) * 100, torch.rand(6, K) < 0.7
    y[2, 1] = bad
    assert torch.equal(one.observe(y, mask=mask), other.observe_moments(moments(y, mask)))
    assert unchanged(other, state(one))


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_predicting_and_taking_losses_changes_nothing(kind, training):
    head = trained(kind, K).train(training)
    before, x, y = state(head), torch.randn(5, D).double(), torch.randn(5, K).double()
    head(x), head.both(x), head.forward_normalized(x), head.normalize(y), head.denormalize(y)
    clip = {"old_values": y, "clip": 0.2} if kind.squared else {}
    head.loss(x, y, mask=y > 0, weights=y.abs(), **clip).sum().backward()
    assert unchanged(head, before)


@every_kind
@pytest.mark.parametrize("method", ["update", "adopt", "observe"])
def test_everything_is_written_in_place_and_stays_free_of_graphs(kind, method):
    head = trained(kind, K)
    held = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    places = {name: x.data_ptr() for name, x in held.items()}
    getattr(head, method)(torch.randn(6, K, requires_grad=True), weights=torch.rand(6, requires_grad=True))
    for name, x in (*head.named_parameters(), *head.named_buffers()):
        assert x is held[name], name
        assert x.data_ptr() == places[name], name
        assert x.is_leaf, name
    assert not any(buffer.requires_grad for buffer in head.buffers())


COPIES = {
    "deepcopy": copy.deepcopy,
    "state_dict": lambda head: _loaded(head),
    "pickle": lambda head: torch.load(_written(head), weights_only=False),
}


def _written(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return file


def _loaded(head):
    twin = type(head)(D, K, head.beta, dtype=torch.float64)
    twin.load_state_dict(torch.load(_written(head.state_dict()), weights_only=True))
    return twin


@every_kind
@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES.keys())
def test_a_copy_goes_on_like_the_original_and_shares_nothing_with_it(kind, how):
    head = trained(kind, K, beta=0.7)
    twin, before = how(head), state(head)
    assert unchanged(twin, before)
    twin.update(torch.arange(2.0 * K).reshape(2, K))
    assert unchanged(head, before)
    head.update(torch.arange(2.0 * K).reshape(2, K))
    assert unchanged(twin, state(head))


@every_kind
def test_a_head_prints_as_it_was_made(kind):
    text = repr(kind(D, K, beta=0.5, epsilon=0.25))
    assert text.startswith(f"{kind.__name__}(")
    assert "input_dim=4, output_dim=3, beta=0.5, epsilon=0.25" in text


def test_a_distributional_head_prints_its_bins():
    assert "bins=7, limit=3.0" in repr(TwoHotValueHead(D, bins=7, limit=3.0))
    assert "bins=7, limit=3.0, smoothing=0.5" in repr(HLGaussValueHead(D, bins=7, limit=3.0, smoothing=0.5))
