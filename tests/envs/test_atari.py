"""Atari's games: what a policy sees of them, and when their episodes end."""

import sys

import numpy as np
import pytest
import torch

import levelhead as lh
from levelhead.envs import is_atari, make_gymnasium
from levelhead.networks import NatureCNN

NOTHING = 0
SHORT = {"max_num_frames_per_episode": 160}


@pytest.fixture
def games():
    """Makes games, where the extra is installed, and closes them afterwards."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    made = []

    def make(game="Pong", num_envs=1, **kwargs):
        made.append(make_gymnasium(f"ALE/{game}-v5", num_envs, kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def frames(env):
    return np.array([one.unwrapped.ale.getEpisodeFrameNumber() for one in env.env.envs])


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "ale_py:ALE/Pong-v5"])
def test_a_game_is_known_by_its_id(env_id):
    assert is_atari(env_id)


@pytest.mark.parametrize("env_id", ["Pong-v5", "CartPole-v1", "MYALE/Pong-v5", "ALE/Pong-v5+ALE/Breakout-v5"])
def test_other_ids_are_no_games(env_id):
    assert not is_atari(env_id)


@pytest.mark.parametrize("package", ["ale_py", "cv2"])
def test_a_missing_package_is_an_error_that_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(lh.ConfigError, match=r'ALE/Pong-v5 needs .* pip install "levelhead\[atari\]"'):
        make_gymnasium("ALE/Pong-v5", 1)


@pytest.mark.parametrize("name", ["frameskip", "obs_type", "sound_obs", "continuous", "max_episode_steps"])
def test_an_argument_that_the_preprocessing_decides_is_refused(name):
    with pytest.raises(lh.ConfigError, match=rf"env\.kwargs hold {name}"):
        make_gymnasium("ALE/Pong-v5", 1, {name: 1})


def test_a_game_that_does_not_exist_is_named(games):
    with pytest.raises(lh.ConfigError, match="ALE/Ping-v5"):
        games("Ping")


def test_the_last_four_screens_are_observed_as_bytes(games):
    env = games(num_envs=2)
    first = env.reset(1).clone()
    assert (first.shape, first.dtype) == ((2, 4, 84, 84), torch.uint8)
    assert torch.equal(first, first[:, -1:].expand_as(first))
    before = first
    for _ in range(30):
        after = env.step(torch.full((2,), NOTHING)).observation.clone()
        assert torch.equal(after[:, :3], before[:, 1:])
        before = after
    assert not torch.equal(before[:, 3], first[:, 3])


def test_an_action_is_held_for_four_frames(games):
    env = games(num_envs=2)
    env.reset(1)
    before = frames(env)
    for step in range(1, 6):
        env.step(torch.full((2,), NOTHING))
        assert (frames(env) == before + 4 * step).all()


def test_episodes_begin_after_up_to_thirty_idle_frames(games):
    env = games(num_envs=8)
    env.reset(1)
    assert 1 <= frames(env).min() < frames(env).max() <= 30


def test_a_lost_life_ends_no_episode_and_rewards_are_the_games_own(games):
    env = games("MsPacman")
    env.reset(1)
    ale = env.env.envs[0].unwrapped.ale
    lives, rewards = ale.lives(), []
    for _ in range(400):
        step = env.step(torch.tensor([NOTHING]))
        rewards.append(step.reward.item())
        if ale.lives() < lives:
            break
    assert ale.lives() == lives - 1
    assert not step.terminated.any()
    assert max(rewards) >= 10


def test_arguments_reach_the_game(games):
    env = games(repeat_action_probability=0.0, **SHORT)
    assert env.env.envs[0].unwrapped.ale.getFloat("repeat_action_probability") == 0.0
    env.reset(1)
    steps = [env.step(torch.tensor([NOTHING])) for _ in range(41)]
    assert any(step.truncated.item() for step in steps)


def test_the_same_seed_is_the_same_game(games):
    actions = torch.randint(6, (30, 2), generator=torch.Generator().manual_seed(1))

    def story(seed):
        env = games(num_envs=2)
        return torch.stack([env.reset(seed).clone(), *(env.step(action).observation.clone() for action in actions)])

    assert torch.equal(story(1), story(1))
    assert not torch.equal(story(1), story(2))


def test_a_run_trains_on_screens_and_is_evaluated_on_the_same(games, workdir, with_fields):
    changes = {"num_envs": 2, "num_steps": 16, "total_steps": 64, "device": "cpu", "env.kwargs": SHORT}
    run = lh.train("ALE/Pong-v5", config=with_fields(lh.preset("ALE/Pong-v5"), changes))
    assert run.step == 64
    policy = lh.load_policy(run.directory)
    assert policy.observation_space.shape == (4, 84, 84)
    (encoder,) = (module for module in policy.modules() if isinstance(module, NatureCNN))
    assert policy.network.actor_dim == policy.network.critic_dim == encoder.dim
    assert not [*policy.network.actor.parameters(), *policy.network.critic.parameters()]
    report = lh.evaluate(policy, "ALE/Pong-v5", episodes=2, env_kwargs=SHORT)
    assert all(30 <= length <= 40 for length in report.lengths)
    assert lh.resume(run.directory, total_steps=96).step == 96
