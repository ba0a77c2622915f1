"""Configs as JSON and back."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import levelhead as lh
from levelhead.presets import MUJOCO, preset
from levelhead.schedules import SHAPES, Schedule, constant
from levelhead.serialize import from_json, to_json

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1", *(f"{name}-v5" for name in MUJOCO))

FULL = lh.Config(
    "Some/Env-v3",
    seed=2**40,
    value="runningnorm",
    reward_scale=1e-30,
    device="cpu",
    run_dir=Path("some/where"),
    checkpoint_every=0,
    imports=("a", "b.c"),
    env=lh.EnvConfig({"g": 5.0, "flag": True, "nested": {"x": [1, None, "text"]}}),
    network=lh.NetworkConfig(shared=(7,), actor=(), activation="silu", normalize_observation=True),
    head=lh.HeadConfig(Schedule(0.9, 0.999)),
    ppo=lh.PPOConfig(clip_range=Schedule(0.3, 0.1, "cosine"), value_clip=constant(0.2), advantage="head"),
    optimizer=lh.OptimizerConfig(
        learning_rate=Schedule(1e-3, 1e-5, "exponential"),
        shared=lh.GroupConfig(eps=1e-7),
        actor=lh.GroupConfig(learning_rate=constant(1e-4)),
        critic=lh.GroupConfig(max_grad_norm=1.0),
    ),
)


def through_text(config):
    return from_json(lh.Config, json.loads(json.dumps(to_json(config), allow_nan=False)))


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_presets_come_back_as_they_were(env_id):
    assert through_text(preset(env_id)) == preset(env_id)


def test_every_kind_of_field_comes_back_as_it_was():
    assert through_text(FULL) == FULL


@st.composite
def schedules(draw):
    shape, positive = draw(st.sampled_from(SHAPES)), st.floats(1e-300, 1e300)
    start = draw(positive)
    if shape == "piecewise":
        points = (
            (0.0, start),
            (draw(st.floats(0, 1, exclude_min=True, exclude_max=True)), draw(positive)),
            (1.0, start),
        )
        return Schedule(start, start, shape, points)
    return Schedule(start, start if shape == "constant" else draw(positive), shape)


@settings(deadline=None, max_examples=200)
@given(schedules())
def test_schedules_come_back_to_the_last_bit(schedule):
    text = json.dumps(to_json(schedule))
    assert from_json(Schedule, json.loads(text)) == schedule


def test_whole_numbers_of_the_wrong_type_are_refused_or_come_back_whole():
    try:
        config = lh.Config("CartPole-v1", total_steps=96.0)
    except lh.ConfigError:
        return
    assert type(through_text(config).total_steps) is int


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"totl_steps": 1}, r"unknown name 'totl_steps' in config; did you mean 'total_steps'"),
        ({"ppo": {"gama": 0.9}}, r"unknown name 'gama' in config\.ppo; did you mean 'gamma'"),
        ({"optimizer": {"actor": {"lr": 1}}}, r"unknown name 'lr' in config\.optimizer\.actor; .*learning_rate"),
        ({"zzz": 1}, r"unknown name 'zzz' in config; known: .*total_steps"),
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_named(data, message):
    with pytest.raises(lh.ConfigError, match=message):
        from_json(lh.Config, {"env_id": "CartPole-v1", **data})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("env_id", 3),
        ("total_steps", "100"),
        ("total_steps", 1.5),
        ("seed", True),
        ("reward_scale", "1"),
        ("reward_scale", True),
        ("value", "popat"),
        ("value", ["popart"]),
        ("run_dir", 3),
        ("imports", "abc"),
        ("imports", {"abc": 1}),
        ("imports", [1]),
        ("network.actor", "64"),
        ("network.actor", [64.0]),
        ("network.normalize_observation", 1),
        ("network.normalize_observation", "yes"),
        ("network.activation", "gelu"),
        ("env.kwargs", [["a", 1]]),
        ("env.kwargs", "text"),
        ("ppo", 3),
        ("ppo", None),
        ("ppo.value_clip", "narrow"),
        ("ppo.clip_range", "linear:0.2"),
        ("ppo.clip_range", "steep:0.2:0.1"),
        ("ppo.clip_range", [0.2]),
        ("ppo.clip_range", None),
        ("ppo.clip_range", True),
        ("optimizer.actor.learning_rate", {}),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(path, value):
    data = {"env_id": "CartPole-v1"}
    *parts, last = path.split(".")
    inner = data
    for part in parts:
        inner = inner.setdefault(part, {})
    inner[last] = value
    with pytest.raises(lh.ConfigError, match=path.replace(".", r"\.")):
        from_json(lh.Config, data)


def test_a_value_out_of_range_is_refused_when_read():
    with pytest.raises(lh.ConfigError, match=r"ppo\.gamma"):
        from_json(lh.Config, {"env_id": "CartPole-v1", "ppo": {"gamma": 2.0}})


def test_a_missing_name_takes_its_default_and_a_missing_id_is_refused():
    assert from_json(lh.Config, {"env_id": "X", "seed": 7}) == lh.Config("X", seed=7)
    with pytest.raises(lh.ConfigError, match="env_id"):
        from_json(lh.Config, {})


@pytest.mark.parametrize("data", [[], "text", None, 3])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(lh.ConfigError, match="accepted: an object"):
        from_json(lh.Config, data)
