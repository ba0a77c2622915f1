"""Spaces: as JSON and back, and which ones a policy can be built for."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import levelhead as lh
from levelhead.spaces import from_json, to_json

SUPPORTED = [
    spaces.Discrete(1),
    spaces.Discrete(7),
    spaces.Discrete(3, start=-4),
    spaces.Discrete(4, dtype=np.int32),
    spaces.Discrete(np.int64(5), start=np.int64(2)),
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(-np.inf, np.inf, (2, 3, 1)),
    spaces.Box(np.array([-np.inf, -1.5, 0.0]), np.array([0.0, np.inf, np.inf]), dtype=np.float64),
    spaces.Box(np.float32(-0.1), np.float32(np.pi), (2,), np.float32),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-5, 9, (2,), np.int64),
    spaces.Box(-1.0, 1.0, ()),
]


@pytest.mark.parametrize("space", SUPPORTED, ids=str)
def test_a_space_comes_back_as_it_was(space):
    back = from_json(json.loads(json.dumps(to_json(space), allow_nan=False)))
    assert back == space
    if isinstance(space, spaces.Box):
        assert back.dtype == space.dtype
        np.testing.assert_array_equal(back.bounded_below, space.bounded_below)
        np.testing.assert_array_equal(back.bounded_above, space.bounded_above)


class Anything(gym.Env):
    """An environment of any spaces; it is refused before it is stepped."""

    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


BOX, DISCRETE = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)


@pytest.mark.parametrize(
    ("observation", "action", "accepted"),
    [
        (spaces.Discrete(5), DISCRETE, "accepted: Box"),
        (spaces.Dict(a=BOX), DISCRETE, "accepted: Box"),
        (spaces.Tuple((BOX, BOX)), DISCRETE, "accepted: Box"),
        (spaces.MultiBinary(3), DISCRETE, "accepted: Box"),
        (BOX, spaces.MultiDiscrete([2, 3]), "accepted: Discrete, or Box"),
        (BOX, spaces.MultiBinary(2), "accepted: Discrete, or Box"),
        (BOX, spaces.Dict(a=DISCRETE), "accepted: Discrete, or Box"),
        (BOX, spaces.Box(-1.0, 1.0, (2, 2)), "accepted: Discrete, or Box"),
        (BOX, spaces.Box(-1.0, 1.0, ()), "accepted: Discrete, or Box"),
        (BOX, spaces.Box(0, 5, (2,), np.int64), "accepted: Discrete, or Box"),
    ],
    ids=str,
)
def test_an_unsupported_space_is_refused_by_name_before_anything_is_written(
    tiny, workdir, observation, action, accepted
):
    refused = action if observation is BOX else observation
    with pytest.raises(lh.ConfigError) as caught:
        lh.train(lambda: Anything(observation, action), config=tiny())
    assert str(refused) in str(caught.value)
    assert accepted in str(caught.value)
    assert list(workdir.iterdir()) == []


def test_a_space_that_json_cannot_hold_is_refused_by_name():
    with pytest.raises(lh.ConfigError, match="MultiBinary"):
        to_json(spaces.MultiBinary(3))
