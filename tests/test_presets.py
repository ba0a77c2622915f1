"""Presets: where training starts for an environment."""

from dataclasses import replace

import pytest

import levelhead as lh
from levelhead.presets import MUJOCO


@pytest.mark.parametrize("env_id", ["CartPole-v1", "HalfCheetah-v5", "Pendulum-v1", "ALE/Pong-v5", "NoVersion"])
def test_a_preset_names_its_environment(env_id):
    assert lh.preset(env_id).env_id == env_id


@pytest.mark.parametrize("name", MUJOCO)
@pytest.mark.parametrize("version", [4, 5])
def test_robots_get_normalised_observations_and_a_million_steps(name, version):
    config = lh.preset(f"{name}-v{version}")
    assert config.network.normalize_observation
    assert config.total_steps == 1_000_000
    assert config.optimizer.learning_rate(1.0) == 0.0


def test_cartpole_learns_fast_and_anneals():
    rate = lh.preset("CartPole-v1").optimizer.learning_rate
    assert rate(0.0) > lh.Config("CartPole-v1").optimizer.learning_rate(0.0)
    assert rate(1.0) == 0.0


@pytest.mark.parametrize("env_id", ["Unheard-v0", "CartPoleish-v1", "MyAnt-v5", "NoVersion"])
def test_an_unknown_environment_gets_the_generic_defaults(env_id):
    assert lh.preset(env_id) == lh.Config(env_id)


def test_the_car_on_the_hill_explores_in_one_direction_for_long():
    config = lh.preset("MountainCarContinuous-v0")
    assert config.action.color == 1.0
    assert config.network.normalize_observation


def test_train_starts_from_the_preset(workdir):
    run = lh.train("CartPole-v1", total_steps=1, num_envs=2)
    expected = lh.preset("CartPole-v1").optimizer
    assert run.config.optimizer == expected


@pytest.mark.parametrize("name", ["HalfCheetah", "HalfCheetah-v4", "HalfCheetah-v5", "gymnasium:HalfCheetah-v5"])
def test_every_spelling_of_an_id_gets_its_preset(name):
    assert lh.preset(name) == replace(lh.preset("HalfCheetah-v5"), env_id=name)
