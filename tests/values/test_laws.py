"""What holds for every head, whatever the targets: dropping, repeating, splitting and merging samples.

Further laws stand beside what they are about: preservation in test_popart.py, scale and shift in test_scale.py, the
closed form of the statistics in test_statistics.py.
"""

import pytest
import torch
from family import STATISTICS, D, every_kind, features, rows, seeds, state, trained, unchanged, update_together
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

K, N = 3, 9
law = settings(deadline=None, max_examples=10)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def batch(per_entry=False):
    """Features and raw targets `[N, D]`, `[N, K]`; mask, whole weights and tasks."""
    shape = (N, K) if per_entry else (N,)
    y = 10 * torch.randn(N, K, dtype=torch.float64) + 7
    return features(N), y, torch.rand(shape) < 0.6, torch.randint(4, shape), torch.randint(K, (N,))


def output(head, k):
    """A head of one output that is output `k` of this one."""
    one = type(head)(D, 1, head.beta, dtype=torch.float64)
    one.load_state_dict({name: x.flatten() if x.ndim < 3 else x[0] for name, x in own(head, k).items()})
    return one


def own(head, k):
    return {name: x.clone() for name, x in rows(head, head.state_dict(), slice(k, k + 1)).items()}


def same(head, other):
    for name, x in other.state_dict().items():
        assert_close(head.state_dict()[name], x, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def twins(kind, seed):
    return trained(kind, K, seed), trained(kind, K, seed)


@every_kind
@law
@given(seeds, st.sampled_from([1e-9, 1.0, 1e9]))
def test_normalize_and_denormalize_are_inverses(kind, seed, scale):
    head = trained(kind, K, seed)
    head.update(scale * batch()[1])
    z, task = 3 * torch.randn(N, K).double(), torch.randint(K, (N,))
    assert_close(head.normalize(head.denormalize(z)), z, rtol=1e-9, atol=1e-9)
    assert_close(head.normalize(head.denormalize(z[:, 0], task=task), task=task), z[:, 0], rtol=1e-9, atol=1e-9)


@every_kind
@law
@given(seeds)
def test_masking_is_dropping(kind, seed):
    masked, dropped = twins(kind, seed)
    x, y, mask, weights, task = batch()
    for options in ({}, {"weights": weights}, {"task": task}):
        targets = y[:, 0] if "task" in options else y
        masked.update(targets, mask=mask, **options)
        kept = {name: option[mask] for name, option in options.items()}
        dropped.update(targets[mask], **kept)
        same(masked, dropped)
        loss = masked.loss(x, targets, mask=mask, **options)
        assert_close(loss[mask], dropped.loss(x[mask], targets[mask], **kept), **CLOSE)
        assert not loss[~mask].any()


@every_kind
@law
@given(seeds)
def test_a_whole_weight_is_a_number_of_repetitions(kind, seed):
    weighted, repeated = twins(kind, seed)
    x, y, _, weights, task = batch()
    for options in ({}, {"task": task}):
        targets = y[:, 0] if options else y
        again = {name: option.repeat_interleave(weights, 0) for name, option in options.items()}
        weighted.update(targets, weights=weights, **options)
        repeated.update(targets.repeat_interleave(weights, 0), **again)
        same(weighted, repeated)
        loss = weighted.loss(x, targets, weights=weights, **options)
        others = repeated.loss(x.repeat_interleave(weights, 0), targets.repeat_interleave(weights, 0), **again)
        assert_close(loss.sum(), others.sum(), **CLOSE)


@every_kind
@law
@given(seeds, st.booleans())
def test_weight_0_is_a_mask_to_the_last_bit(kind, seed, per_entry):
    weighted, masked = twins(kind, seed)
    x, y, mask, *_ = batch(per_entry)
    entries = mask if per_entry else mask[:, None]
    weighted.update(y.where(entries, torch.nan), weights=mask.double())
    masked.update(y, mask=mask)
    assert unchanged(weighted, state(masked))
    assert torch.equal(weighted.loss(x, y, weights=mask.double()), masked.loss(x, y, mask=mask))


@every_kind
@law
@given(seeds, st.booleans())
def test_tasks_are_separate_heads_each_with_its_own_samples(kind, seed, preserve):
    together = trained(kind, K, seed)
    separate = [output(together, k) for k in range(K)]
    for _ in range(3):
        x, y, mask, weights, task = batch()
        y = y[:, 0]
        (together.update if preserve else together.adopt)(y, task=task, mask=mask, weights=weights)
        value, loss = together(x), together.loss(x, y, task=task, mask=mask, weights=weights)
        for k, head in enumerate(separate):
            at = task == k
            (head.update if preserve else head.adopt)(y[at], mask=mask[at], weights=weights[at])
            same(output(together, k), head)
            assert_close(value[:, k : k + 1], head(x), **CLOSE)
            assert_close(loss[at], head.loss(x[at], y[at], mask=mask[at], weights=weights[at]), **CLOSE)


@every_kind
@pytest.mark.parametrize("method", ["update", "adopt", "observe"])
@law
@given(seeds, st.integers(0, K - 1))
def test_a_task_without_samples_is_left_alone_to_the_last_bit(kind, method, seed, empty):
    head = trained(kind, K, seed)
    before, (_, y, _, _, task) = own(head, empty), batch()
    getattr(head, method)(1e6 * y[:, 0], task=torch.where(task == empty, (empty + 1) % K, task))
    for name, x in own(head, empty).items():
        assert torch.equal(x, before[name]), name
    assert head.count.sum() > K


@every_kind
@law
@given(seeds, st.integers(0, N))
def test_merging_replicas_is_concatenating_their_samples(kind, seed, split):
    whole, replicas = trained(kind, K, seed), twins(kind, seed)
    _, y, mask, weights, task = batch()
    for case in ({"targets": y, "mask": mask, "weights": weights}, {"targets": y[:, 0], "task": task}):
        whole.update(**case)
        parts = [{name: x[part] for name, x in case.items()} for part in (slice(split), slice(split, N))]
        update_together(replicas, parts)
    for name in STATISTICS:
        assert torch.equal(replicas[0].get_buffer(name), replicas[1].get_buffer(name)), name
    for head in replicas:
        same(head, whole)
