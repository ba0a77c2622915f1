"""What the PopArt tests of other libraries assert, held here to 1e-10 where they allow 1e-2.

Sources of the properties (not of the code): `rlax/_src/pop_art_test.py`, `seed_rl/agents/policy_gradient/modules/
popart_test.py`, and the tests of the `popart` module in forks of rlkit.
"""

from itertools import pairwise

import pytest
import torch
from family import D, features, randomized, update_together
from torch.testing import assert_close

from levelhead.values import PopArtValueHead

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def f64(*x):
    return torch.tensor(x, dtype=torch.float64)


def with_statistics(*mean_and_std):
    head = PopArtValueHead(D, len(mean_and_std), dtype=torch.float64)
    for k, pair in enumerate(mean_and_std):
        head.mean[k], head.std[k] = pair
    return head


def layer(head):
    return torch.cat((head.linear.weight, head.linear.bias[:, None]), 1).detach().clone()


def test_rlax_normalizing_and_unnormalizing_with_indices_is_the_identity_in_both_orders():
    torch.manual_seed(0)
    head = with_statistics((1, 1), (2, 2), (3, 3))
    values, indices = torch.randint(-10, 10, (100,)).double(), torch.randint(3, (100,))
    assert_close(head.normalize(head.denormalize(values, task=indices), task=indices), values, **CLOSE)
    assert_close(head.denormalize(head.normalize(values, task=indices), task=indices), values, **CLOSE)


def test_rlax_an_index_picks_the_scale_and_shift_of_its_output():
    head = with_statistics((1, 1), (2, 2), (3, 3))
    assert head.denormalize(torch.ones(3), task=torch.tensor([2, 1, 0])).tolist() == [6, 4, 2]
    assert head.denormalize(torch.ones(2, 3)).tolist() == [[2, 4, 6]] * 2


def test_rlax_scale_and_shift_are_learned_per_index_here_from_the_first_update_on():
    head = PopArtValueHead(D, 2, beta=0.9, dtype=torch.float64)
    for _ in range(10):
        head.update(torch.arange(6.0) - 3, task=torch.tensor([0, 0, 0, 1, 1, 1]))
        assert_close(head.mean, f64(-2, 1), **CLOSE)
        assert_close(head.std, f64(1, 1) * (2 / 3) ** 0.5, **CLOSE)


def test_rlax_a_larger_step_moves_scale_and_shift_faster():
    heads = [PopArtValueHead(D, 2, beta=beta) for beta in (0.99, 0.9, 0.5, 0.0)]
    for head in heads:
        head.update(f64(-1, 0, 1, -1, 0, 1), task=torch.tensor([0, 0, 0, 1, 1, 1]))
        head.update(3 * torch.arange(6.0), task=torch.tensor([0, 0, 0, 1, 1, 1]))
    for slow, fast in pairwise(heads):
        assert (slow.mean < fast.mean).all()
    assert (heads[0].std < heads[1].std).all()


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1.0, 1e9, 1e150])
def test_rlax_and_rlkit_bound_the_scale_here_no_bound_exists(scale):
    head = PopArtValueHead(D, dtype=torch.float64)
    head.update(scale * f64(-1, 1))
    assert head.std.item() == pytest.approx(scale, rel=1e-10, abs=0)
    head = PopArtValueHead(D, dtype=torch.float64)
    head.update(scale * f64(1, 1))  # no spread: the magnitude stands in
    assert head.std.item() == pytest.approx(scale, rel=1e-10, abs=0)


def test_rlax_outputs_are_preserved_over_30_updates_with_indices():
    torch.manual_seed(428)
    head, x = randomized(PopArtValueHead, 2, beta=0.999), features(4)
    before, indices = head(x), torch.tensor([0, 1] * 4)
    for _ in range(30):
        head.update(torch.rand(8), task=indices)
        assert_close(head(x), before, **CLOSE)


# Indices of samples on each replica: all the same, disjoint, overlapping, an output that nobody reaches.
SCATTERED = [
    [[2, 2, 2], [1, 1, 1], [0, 0, 0], [0, 1, 2]],
    [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]],
    [[0, 2, 0], [2, 0, 2], [0, 0, 0], [2, 2, 2]],
]


@pytest.mark.parametrize("indices", SCATTERED, ids=str)
@pytest.mark.parametrize("groups", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 1, 2, 3]]], ids=str)
def test_rlax_replicas_that_reduce_together_see_the_samples_of_all_of_them(groups, indices):
    torch.manual_seed(0)
    heads, y, x = [randomized(PopArtValueHead, 3) for _ in range(4)], torch.randn(4, 3).double(), features(5)
    for head in heads:
        head.load_state_dict(heads[0].state_dict())
    before, rows = heads[0](x), layer(heads[0])
    for group in groups:
        batches = [{"targets": y[rank], "task": torch.tensor(indices[rank])} for rank in group]
        update_together([heads[rank] for rank in group], batches)
        task = torch.tensor([indices[rank] for rank in group]).flatten()
        for k in range(3):
            seen = y[group].flatten()[task == k]
            for head in (heads[rank] for rank in group):
                assert head.count[k] == bool(len(seen))
                assert_close(head.mean[k], seen.mean() if len(seen) else f64(0)[0], **CLOSE)
                assert_close(head.var[k], seen.var(correction=0) if len(seen) else f64(1)[0], **CLOSE)
                assert len(seen) or torch.equal(layer(head)[k], rows[k])
                assert_close(head(x), before, **CLOSE)


def test_seed_rl_targets_that_were_just_learned_normalize_to_mean_0_and_std_1():
    head, targets = PopArtValueHead(D), torch.arange(20, dtype=torch.float64)
    head.update(targets)
    z = head.normalize(targets)
    assert_close((z.mean(), z.std(correction=0)), (f64(0)[0], f64(1)[0]), **CLOSE)


def test_seed_rl_weight_and_bias_are_all_that_is_trained():
    head = PopArtValueHead(D, 2)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    assert not any(buffer.requires_grad for buffer in head.buffers())


@pytest.mark.parametrize("beta", [0.5, 0.98, 0.999])
def test_seed_rl_an_update_leaves_predictions_invariant_and_targets_invertible(beta):
    torch.manual_seed(0)
    head, x, targets = randomized(PopArtValueHead, beta=beta), features(20), torch.arange(20, dtype=torch.float64)
    before = head(x)
    for scale in (1, 1e3, 1e-3):
        head.update(scale * targets)
        assert_close(head(x), before, **CLOSE)
        assert_close(head.denormalize(head.normalize(targets)), targets, **CLOSE)


def test_seed_rl_a_difference_is_normalized_by_the_std_alone():
    head, targets = PopArtValueHead(D), torch.arange(20, dtype=torch.float64)
    head.update(targets + 5)
    difference = head.normalize(targets) - head.normalize(targets.flip(0))
    assert_close(difference, (targets - targets.flip(0)) / head.std, **CLOSE)


def test_rlkit_two_updates_weigh_a_third_and_two_thirds():
    head = PopArtValueHead(D, beta=0.5)
    head.update(f64(1, 2, 3, 4))
    head.update(f64(5, 6, 7, 8))
    mean = 2.5 / 3 + 2 * 6.5 / 3
    std = (7.5 / 3 + 2 * 43.5 / 3 - mean**2) ** 0.5
    assert (head.mean.item(), head.std.item()) == pytest.approx((mean, std), rel=1e-10)
    assert_close(head.normalize(f64(1, 8)), (f64(1, 8) - mean) / std, **CLOSE)


def test_rlkit_predictions_stay_while_normalized_targets_move():
    torch.manual_seed(0)
    head, x, targets = randomized(PopArtValueHead, beta=0.5), features(3), f64(4, 6)
    before, normalized = head(x), [head.normalize(targets)]
    for sample in (f64(1, 2, 3), f64(4, 5, 7)):
        head.update(sample)
        assert_close(head(x), before, **CLOSE)
        assert all(((head.normalize(targets) - other).abs() > 0.1).any() for other in normalized)
        normalized.append(head.normalize(targets))


def test_a_stream_is_tracked_as_the_closed_form_of_its_moving_average_says():
    beta, n = 0.9, 50
    head = PopArtValueHead(D, beta=beta)
    for t in range(n):
        head.update(f64(t - 1, t + 1))
    shares = torch.tensor([beta ** (n - 1 - t) for t in range(n)], dtype=torch.float64)
    shares /= shares.sum()
    t = torch.arange(n, dtype=torch.float64)
    mean = shares @ t
    var = shares @ (t.square() + 1) - mean**2
    assert_close((head.mean[0], head.var[0], head.std[0]), (mean, var, var.sqrt()), **CLOSE)
