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
betas = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.98, 0.999])
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def tensors(shape, low=-6400, high=6400):
    return arrays("i8", shape, elements=st.integers(low, high)).map(torch.from_numpy)


@st.composite
def batches(draw):
    """Targets, masks and weights `[M, K]` as keyword arguments, weights being whole numbers and sometimes 0."""
    shape = (draw(st.integers(1, 6)), K)
    targets = draw(tensors(shape)).double() / 64
    return {"targets": targets, "mask": draw(tensors(shape, 0, 1)).bool(), "weights": draw(tensors(shape, 0, 3))}


histories = st.lists(st.tuples(betas, batches()), min_size=1, max_size=5)


def feed(history, output_dim=K):
    norm = ValueNormalizer(output_dim=output_dim)
    for beta, batch in history:
        norm.beta = beta
        norm.update(**batch)
    return norm


def same(one, other, **tolerance):
    for name, buffer in one.state_dict().items():
        assert_close(buffer, other.state_dict()[name], **tolerance or EXACT, msg=lambda m, name=name: f"{name}: {m}")


def by_definition(history, k):
    """Count and debiased moving averages of first and second moments, in exact rational arithmetic."""
    rows = []
    for beta, batch in history:
        use = batch["mask"][:, k] * batch["weights"][:, k]
        y = [Fraction(v) for v, n in zip(batch["targets"][:, k].tolist(), use.tolist(), strict=True) for _ in range(n)]
        if y:
            rows = [(share * Fraction(beta), m, q) for share, m, q in rows]
            rows.append((1 - Fraction(beta), sum(y) / len(y), sum(v * v for v in y) / len(y)))
    if not rows:
        return 0, Fraction(0), Fraction(1)
    total = sum(share for share, _, _ in rows)
    first, second = (sum(row[0] * row[i] for row in rows) / total for i in (1, 2))
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


@law
@given(histories)
def test_masking_is_dropping(history):
    row = [(beta, {**b, "mask": b["mask"].all(1), "weights": b["weights"]}) for beta, b in history]
    dropped = [
        (beta, {"targets": b["targets"][b["mask"]], "weights": b["weights"][b["mask"]]}) for beta, b in row
    ]
    same(feed(row), feed(dropped))


@law
@given(histories)
def test_weighting_is_repeating(history):
    row = [(beta, {"targets": b["targets"], "weights": b["weights"][:, 0]}) for beta, b in history]
    repeated = [(beta, {"targets": b["targets"].repeat_interleave(b["weights"], 0)}) for beta, b in row]
    same(feed(row), feed(repeated))


@law
@given(histories, st.data())
def test_a_task_is_a_normalizer_of_its_own(history, data):
    single = [(beta, {name: x[:, 0] for name, x in b.items()}) for beta, b in history]
    tasks = [data.draw(tensors(b["targets"].shape, 0, K - 1)) for _, b in single]
    norm = feed([(beta, {**b, "task": task}) for (beta, b), task in zip(single, tasks, strict=True)])
    for k in range(K):
        own = [(beta, {n: x[t == k] for n, x in b.items()}) for (beta, b), t in zip(single, tasks, strict=True)]
        for name, buffer in feed(own, 1).state_dict().items():
            assert_close(norm.state_dict()[name][k : k + 1], buffer, **EXACT)


@law
@given(histories)
def test_outputs_are_independent(history):
    norm = feed(history)
    for k in range(K):
        own = [(beta, {name: x[:, k] for name, x in batch.items()}) for beta, batch in history]
        for name, buffer in feed(own, 1).state_dict().items():
            assert_close(norm.state_dict()[name][k : k + 1], buffer, **EXACT)


@law
@given(tensors(st.integers(1, 8)), st.integers(1, 7))
def test_the_size_of_a_batch_does_not_change_the_rate(targets, copies):
    targets = targets.double()
    once, often = ([(0.9, {"targets": torch.ones(3)}), (0.9, {"targets": targets.repeat(n)})] for n in (1, copies))
    same(feed(once, 1), feed(often, 1))


@law
@given(histories)
def test_an_output_without_samples_is_left_alone_count_included(history):
    norm = feed(history)
    before = {name: buffer.clone() for name, buffer in norm.state_dict().items()}
    norm.update(torch.tensor([3.0, 5.0]), task=torch.tensor([1, 1]))
    assert before["count"][1] + 1 == norm.count[1]
    for name, buffer in norm.state_dict().items():
        assert torch.equal(buffer[0], before[name][0]), name
    after = {name: buffer.clone() for name, buffer in norm.state_dict().items()}
    norm.update(torch.zeros(0, K))
    norm.update(torch.ones(4, K), mask=torch.zeros(4, dtype=torch.bool))
    norm.update(torch.ones(4, K), weights=torch.zeros(4, K))
    same(norm, feed([]).__class__(output_dim=K) if False else _restored(after), rtol=0, atol=0)


def _restored(state):
    norm = ValueNormalizer(output_dim=K)
    norm.load_state_dict(state)
    return norm


@law
@given(histories, tensors((5, K)), st.integers(-20, 20))
def test_normalize_and_denormalize_are_inverses(history, x, power):
    norm = feed([(beta, {**b, "targets": b["targets"] * 10.0**power}) for beta, b in history])
    x = x.double() / 64 * norm.std + norm.mean
    z = norm.normalize(x)
    assert_close(z, (x - norm.mean) / norm.std, **EXACT)
    size = (x.abs() + norm.mean.abs()).max().item()
    assert_close(norm.denormalize(z), x, rtol=0, atol=1e-12 * size)
    task = torch.tensor([0, 1, 1, 0, 1])
    picked = x.gather(1, task[:, None])[:, 0]
    assert torch.equal(norm.normalize(picked, task=task), z.gather(1, task[:, None])[:, 0])
    assert torch.equal(norm.denormalize(norm.normalize(picked, task=task), task=task).sub(picked).abs() <= 1e-12 * size,
                       torch.ones(5, dtype=torch.bool))
