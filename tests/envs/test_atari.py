"""Atari's games: what a policy sees of them, and when their episodes end."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

import levelhead as lh
from levelhead.envs import choose_backend, is_atari, make_gymnasium
from levelhead.networks import NatureCNN

BACKENDS = ("sync", "vector")
NOTHING = 0
SHORT = {"max_num_frames_per_episode": 160}


@pytest.fixture
def games():
    """Makes games, where the extra is installed, and closes them afterwards."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    made = []

    def make(game="Pong", num_envs=1, backend="sync", **kwargs):
        made.append(make_gymnasium(f"ALE/{game}-v5", num_envs, kwargs, backend))
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["frameskip", "obs_type", "sound_obs", "continuous", "max_episode_steps"])
def test_an_argument_that_the_preprocessing_decides_is_refused(name, backend):
    with pytest.raises(lh.ConfigError, match=rf"env\.kwargs hold {name}"):
        make_gymnasium("ALE/Pong-v5", 1, {name: 1}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_game_that_does_not_exist_is_named(games, backend):
    with pytest.raises(lh.ConfigError, match="ALE/Ping-v5"):
        games("Ping", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_four_screens_are_observed_as_bytes(games, backend):
    env = games(num_envs=2, backend=backend)
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_is_the_same_game(games, backend):
    actions = torch.randint(6, (30, 2), generator=torch.Generator().manual_seed(1))

    def story(seed):
        env = games(num_envs=2, backend=backend)
        return torch.stack([env.reset(seed).clone(), *(env.step(action).observation.clone() for action in actions)])

    assert torch.equal(story(1), story(1))
    assert not torch.equal(story(1), story(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_trains_on_screens_and_is_evaluated_on_the_same(games, workdir, with_fields, backend):
    changes = {"num_envs": 2, "num_steps": 16, "total_steps": 64, "device": "cpu", "env.kwargs": SHORT}
    changes["backend"] = backend
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


# -- ALE's own vector environment ------------------------------------------------------------------------------------


class Idle(gym.Wrapper):
    """So many frames without an action at the beginning of an episode."""

    frames = 0

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        for _ in range(self.frames):
            observation, *_, info = self.env.step(NOTHING)
        return observation, info


@pytest.mark.parametrize("sticky", [0.0, 0.25])
@pytest.mark.parametrize(("game", "steps", "seed"), [("Breakout", 200, 8), ("MsPacman", 100, 7)])
def test_the_same_actions_lead_to_the_same_trajectories_bit_for_bit(games, game, steps, seed, sticky):
    roms = pytest.importorskip("ale_py.roms")
    env = games(game, 3, "vector", repeat_action_probability=sticky).env
    observation, info = env.reset(seed=seed)
    idle, singles = [], []
    for i in range(3):
        single = gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=sticky, disable_env_checker=True)
        # Which repetitions are drawn is up to ALE's own generator, which no seed of Gymnasium's names.
        single.unwrapped.ale.setInt("random_seed", seed + i)
        single.unwrapped.ale.loadROM(roms.get_rom_path(single.spec.kwargs["game"]))
        idle.append(Idle(single))
        singles.append(FrameStackObservation(AtariPreprocessing(idle[i], noop_max=0), 4))
    assert env.single_observation_space == singles[0].observation_space
    assert env.single_action_space == singles[0].action_space

    def begin(i):
        idle[i].frames = int(info["episode_frame_number"][i])
        assert 1 <= idle[i].frames <= 30
        assert np.array_equal(singles[i].reset()[0], observation[i])

    for i in range(3):
        begin(i)
    env.action_space.seed(1)
    ends, rewards = 0, set()
    for _ in range(steps):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        for i, single in enumerate(singles):
            x, *answer = single.step(action[i])
            assert answer[:3] == [reward[i], terminated[i], truncated[i]]
            ended = terminated[i] or truncated[i]
            assert np.array_equal(x, info["final_obs"][i] if ended else observation[i])
            rewards.add(float(reward[i]))
            if ended:
                ends += 1
                begin(i)
    assert ends >= 2 if game == "Breakout" else max(rewards) >= 10
    for single in singles:
        single.close()


@pytest.mark.parametrize(("seed", "drawn"), [(9, 0), (45, 30), (48, 0)])
def test_its_episodes_begin_after_1_to_30_idle_frames_too(games, seed, drawn):
    """Of what it draws, 0 to 30, only 0 is drawn again."""
    env = games(backend="vector").env
    frames = int(env.reset(seed=seed)[1]["episode_frame_number"][0])
    assert 1 <= frames <= 30
    assert drawn == 0 or frames == drawn


def test_its_limit_does_not_count_idle_frames(games):
    env = games(num_envs=4, backend="vector", **SHORT).env
    _, info = env.reset(seed=1)
    first = info["episode_frame_number"].copy()
    steps = 0
    while True:
        *_, truncated, info = env.step(np.zeros(4, dtype=np.int64))
        steps += 1
        if truncated.any():
            break
    assert truncated.all()
    assert 4 * steps == SHORT["max_num_frames_per_episode"]
    assert len(set(first.tolist())) > 1


def test_a_cut_episode_of_less_than_four_screens_shows_no_screen_from_before_it(games):
    env = games(num_envs=2, backend="vector", max_num_frames_per_episode=8).env
    observation, _ = env.reset(seed=1)
    first = observation.copy()
    env.step(np.zeros(2, dtype=np.int64))
    observation, _, _, truncated, info = env.step(np.zeros(2, dtype=np.int64))
    assert truncated.all()
    assert np.array_equal(info["final_obs"][:, :2], first[:, :2])
    assert np.array_equal(observation, np.broadcast_to(observation[:, -1:], observation.shape))


def test_it_leaves_the_metadata_of_others_alone(games):
    games(num_envs=1, backend="vector")
    assert "autoreset_mode" not in VectorEnv.metadata


def test_an_argument_that_it_does_not_take_is_refused(games):
    with pytest.raises(lh.ConfigError, match="takes no difficulty, mode"):
        games(backend="vector", mode=1, difficulty=1)


def test_it_is_chosen_only_where_it_is_asked_for():
    assert choose_backend("ALE/Pong-v5", {}) == "sync"
