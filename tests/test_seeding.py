"""Random streams: each a function of the seed and its place alone."""

import itertools

import numpy as np
import torch

import levelhead as lh
from levelhead.seeding import Stream, derive, generator


def test_streams_places_and_seeds_have_numbers_of_their_own():
    places = [(), *((i,) for i in range(20)), *itertools.product(range(10), repeat=2)]
    keys = [(seed, stream, *place) for seed in (0, 1, 2**40) for stream in Stream for place in places]
    assert len({derive(*key) for key in keys}) == len(keys)


def test_a_seed_fits_in_32_bits():
    numbers = [derive(seed, Stream.ACTION, 3) for seed in range(1000)]
    assert all(type(n) is int and 0 <= n < 2**32 for n in numbers)
    assert max(numbers) > 2**31


def test_what_was_drawn_before_has_no_influence():
    first = torch.randn(4, generator=generator(1, Stream.PERMUTATION, 5))
    torch.randn(7)
    np.random.default_rng().random()
    assert torch.equal(first, torch.randn(4, generator=generator(1, Stream.PERMUTATION, 5)))


def test_training_neither_reads_nor_moves_the_global_generators(tiny, workdir, outcome):
    def train(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the global generator is what must be left alone
        before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002  # as above
        run = lh.train("Pendulum-v1", config=tiny("Pendulum-v1"))
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002  # as above
        return outcome(run.directory)

    assert train(1) == train(2)
