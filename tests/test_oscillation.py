"""When the critic is said to go to and fro."""

import warnings

import numpy as np
import pytest

import levelhead as lh
from levelhead.oscillation import WINDOW, OscillationWatch, oscillates

UP_AND_DOWN = [1.0, 3.0] * (WINDOW // 2)


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (UP_AND_DOWN, True),
        ([1e-9 * x for x in UP_AND_DOWN], True),  # whatever the scale
        (UP_AND_DOWN[1:], False),  # too short to tell
        ([1.0, 1.5] * (WINDOW // 2), False),  # by less than a factor of 2
        ([3.0**i for i in range(WINDOW)], False),  # grows without turning
        ([3.0 ** (i // 5 % 2) for i in range(WINDOW)], False),  # turns seldom
        ([0.0, *UP_AND_DOWN[1:]], False),  # 0 has no scale
    ],
)
def test_only_large_changes_that_turn_again_and_again_are_an_oscillation(series, expected):
    assert oscillates(series) == expected


def test_the_usual_noise_of_a_loss_is_none():
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert not oscillates(list(np.exp(rng.normal(scale=0.3, size=WINDOW))))


@pytest.mark.parametrize("name", ["train/value_loss", "value/std"])
def test_it_warns_once_names_the_metric_and_the_option(name):
    watch = OscillationWatch()
    told = [watch({name: x, "train/explained_variance": 0.2}) for x in UP_AND_DOWN * 3]
    (message,) = filter(None, told)
    assert message == told[WINDOW - 1]
    assert name in message
    assert "--optimizer.critic.learning-rate" in message


def test_a_critic_that_has_learned_its_targets_may_tremble():
    watch = OscillationWatch()
    assert not any(watch({"train/value_loss": x, "train/explained_variance": 0.95}) for x in UP_AND_DOWN * 2)


def test_training_warns(tiny, monkeypatch):
    monkeypatch.setattr(OscillationWatch, "__call__", lambda _, metrics: f"{metrics['train/value_loss']:g} is unrest")
    with pytest.warns(UserWarning, match=r"[\d.]+ is unrest"):
        lh.train("CartPole-v1", config=tiny())


def test_usual_training_doesn_t_warn(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lh.train("CartPole-v1", config=tiny(total_steps=40 * 32))
