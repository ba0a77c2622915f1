"""Every random stream of a run, derived from its seed and its place: nothing depends on what was drawn before."""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a stream of random numbers is for."""

    NETWORK = 0
    ENVIRONMENT = 1
    ACTION = 2
    PERMUTATION = 3
    EVALUATION = 4
    TASK = 5
    SHARD = 6


def derive(seed: int, stream: Stream, *place: int) -> int:
    """A 32-bit seed for one stream at one place (iteration, shard, environment), unrelated to all others."""
    return int(np.random.SeedSequence(seed, spawn_key=(stream, *place)).generate_state(1)[0])


def generator(seed: int, stream: Stream, *place: int) -> torch.Generator:
    """A CPU generator for one stream at one place: the same numbers whatever the device of the training."""
    return torch.Generator().manual_seed(derive(seed, stream, *place))
