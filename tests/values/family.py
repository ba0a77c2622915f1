"""The family of value heads, and what the tests of all its members share."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import strategies as st

from levelhead.values import (
    HLGaussValueHead,
    LinearValueHead,
    PopArtValueHead,
    RunningNormHead,
    TransformValueHead,
    TwoHotValueHead,
    ValueNormHead,
)

SCALAR = [LinearValueHead, TransformValueHead, ValueNormHead, RunningNormHead, PopArtValueHead]
DISTRIBUTIONAL = [TwoHotValueHead, HLGaussValueHead]
KINDS = SCALAR + DISTRIBUTIONAL
FIXED = [LinearValueHead, TransformValueHead, TwoHotValueHead]  # without statistics
MOVING = [ValueNormHead, RunningNormHead, PopArtValueHead, HLGaussValueHead]
LEVEL = [RunningNormHead, PopArtValueHead, HLGaussValueHead]  # inside the scale promise

D = 4
STATISTICS = ("mean", "var", "std", "count", "retained", "scaled")
seeds = st.integers(0, 2**32 - 1)


def each(kinds):
    return pytest.mark.parametrize("kind", kinds)


every_kind = each(KINDS)


def randomized(kind, output_dim=1, **options):
    """A float64 head with a random layer that was never updated."""
    head = kind(D, output_dim, **{"dtype": torch.float64, **options})
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    return head


def trained(kind, output_dim=1, seed=0, **options):
    """A float64 head with a random layer and moved statistics; leaves the generator seeded."""
    torch.manual_seed(seed)
    head = randomized(kind, output_dim, **options)
    head.update(3 * torch.randn(20, output_dim, dtype=torch.float64) + 5)
    return head


def features(*shape):
    return torch.randn(*shape, D, dtype=torch.float64)


def state(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


def rows(module, state, output=slice(None)):
    """Of a state, what belongs to these outputs: their statistics, and their rows of the layer."""
    return {name: x.unflatten(0, (module.output_dim, -1))[output] for name, x in state.items()}


def unchanged(module, before, output=slice(None)):
    now, before = rows(module, module.state_dict(), output), rows(module, before, output)
    return all(torch.equal(x, before[name]) for name, x in now.items())


def update_together(heads, batches):
    """Each head takes its batch in a thread of its own, with a `reduce` that sums over all of them."""
    barrier, held = Barrier(len(heads), timeout=30), [None] * len(heads)

    def run(rank):
        def reduce(x):
            held[rank] = x
            barrier.wait()
            total = torch.stack(held).sum(0)
            barrier.wait()
            return total

        try:
            heads[rank].update(**batches[rank], reduce=reduce)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(heads)) as pool:
        list(pool.map(run, range(len(heads))))
