"""Presets: where training starts for an environment."""

from dataclasses import replace
from typing import get_args

import pytest
from gymnasium.spaces import Box, Discrete

import levelhead as lh
from levelhead.builders import build_learner, build_objective, build_policy
from levelhead.config import ObjectiveKind
from levelhead.presets import MUJOCO

TWO, THREE, REALS = Discrete(2), Discrete(3), Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "HalfCheetah-v5", "Pendulum-v1", "ALE/Pong-v5", "NoVersion"])
def test_a_preset_names_its_environment(env_id):
    assert lh.preset(env_id).env_id == env_id


@pytest.mark.parametrize("name", MUJOCO)
@pytest.mark.parametrize("version", [4, 5])
def test_robots_get_normalised_observations_and_at_least_a_million_steps(name, version):
    config = lh.preset(f"{name}-v{version}")
    assert config.network.normalize_observation
    assert config.total_steps >= 1_000_000


@pytest.mark.parametrize("env_id", ["Ant-v5", "Hopper-v5", "Pusher-v5", "Reacher-v5", "Walker2d-v5"])
def test_most_robots_get_what_the_paper_gave_them(env_id):
    config = lh.preset(env_id)
    rows = config.num_envs * config.num_steps
    assert (config.total_steps, rows, rows // config.ppo.minibatches) == (1_000_000, 2048, 64)
    assert config.ppo == lh.PPOConfig(epochs=10, minibatches=32)
    assert config.optimizer == lh.OptimizerConfig(learning_rate=lh.Schedule(3e-4, 0.0))


# From RL Baselines3 Zoo: steps, environments, steps of each per rollout, rows of a minibatch, epochs, discount, lambda.
ZOO = {
    "MountainCar-v0": (1_000_000, 16, 16, 64, 4, 0.99, 0.98),
    "BipedalWalker-v3": (5_000_000, 32, 2048, 64, 10, 0.999, 0.95),
    "BipedalWalkerHardcore-v3": (100_000_000, 16, 2048, 64, 10, 0.99, 0.95),
    "Swimmer-v5": (1_000_000, 4, 1024, 256, 10, 0.9999, 0.98),
    "Humanoid-v5": (10_000_000, 8, 64, 256, 5, 0.95, 0.9),
    "HumanoidStandup-v5": (10_000_000, 8, 64, 32, 20, 0.99, 0.9),
}


@pytest.mark.parametrize("env_id", ZOO)
def test_numbers_from_the_zoo(env_id):
    config = lh.preset(env_id)
    ppo, rows = config.ppo, config.num_envs * config.num_steps
    batch = rows // ppo.minibatches
    found = (config.total_steps, config.num_envs, config.num_steps, batch, ppo.epochs, ppo.gamma, ppo.lam)
    assert found == ZOO[env_id]
    assert config.network.normalize_observation
    assert not config.normalize_reward


def test_atari_is_that_of_the_paper():
    config = lh.preset("ALE/Pong-v5")
    ppo, rows = config.ppo, config.num_envs * config.num_steps
    assert (config.total_steps, rows, rows // ppo.minibatches) == (10_000_000, 8 * 128, 32 * 8)
    assert (ppo.epochs, ppo.gamma, ppo.lam) == (3, 0.99, 0.95)
    assert ppo.clip_range == lh.Schedule(0.1, 0.0)
    assert config.optimizer.learning_rate == lh.Schedule(2.5e-4, 0.0)
    assert (config.network.actor, config.network.critic) == ((), ())
    assert config.clip_reward is None


@pytest.mark.parametrize("env_id", ["ALE/MsPacman-v5", "ale_py:ALE/Pong-v5"])
def test_every_game_has_the_same_preset(env_id):
    assert lh.preset(env_id) == replace(lh.preset("ALE/Pong-v5"), env_id=env_id)


def test_cartpole_learns_fast_and_anneals():
    rate = lh.preset("CartPole-v1").optimizer.learning_rate
    assert rate(0.0) > lh.Config("CartPole-v1").optimizer.learning_rate(0.0)
    assert rate(1.0) == 0.0


@pytest.mark.parametrize(
    "env_id",
    ["Unheard-v0", "CartPoleish-v1", "MyAnt-v5", "NoVersion", "CarRacing-v3", "ALE/Pong-v5+ALE/Breakout-v5"],
)
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


# The branches of the presets' choice, and one that has none.
ENVIRONMENTS = {
    "CartPole-v1": TWO,
    "Acrobot-v1": THREE,
    "Pendulum-v1": REALS,
    "MountainCar-v0": THREE,
    "MountainCarContinuous-v0": REALS,
    "LunarLander-v3": THREE,
    "LunarLanderContinuous-v3": REALS,
    "BipedalWalker-v3": REALS,
    "BipedalWalkerHardcore-v3": REALS,
    "ALE/Pong-v5": THREE,
    "Unheard-v0": TWO,
    **{f"{name}-v5": REALS for name in MUJOCO},
}
every_objective = pytest.mark.parametrize("objective", get_args(ObjectiveKind))


@every_objective
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_environment_has_a_preset_for_every_objective_that_can_be_built(env_id, objective):
    config = replace(lh.preset(env_id, objective), device="cpu")
    assert (config.env_id, config.objective) == (env_id, objective)
    policy = build_policy(config, Box(-1.0, 1.0, (3,)), ENVIRONMENTS[env_id])
    learner = build_learner(config, policy, build_objective(config, policy.device))
    assert learner.criterion.objective.needs_kl is (objective in ("kl", "trpo"))
    # What has nothing to do with the objective stays.
    plain = lh.preset(env_id)
    assert (config.network, config.action, config.ppo.gamma) == (plain.network, plain.action, plain.ppo.gamma)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_without_an_objective_it_is_that_of_the_clipped_surrogate(env_id):
    assert lh.preset(env_id) == lh.preset(env_id, "clip")


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_an_adaptive_penalty_has_steps_of_one_length(env_id):
    rate, plain = (lh.preset(env_id, objective).optimizer.learning_rate for objective in ("kl", "clip"))
    assert rate.shape == "constant"
    assert rate(1.0) == plain(0.0)


@every_objective
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_preset_trains_for_an_iteration(env_id, objective, workdir):
    preset = lh.preset(env_id, objective)
    run = lh.train(env_id, config=replace(preset, num_envs=2, num_steps=16, total_steps=32, device="cpu"))
    assert run.step == 32
    assert run.config.objective == objective


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "ppo"}, r"objective is ppo; accepted: one of \('clip', "),
        ({"kind": "best"}, r"preset is best; accepted: one of \('tuned', "),
        ({"targets": "td"}, r"targets is td; accepted: one of \(None, 'gae', "),
    ],
)
def test_a_preset_of_no_kind_is_refused(given, message):
    with pytest.raises(lh.ConfigError, match=message):
        lh.preset("CartPole-v1", **given)
