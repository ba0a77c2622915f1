"""Two halves of the environments in turn."""

import gymnasium as gym
import pytest
import torch

import levelhead as lh
from levelhead.acting import Actor
from levelhead.builders import build_policy
from levelhead.collector import Collector
from levelhead.distributed import Shards
from levelhead.envs import ShardedVecEnv
from toys import Noise, config


class Told(Noise):
    """Notes when it is given actions, and asked what came of them."""

    def __init__(self, name, log):
        super().__init__(num_envs=2)
        self.name, self.log = name, log

    def send(self, action):
        self.log.append(f"{self.name} steps")
        super().send(action)

    def receive(self):
        self.log.append(f"{self.name} has stepped")
        return super().receive()


def test_while_one_half_steps_actions_of_the_other_are_chosen():
    log = []
    env = ShardedVecEnv([Told("a", log), Told("b", log)])
    policy = build_policy(config(env), env.observation_space, env.action_space)

    class Noting(Actor):
        def __call__(self, t, mask):
            log.append("acting")
            return super().__call__(t, mask)

    halves = [(part, Noting(policy, arrays=part.arrays)) for part in env.parts]
    rollout = Collector(env, policy, 2, seed=1, halves=halves, shards=Shards(2, 0, 2)).collect(0)
    assert rollout.reward.shape == (2, 4)
    expected = ["acting", "a steps", "acting", "b steps"]
    expected += ["a has stepped", "acting", "a steps", "b has stepped", "acting", "b steps"]
    assert log == [*expected, "a has stepped", "b has stepped"]


def test_parts_in_one_process_have_all_been_sent_to_before_any_is_waited_for():
    log = []
    parts = [Told("a", log), Told("b", log)]
    env = ShardedVecEnv(parts)
    env.reset(0)
    step = env.step(torch.zeros(4, dtype=torch.int64))
    assert log == ["a steps", "b steps", "a has stepped", "b has stepped"]
    assert torch.equal(step.observation, torch.cat([part.observation for part in parts]))


@pytest.fixture
def both_ways(tiny, workdir):
    """Runs of two shards, stepped at once and in turn."""

    def train(changes):
        configs = (tiny(**{"num_envs": 4, "parallel.shards": 2, **changes, "double_buffer": x}) for x in (False, True))
        return [lh.train(config.env_id, config=config) for config in configs]

    return train


PROCESSES = {"backend": "processes", "env.workers": 1}
MASKED = {"env_id": "Guarded-v0"}
TRUNCATED = {"env_id": "Swing-v0", "num_steps": 24}


@pytest.mark.parametrize(
    "changes",
    [
        {**MASKED, "engine": "torch"},
        {**MASKED, "engine": "native"},
        {**TRUNCATED, "engine": "torch"},
        {**TRUNCATED, "engine": "native"},
        {"env_id": "Pixels-v0"},
        {**TRUNCATED, "memory.kind": "lstm", "ppo.chunk": 8, "ppo.burn_in": 2},
        {**TRUNCATED, "overlap": True},
    ],
    ids=["masks", "masks, native", "truncation", "truncation, native", "pictures", "memory", "ahead"],
)
def test_halves_in_turn_learn_what_both_at_once_learn(both_ways, outcome, two_tasks, changes):
    plain, halved = both_ways({**PROCESSES, **changes})
    assert outcome(halved.directory) == outcome(plain.directory)


def test_envpool_steps_by_itself_too(tiny, outcome, workdir):
    pytest.importorskip("envpool")
    common = {"backend": "envpool", "num_envs": 4, "parallel.shards": 2}
    plain, halved = (lh.train(c.env_id, config=c) for c in (tiny(**common), tiny(**common, double_buffer=True)))
    assert outcome(halved.directory) == outcome(plain.directory)


def test_two_tasks_are_kept_apart_in_each_half(tiny, outcome, workdir, two_tasks):
    common = {"env_id": two_tasks, "backend": "processes", "env.workers": 1, "num_envs": 4, "parallel.shards": 2}
    plain, halved = (lh.train(two_tasks, config=c) for c in (tiny(**common), tiny(**common, double_buffer=True)))
    assert outcome(halved.directory) == outcome(plain.directory)


def test_where_there_are_no_two_halves_it_is_refused(tiny, workdir):
    with pytest.raises(lh.ConfigError, match="double_buffer has nothing to act on: backend sync"):
        tiny(double_buffer=True)
    apart = {"double_buffer": True, "backend": "processes", "num_envs": 4}
    for changes, message in (
        ({"parallel.shards": 4}, "takes two shards in turn; with 4 in all each process has 4"),
        ({"num_envs": 3}, "num_envs is 3; accepted: a multiple of the 2 shards"),
        ({"parallel.cutoff": 0.5}, "there is one process"),
    ):
        with pytest.raises(lh.ConfigError, match=message):
            lh.train("CartPole-v1", config=tiny(**{**apart, **changes}))
    vector = gym.make_vec("CartPole-v1", 4, vectorization_mode="sync")
    with pytest.raises(lh.ConfigError, match="environments handed over are one shard"):
        lh.train(vector, config=tiny(double_buffer=True, backend="auto", num_envs=4))
    assert not (workdir / "runs").exists()
