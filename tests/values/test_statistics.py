"""Running statistics of targets: what they equal, what reaches them, and what leaves them alone."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from levelhead.values import ValueNormalizer

law = settings(deadline=None, max_examples=50)
K = 2
EXACT = {"rtol": 1e-10, "atol": 1e-10}
betas = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.98, 0.999])


def tensors(shape, low=-6400, high=6400):
    return arrays("i8", shape, elements=st.integers(low, high)).map(torch.from_numpy)


@st.composite
def batches(draw):
    """Targets, mask and whole weights, all `[M, K]`, as keyword arguments of `update`."""
    shape = (draw(st.integers(1, 6)), K)
    targets = draw(tensors(shape)).double() / 64
    return {"targets": targets, "mask": draw(tensors(shape, 0, 1)).bool(), "weights": draw(tensors(shape, 0, 3))}


histories = st.lists(st.tuples(betas, batches()), min_size=1, max_size=5)


def each(history, change):
    return [(beta, change(**batch)) for beta, batch in history]


def feed(history, output_dim=K):
    norm = ValueNormalizer(output_dim=output_dim)
    for beta, batch in history:
        norm.beta = beta
        norm.update(**batch)
    return norm


def state(norm):
    return {name: buffer.clone() for name, buffer in norm.state_dict().items()}


def same(norm, other, column=slice(None)):
    for name, buffer in other.state_dict().items():
        assert_close(norm.state_dict()[name][column], buffer, **EXACT, msg=lambda m, name=name: f"{name}: {m}")


def once(*targets, beta=0.98, **options):
    norm = ValueNormalizer(beta, **options)
    for y in targets:
        norm.update(torch.as_tensor(y))
    return norm


def by_definition(history, k):
    """Count and debiased moving averages of first and second moments, in exact rational arithmetic."""
    rows = []
    for beta, batch in history:
        use = (batch["mask"] * batch["weights"])[:, k].tolist()
        y = [Fraction(v) for v, n in zip(batch["targets"][:, k].tolist(), use, strict=True) for _ in range(n)]
        if y:
            rows = [(share * Fraction(beta), m, q) for share, m, q in rows]
            rows.append((1 - Fraction(beta), sum(y) / len(y), sum(v * v for v in y) / len(y)))
    if not rows:
        return 0, Fraction(0), Fraction(1)
    first, second = (sum(row[0] * row[i] for row in rows) / sum(row[0] for row in rows) for i in (1, 2))
    return len(rows), first, second - first**2


@law
@given(histories)
def test_they_equal_debiased_moving_averages_of_both_moments_also_while_beta_changes(history):
    norm = feed(history)
    for k in range(K):
        count, mean, var = by_definition(history, k)
        assert norm.count[k] == count
        assert norm.mean[k].item() == pytest.approx(float(mean), rel=1e-10, abs=1e-10)
        assert norm.var[k].item() == pytest.approx(float(var), rel=1e-10, abs=1e-10)
        if var > 1e-6 * mean**2:
            assert norm.std[k].item() == pytest.approx(float(var) ** 0.5, rel=1e-10)


@pytest.mark.parametrize("beta", [1 - 1e-7, 1 - 1e-12])
def test_debiasing_holds_for_a_retention_close_to_1(beta):
    norm = once([1.0], [2.0], [6.0], beta=beta)
    assert norm.mean.item() == pytest.approx(3.0, rel=1e-3)
    assert norm.var.item() == pytest.approx(14 / 3, rel=1e-3)


@law
@given(histories)
def test_the_first_update_takes_the_statistics_of_the_batch_whole(history):
    beta, batch = history[0]
    norm = feed([(beta, {"targets": batch["targets"]})])
    assert_close(norm.mean, batch["targets"].mean(0), **EXACT)
    assert_close(norm.var, batch["targets"].var(0, correction=0), **EXACT)


@law
@given(histories)
def test_with_retention_0_they_are_those_of_the_last_batch(history):
    last = [(0.0, {"targets": history[-1][1]["targets"]})]
    norm, alone = feed(history + last), feed(last)
    assert_close((norm.mean, norm.var), (alone.mean, alone.var), **EXACT)


@law
@given(histories)
def test_masking_is_dropping(history):
    masked = each(history, lambda targets, mask, weights: {"targets": targets, "mask": mask[:, 0], "weights": weights})
    dropped = each(masked, lambda targets, mask, weights: {"targets": targets[mask], "weights": weights[mask]})
    same(feed(masked), feed(dropped))


@law
@given(histories)
def test_weighting_is_repeating(history):
    weighted = each(history, lambda targets, mask, weights: {"targets": targets, "weights": weights[:, 0]})
    repeated = each(weighted, lambda targets, weights: {"targets": targets.repeat_interleave(weights, 0)})
    same(feed(weighted), feed(repeated))


@law
@given(histories)
def test_outputs_are_independent(history):
    for k in range(K):
        own = each(history, lambda k=k, **batch: {name: x[:, k] for name, x in batch.items()})
        same(feed(history), feed(own, 1), slice(k, k + 1))


@law
@given(histories, st.data())
def test_a_task_is_a_normalizer_of_its_own(history, data):
    tasks = each(
        history,
        lambda **batch: {
            **{name: x[:, 0] for name, x in batch.items()},
            "task": data.draw(tensors(len(batch["mask"]), 0, K - 1)),
        },
    )
    for k in range(K):
        own = each(tasks, lambda task, k=k, **batch: {name: x[task == k] for name, x in batch.items()})
        same(feed(tasks), feed(own, 1), slice(k, k + 1))


@law
@given(tensors(st.integers(1, 8)), st.integers(1, 7))
def test_the_size_of_a_batch_does_not_change_the_rate(targets, copies):
    first, second = torch.ones(3), targets.double()
    same(once(first, second.repeat(copies)), once(first, second))


@law
@given(histories, st.sampled_from([float("nan"), float("inf")]))
def test_what_is_masked_may_hold_anything(history, bad):
    def spoil(targets, mask, weights):
        return {"targets": torch.where(mask & (weights > 0), targets, bad), "mask": mask, "weights": weights}

    same(feed(each(history, spoil)), feed(history))


@law
@given(histories)
def test_an_output_without_samples_is_left_alone_count_included(history):
    norm = feed(history)
    before = state(norm)
    norm.update(torch.tensor([3.0, 5.0]), task=torch.tensor([1, 1]))
    assert (norm.count - before["count"]).tolist() == [0, 1]
    for name, buffer in state(norm).items():
        assert torch.equal(buffer[0], before[name][0]), name
    before = state(norm)
    norm.update(torch.zeros(0, K))
    norm.update(torch.ones(4, K), mask=torch.zeros(4, dtype=torch.bool))
    norm.update(torch.ones(4, K), weights=torch.zeros(4, K))
    assert all(torch.equal(buffer, before[name]) for name, buffer in state(norm).items())


@law
@given(histories, tensors((5, K)), st.integers(-20, 20))
def test_normalize_and_denormalize_are_inverses(history, z, power):
    norm = feed(each(history, lambda targets, **rest: {"targets": targets * 10.0**power, **rest}))
    z, task = z.double() / 64, torch.tensor([0, 1, 1, 0, 1])
    x = norm.denormalize(z)
    assert_close(x, z * norm.std + norm.mean, rtol=1e-14, atol=0)
    assert_close(norm.normalize(x), z, rtol=1e-10, atol=1e-9)  # std may be 1e-6 of the mean
    rows = torch.arange(5), task
    assert torch.equal(norm.denormalize(z[rows], task=task), x[rows])
    assert torch.equal(norm.normalize(x[rows], task=task), norm.normalize(x)[rows])


def test_spread_between_batches_is_kept():
    norm = ValueNormalizer()
    for i in range(2000):
        norm.update((-1) ** i * 1000 + torch.tensor([-1.0, 1.0]))
    assert norm.std.item() == pytest.approx(1000, rel=1e-3)


def test_float32_targets_far_from_zero_do_not_lose_their_spread():
    norm = once(*(1e4 + 10 * torch.tensor([-1.0, 1.0]).repeat(1000) for _ in range(20)))
    assert norm.std.item() == pytest.approx(10, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e6, 1e30])
def test_no_floor_and_no_clamp_at_any_scale(scale, dtype):
    y = (scale * torch.tensor([-100.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)).to(dtype)
    norm = once(y)
    assert norm.std.item() == pytest.approx(y.double().std(correction=0).item(), rel=1e-10)
    expected = (y.double() - y.double().mean()) / y.double().std(correction=0)
    assert_close(norm.normalize(y), expected.to(dtype))
    assert norm.normalize(1000 * y).abs().max() > 1000


@pytest.mark.parametrize(
    ("targets", "std"),
    [
        ([[0.0, 0.0]], 1.0),
        ([[-5.0, -5.0]], 5.0),
        ([[1e-30] * 3], 1e-30),
        ([[0.1] * 7], 0.1),
        ([[1e4, 1e4 + 1e-3]], 1e4 + 5e-4),
        ([[-7.0, 7.0], [5.0, 5.0]], 7.0),
        ([[-7.0, 7.0], [5.0, 5.0], [0.0, 0.0]], 7.0),
        ([[5.0, 5.0], [3.0, 3.0]], 3.0),
        ([[5.0, 5.0], [0.0, 0.0]], 1.0),
        ([[5.0, 5.0], [5.0, 6.0]], 0.5),
    ],
)
def test_constant_targets_fall_back_to_the_last_real_spread_else_the_magnitude_else_1(targets, std):
    norm = once(*(torch.tensor(y, dtype=torch.float64) for y in targets), beta=0.0)
    assert norm.std.item() == pytest.approx(std, rel=1e-12)


def test_count_is_an_integer_that_does_not_stop_at_the_limit_of_float32():
    norm = once([1.0, 2.0])
    assert norm.count.dtype == torch.int64
    norm.count.fill_(2**24)
    norm.update(torch.ones(2))
    assert norm.count.item() == 2**24 + 1


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_epsilon_is_in_the_one_std_that_everything_uses(shift):
    y = torch.tensor([-1.0, 1.0], dtype=torch.float64) + shift
    norm = once(y, epsilon=3.0)
    assert (norm.var.item(), norm.std.item()) == (1.0, 2.0)
    assert norm.normalize(y).tolist() == [-0.5, 0.5]
    assert torch.equal(norm.denormalize(norm.normalize(y)), y)


def test_retention_may_be_set_anew_within_its_range():
    norm = ValueNormalizer(0.5)
    norm.beta = 0.9
    assert norm.beta == 0.9
    with pytest.raises(ValueError, match="beta"):
        norm.beta = 1.0
