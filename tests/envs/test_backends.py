"""Every way to run an environment tells the story that Gymnasium's own tells."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import levelhead as lh
from levelhead.envs import choose_backend, make_gymnasium
from levelhead.envs.backends import EnvPoolEnvs, has_envpool
from levelhead.errors import ConfigError

needs_envpool = pytest.mark.skipif(not has_envpool("CartPole-v1"), reason="EnvPool is an extra")


BUILT_IN = "gymnasium.envs.classic_control.cartpole"
gym.register(
    "Short/CartPole-v1",
    f"{BUILT_IN}:CartPoleEnv",
    None,
    max_episode_steps=12,
    vector_entry_point=f"{BUILT_IN}:CartPoleVectorEnv",
)


def set_state(env, observation):
    """Puts a single environment where an observation says it is; what no observation shows has no bearing."""
    env.reset(seed=0)
    inner = env.unwrapped
    match env.spec.name:
        case "CartPole":
            inner.state = observation.astype(np.float64)
        case "Pendulum":
            inner.state = np.array([np.arctan2(observation[1], observation[0]), observation[2]])
        case "HalfCheetah":
            inner.set_state(np.concatenate(([0.0], observation[:8])), observation[8:])


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [
        ("CartPole-v1", "vector"),
        ("Short/CartPole-v1", "vector"),
        pytest.param("CartPole-v1", "envpool", marks=needs_envpool),
        pytest.param("Pendulum-v1", "envpool", marks=needs_envpool),
        pytest.param("HalfCheetah-v5", "envpool", marks=needs_envpool),
    ],
)
def test_the_same_actions_lead_to_the_same_trajectories(env_id, backend):
    env = make_gymnasium(env_id, 3, backend=backend)
    observation = env.reset(4).numpy().copy()
    singles = [gym.make(env_id) for _ in range(3)]
    assert env.observation_space == singles[0].observation_space
    assert env.action_space == singles[0].action_space
    env.action_space.seed(1)
    for single, x in zip(singles, observation, strict=True):
        set_state(single, x)
    resetting, ended = np.zeros(3, dtype=bool), 0
    for _ in range(singles[0].spec.max_episode_steps + 30):
        actions = np.stack([env.action_space.sample()] * 3)
        step = env.step_arrays(actions)
        assert np.array_equal(np.ones(3, dtype=bool) if step.valid is None else step.valid, ~resetting)
        for i, single in enumerate(singles):
            if not resetting[i]:
                x, reward, terminated, truncated, _ = single.step(actions[i])
                np.testing.assert_allclose(step.observation[i], x, rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(step.reward[i], reward, rtol=1e-3, atol=1e-3)
                assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            # Every time, so that rounding doesn't add up.
            elapsed = 0 if resetting[i] else single.get_wrapper_attr("_elapsed_steps")
            set_state(single, step.observation[i])
            single.set_wrapper_attr("_elapsed_steps", elapsed)
        resetting = step.terminated | step.truncated
        ended += int(resetting.sum())
    assert ended >= 3
    env.close()


@pytest.mark.parametrize("backend", ["sync", "vector", pytest.param("envpool", marks=needs_envpool)])
def test_a_seed_decides_all(backend):
    def play(seed):
        env = make_gymnasium("CartPole-v1", 4, backend=backend)
        env.reset(seed + 1)
        told = [env.reset(seed).clone()]  # whatever came before
        told += [env.step(torch.ones(4, dtype=torch.int64)).observation.clone() for _ in range(40)]
        env.close()
        return torch.stack(told)

    first = play(3)
    assert torch.equal(play(3), first)
    assert not torch.equal(play(4), first)
    assert len(first[0].unique(dim=0)) == 4


def test_auto_takes_the_fastest_that_has_the_environment():
    assert choose_backend("CartPole-v1", {}) == "vector"
    assert choose_backend("ALE/Pong-v5", {}) == "sync"
    assert choose_backend("phys2d/CartPole-v1", {}) == "sync"
    assert choose_backend("nobody/knows-v0", {}) == "sync"
    assert choose_backend("Pendulum-v1", {"g": 5.0}) == "sync"
    assert choose_backend("Pendulum-v1", {}) == ("envpool" if has_envpool("Pendulum-v1") else "sync")


@pytest.mark.parametrize(
    ("env", "backend", "reason"),
    [
        ("Pendulum-v1", "vector", "Pendulum-v1 has no vector version of its own"),
        (lambda: gym.make("CartPole-v1"), "vector", "needs an environment's id"),
        pytest.param("ALE/Pong-v5", "envpool", "has no ALE/Pong-v5", marks=needs_envpool),
        ("CartPole-v1", "vector", "cannot make CartPole-v1"),
    ],
)
def test_what_a_backend_lacks_is_named(env, backend, reason):
    with pytest.raises(ConfigError, match=reason):
        make_gymnasium(env, 2, {"nonsense": 1} if "cannot" in reason else None, backend)


@needs_envpool
def test_options_that_envpool_lacks_are_named():
    with pytest.raises(ConfigError, match="EnvPool refuses CartPole-v1"):
        make_gymnasium("CartPole-v1", 2, {"nonsense": 1}, "envpool")


@needs_envpool
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_envpools_arrays_are_taken_where_its_python_code_takes_them(env_id, monkeypatch):
    def play():
        env = EnvPoolEnvs(env_id, 3, {"max_episode_steps": 20})
        env.action_space.seed(1)
        told = [(env.reset(seed=2)[0],)] + [env.step(env.action_space.sample())[:4] for _ in range(50)]
        direct = env._wire is not None
        env.close()
        return direct, told

    direct, told = play()
    monkeypatch.setattr("levelhead.envs.backends._wire_of", lambda pool: None)
    around, expected = play()
    assert direct
    assert not around
    for step, other in zip(told, expected, strict=True):
        for x, y in zip(step, other, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_without_envpool_it_is_not_chosen_and_its_extra_is_named(monkeypatch):
    monkeypatch.setattr("levelhead.envs.backends.find_spec", lambda name: None)
    assert choose_backend("Pendulum-v1", {}) == "sync"
    with pytest.raises(ConfigError, match=r"levelhead\[envpool\]"):
        make_gymnasium("Pendulum-v1", 2, backend="envpool")


def test_a_run_says_and_keeps_what_ran_its_environments(tiny, workdir):
    run = lh.train("CartPole-v1", config=tiny(backend="auto"))
    assert run.config.backend == "vector"
    with pytest.raises(ConfigError, match="backend is vector, and the environment is handed over"):
        lh.train(lambda: gym.make("CartPole-v1"), config=tiny(backend="vector"))
