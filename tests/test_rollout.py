"""The arrangement of a rollout for learning, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from levelhead.rollout import chunked, unchunked


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from([(), (2,)]))
def test_what_was_cut_into_chunks_is_put_together_again(length, chunks, environments, shape):
    x = torch.arange(length * chunks * environments * (2 if shape else 1)).view(length * chunks, environments, *shape)
    columns = chunked(x, length)
    assert columns.shape == (length, chunks * environments, *shape)
    assert torch.equal(unchunked(columns, environments), x)


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_a_column_holds_steps_in_order_of_one_environment(length):
    t, n = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    time, environment = chunked(t, length), chunked(n, length)
    assert torch.equal(time[1:], time[:-1] + 1)
    assert (environment == environment[:1]).all()
    assert sorted(zip(time[0].tolist(), environment[0].tolist(), strict=True)) == [
        (start, env) for start in range(0, 6, length) for env in range(4)
    ]
