"""When the critic is said to go to and fro."""

import warnings

import numpy as np
import pytest

import levelhead as lh
from levelhead import oscillation
from levelhead.oscillation import SPAN, WINDOW, OscillationWatch, oscillates

UP_AND_DOWN = [1.0, 2.0] * (WINDOW // 2)


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (UP_AND_DOWN, True),
        ([1e-9 * x for x in UP_AND_DOWN], True),  # whatever the scale
        (UP_AND_DOWN[1:], False),  # too short to tell
        ([1.0, 1.4] * (WINDOW // 2), False),  # by less than a factor of 1.5
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
        assert not oscillates(list(np.exp(rng.normal(scale=0.2, size=WINDOW))))


def told(losses, std=1.0, target_std=1.0, steps=SPAN):
    watch = OscillationWatch()
    stds = std if isinstance(std, list) else [std] * len(losses)
    metrics = [
        {"train/value_loss": loss, "value/std": s, "value/target_std": target_std}
        for loss, s in zip(losses, stds, strict=True)
    ]
    return [watch(m, steps) for m in metrics]


def test_it_warns_once_as_soon_as_it_can_and_names_the_option():
    messages = told(UP_AND_DOWN * 3)
    (message,) = filter(None, messages)
    assert message == messages[WINDOW - 1]
    assert message.startswith("train/value_loss went")
    assert "--optimizer.critic.learning-rate" in message


def test_a_restless_scale_is_named():
    (message,) = filter(None, told([0.5] * WINDOW, std=UP_AND_DOWN))
    assert message.startswith("value/std went")


@pytest.mark.parametrize(("std", "target_std"), [(1.0, 10.0), (0.1, 1.0)])
def test_a_critic_that_has_learned_its_targets_may_tremble(std, target_std):
    assert not any(told(UP_AND_DOWN, std, target_std))


def test_so_may_one_whose_targets_have_come_together():
    watch = OscillationWatch()
    wide, narrow = (
        [{"train/value_loss": x, "value/std": std, "value/target_std": std} for x in series]
        for series, std in (([1.0] * WINDOW, 10.0), (UP_AND_DOWN * 2, 1.0))
    )
    assert not any(watch(m, SPAN) for m in (*wide, *narrow))


def test_short_rollouts_are_taken_together():
    # Each span holds both ends of the swing.
    assert not any(told(UP_AND_DOWN * 4, steps=SPAN // 2))
    slower = [x for x in UP_AND_DOWN * 2 for _ in range(2)]
    assert any(told(slower, steps=SPAN // 2))


def test_metrics_without_a_critic_pass_unnoticed():
    assert OscillationWatch()({}, SPAN) is None


def test_training_watches_its_own_metrics(tiny, monkeypatch):
    for name, value in {"SPAN": 1, "WINDOW": 3, "FACTOR": 1.0, "REVERSALS": 0.0, "LARGE": 0.0}.items():
        monkeypatch.setattr(oscillation, name, value)
    with pytest.warns(UserWarning, match="train/value_loss and value/std went up and down"):
        lh.train("CartPole-v1", config=tiny())


def test_usual_training_doesn_t_warn(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lh.train("CartPole-v1", config=tiny(num_envs=8, num_steps=128, total_steps=25 * 1024, checkpoint_every=0))
