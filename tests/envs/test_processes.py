"""Environments in processes tell the same story, and one that is lost is noticed, replaced and counted."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple

import levelhead as lh
from levelhead.envs import Workers, make_env, make_gymnasium
from levelhead.envs.processes import ProcessEnvs
from levelhead.envs.sync import SyncEnvs
from levelhead.errors import ConfigError, TrainingFault
from toys import same

QUICK = Workers(count=2, timeout=0.5)


class Nested(gym.Env):
    """Random observations of several parts, episodes of random length, and a mask in the info."""

    action_space = Discrete(3)

    def __init__(self):
        self.observation_space = Dict({"a": Box(-1, 1, (2,)), "b": Tuple((Discrete(5), Box(0, 255, (2, 3), np.uint8)))})

    def _answer(self):
        mask = np.array([True, *(self.np_random.random(2) < 0.5)])
        return self.observation_space.sample(), {"action_mask": mask, "else": 1}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self._answer()

    def step(self, action):
        observation, info = self._answer()
        ended, cut = self.np_random.random(2) < 0.2
        return observation, float(action), bool(ended), bool(cut), info


class Failing(gym.Env):
    """Counts the steps of its episode; at the step that `at` names for a seed, something happens, once."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)
    action_space = Discrete(2)

    def __init__(self, failure, at, always=False):
        self.failure, self.at, self.always = failure, at, always

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.own = seed if seed is not None else self.own
        self.t = 0
        return np.array([0.0]), {}

    def step(self, action):
        self.t += 1
        if self.t == self.at and (self.always or self.own == 1):
            self.failure()
        return np.array([float(self.t)]), 1.0, False, False, {}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def die_once(file):
    if not file.exists():
        file.touch()
        die()


def fail():
    raise ArithmeticError("the world ended")


FAILURES = {
    "dies": (die, "its process ended with status -9"),
    "leaves": (partial(os._exit, 3), "its process ended with status 3"),
    "is stopped": (stop, "no answer within 0.5 s"),
    "is slow": (partial(time.sleep, 600), "no answer within 0.5 s"),
    "raises": (fail, "ArithmeticError: the world ended"),
}


def leaves(tree):
    if isinstance(tree, dict):
        return [x for part in tree.values() for x in leaves(part)]
    return [x for part in tree for x in leaves(part)] if isinstance(tree, tuple) else [tree]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def gone(pid):
    """Whether a process has ended, waited for or not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(condition):
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.05)
    return False


def pids(env):
    return [share._process.pid for share in env._shares]


@pytest.mark.parametrize("make", [partial(gym.make, "CartPole-v1"), partial(gym.make, "Pendulum-v1"), Nested])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_they_are_those_of_one_process_bit_for_bit(make, count):
    envs = [SyncEnvs([make] * 3), ProcessEnvs([make] * 3, Workers(count))]
    envs[0].action_space.seed(1)
    starts = [env.reset(seed=5) for env in envs]
    assert equal(starts[0][0], starts[1][0])
    assert len(pids(envs[1])) == count
    ended = 0
    for _ in range(220):
        actions = envs[0].action_space.sample()
        (x, *answers, info), (y, *others, noted) = (env.step(actions) for env in envs)
        assert equal(x, y)
        assert all(np.array_equal(a, b) for a, b in zip(answers, others, strict=True))
        assert info.keys() == noted.keys()
        for key in ("action_mask", "_action_mask", "_final_obs"):
            assert np.array_equal(info.get(key), noted.get(key))
        for i in np.flatnonzero(answers[1] | answers[2]):
            assert equal(info["final_obs"][i], noted["final_obs"][i])
            ended += 1
    assert ended >= 3
    for env in envs:
        env.close()


@pytest.mark.parametrize("how", FAILURES)
def test_a_lost_process_is_noticed_replaced_marked_and_counted(how):
    failure, reason = FAILURES[how]
    env = make_gymnasium(partial(Failing, failure, 3), 4, backend="processes", workers=QUICK)
    env.reset(0)
    before = pids(env.env)
    actions = torch.zeros(4, dtype=torch.int64)
    for t in (1, 2):
        step = env.step(actions)
        assert step.valid is None
        assert step.observation.flatten().tolist() == [t] * 4
    with pytest.warns(UserWarning, match=rf"environments 0 to 1 lost: .*{reason}.*restart 1 of 10"):
        step = env.step(actions)
    # Environment 1 was lost, and 0 with it.
    assert step.valid.tolist() == [False, False, True, True]
    assert step.truncated.tolist() == [True, True, False, False]
    assert not step.terminated.any()
    assert step.reward.tolist() == [0, 0, 1, 1]
    assert step.observation.flatten().tolist() == [0, 0, 3, 3]
    assert step.final_observation.flatten().tolist() == [2, 2, 3, 3]
    assert env.restarts == 1
    assert gone(before[0])
    assert pids(env.env)[1] == before[1]
    for t in range(1, 6):  # its seed is another one now
        step = env.step(actions)
        assert step.valid is None
        assert step.observation.flatten().tolist() == [t, t, 3 + t, 3 + t]
    env.close()


def test_whatever_is_killed_again_and_again_goes_on():
    env = make_gymnasium("CartPole-v1", 4, backend="processes", workers=Workers(2, max_restarts=20))
    env.reset(0)
    actions = torch.zeros(4, dtype=torch.int64)
    lost = 0
    for t in range(20):
        os.kill(pids(env.env)[t % 2], signal.SIGKILL)
        with pytest.warns(UserWarning, match="lost"):
            step = env.step(actions)
        lost += int((~step.valid).sum())
    assert (env.restarts, lost) == (20, 40)
    assert torch.isfinite(step.observation).all()
    env.close()


def test_no_more_are_replaced_than_is_put_up_with():
    workers = Workers(2, timeout=0.5, max_restarts=2)
    env = make_gymnasium(partial(Failing, fail, 1, always=True), 2, backend="processes", workers=workers)
    env.reset(0)
    running = pids(env.env)
    why = r"(?s)2 restarts.*the world ended"
    actions = torch.zeros(2, dtype=torch.int64)
    with pytest.warns(UserWarning, match="restart [12] of 2"):
        env.step(actions)
    with pytest.raises(TrainingFault, match=why):
        env.step(actions)
    env.close()
    assert all(gone(pid) for pid in running)


def test_an_environment_that_cannot_be_made_is_refused():
    with pytest.raises(ConfigError, match="cannot make nobody/knows-v0"):
        make_gymnasium("nobody/knows-v0", 2, backend="processes")

    made = []

    def make():
        made.append(1)
        return Failing(fail, 1) if len(made) == 1 else fail()

    with pytest.raises(ConfigError, match=r"(?s)environment 0 cannot be made.*the world ended"):
        make_gymnasium(make, 2, backend="processes", workers=QUICK)


def hesitant(parent, path, again):
    """In a process of its own hangs the first time, or always."""
    if os.getpid() != parent and (again or not path.exists()):
        path.touch()
        time.sleep(600)
    return gym.make("CartPole-v1")


def test_a_process_that_hangs_as_it_begins_is_started_once_more(tmp_path):
    make = partial(hesitant, os.getpid(), tmp_path / "begun")
    with pytest.warns(UserWarning, match="environment 0 not made: no answer within 3 s; once more"):
        env = ProcessEnvs([partial(make, again=False)], Workers(1, timeout=3.0))
    assert env.restarts == 1
    assert env.reset(seed=1)[0].shape == (1, 4)
    env.close()
    with (
        pytest.warns(UserWarning, match="once more"),
        pytest.raises(ConfigError, match=r"cannot be made: no answer wi"),
    ):
        ProcessEnvs([partial(make, again=True)], Workers(1, timeout=0.5))
    with pytest.raises(ConfigError, match="cannot be made: no answer"):  # at once
        ProcessEnvs([partial(make, again=True)], Workers(1, timeout=0.5, max_restarts=0))


def test_where_no_process_can_be_started_that_is_said(monkeypatch):
    def refuse():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("os.fork", refuse)
    with pytest.raises(ConfigError, match="environment 0 cannot be made: no process can be started: Resource"):
        ProcessEnvs([partial(gym.make, "CartPole-v1")] * 2, Workers(count=2))


def test_nothing_is_left_behind():
    env = ProcessEnvs([partial(gym.make, "CartPole-v1")] * 4, Workers(4))
    env.reset(seed=1)
    running, files = pids(env), len(os.listdir("/proc/self/fd"))
    env.close()
    assert all(gone(pid) for pid in running)
    assert len(os.listdir("/proc/self/fd")) < files


class Leaving(gym.Wrapper):
    """Writes down that it was closed."""

    def __init__(self, path):
        super().__init__(gym.make("CartPole-v1"))
        self.path = path

    def close(self):
        super().close()
        self.path.write_text("closed")


def test_environments_are_closed_while_others_that_were_forked_later_live_on(tmp_path):
    paths = [tmp_path / str(i) for i in range(2)]
    envs = [ProcessEnvs([partial(Leaving, path)], Workers(1)) for path in paths]
    for path in paths:
        path.unlink()  # the first of each was made only to ask for its spaces
    for env, path in zip(envs, paths, strict=True):
        env.close()
        assert path.read_text() == "closed"


def held():
    """Files, threads, mappings of memory and children of this process."""
    process = Path("/proc/self")
    threads = list((process / "task").iterdir())
    mappings = (process / "maps").read_text().count("/dev/zero")
    return len(list((process / "fd").iterdir())), len(threads), mappings, len(multiprocessing.active_children())


def test_runs_one_after_another_leave_nothing_behind(tiny, workdir):
    config = tiny(total_steps=64, backend="processes", **{"env.workers": 2})
    lh.train("CartPole-v1", config=config)
    before = held()
    for i in range(3):
        run = lh.train("CartPole-v1", config=config, run_dir=workdir / str(i))
        lh.resume(run.directory, total_steps=96)
    assert held() == before


FORGOTTEN = """
import gymnasium as gym
from functools import partial
from levelhead.envs.processes import ProcessEnvs
env = ProcessEnvs([partial(gym.make, "CartPole-v1")] * 2)
env.reset(seed=1)
print(*(share._process.pid for share in env._shares), flush=True)
raise RuntimeError("nobody closes them")
"""


@pytest.mark.parametrize(
    "before", ["", "import weakref\nclass Thing: pass\nthing = Thing()\nweakref.finalize(thing, int)\n"]
)
def test_an_interpreter_ends_though_nobody_has_closed_them(before):
    # The order of what happens at exit hangs on who asked for it first.
    script = subprocess.run([sys.executable, "-c", before + FORGOTTEN], capture_output=True, text=True, timeout=60)
    assert script.returncode == 1
    assert "nobody closes them" in script.stderr
    assert all(gone(int(pid)) for pid in script.stdout.split())


ORPHANS = """
import os, signal, sys, time
import gymnasium as gym
from functools import partial
from levelhead.envs.processes import ProcessEnvs
env = ProcessEnvs([partial(gym.make, "CartPole-v1")] * 2)
env.reset(seed=1)
print(*(share._process.pid for share in env._shares), flush=True)
time.sleep(600)
"""


def test_processes_ignore_what_a_terminal_sends_and_follow_their_parent():
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        running = [int(pid) for pid in parent.stdout.readline().split()]
        for pid in running:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
        assert not any(gone(pid) for pid in running)
        parent.kill()
    assert eventually(lambda: all(gone(pid) for pid in running))


def test_a_run_is_the_same_as_in_one_process_bit_for_bit(tiny, workdir):
    runs = [lh.train("CartPole-v1", config=tiny(backend=backend)) for backend in ("sync", "processes")]
    assert same(*(run.policy.state_dict() for run in runs))
    line = json.loads((runs[1].directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["health/env_restarts"] == 0
    assert "health/env_restarts" not in (runs[0].directory / "metrics.jsonl").read_text()


def test_a_run_survives_losses_and_counts_them(tiny, workdir):
    config = tiny(backend="processes", **{"env.workers": 1})
    with pytest.warns(UserWarning, match="lost"):
        run = lh.train(partial(Failing, partial(die_once, workdir / "died"), 7, True), config=config)
    line = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["health/env_restarts"] == 1
    assert run.step >= 96


class Ends(gym.Env):
    """Episodes of ten steps and a reward of 1 each; in one process of all, the first one is lost at its seventh."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, died):
        self.died, self.t = died, 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t == 7 and not self.died.exists():
            self.died.touch()
            os._exit(1)
        return np.zeros(1, np.float32), 1.0, self.t == 10, False, {}


def test_an_episode_that_is_lost_is_none_that_has_ended(tiny, workdir):
    config = tiny(backend="processes", **{"env.workers": 1})
    with pytest.warns(UserWarning, match="lost"):
        run = lh.train(partial(Ends, workdir / "died"), config=config)
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["health/env_restarts"] == 1
    assert {line["rollout/ep_rew_mean"] for line in lines if "rollout/ep_rew_mean" in line} == {10.0}


def test_losses_of_all_tasks_are_counted(two_tasks):
    env = make_env(two_tasks, 2, backend="processes")
    env.reset(0)
    assert env.restarts == 0
    for member in env.members:
        os.kill(pids(member.env)[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="lost"):
        step = env.step(torch.zeros(2, *env.action_space.shape))
    assert env.restarts == 2
    assert step.valid.tolist() == [False, False]
    env.close()
    sync = make_env(two_tasks, 2)
    assert sync.restarts is None
    sync.close()


def test_a_run_that_loses_too_many_says_why_and_is_saved(tiny, workdir):
    config = tiny(backend="processes", **{"env.max_restarts": 1, "env.timeout": 5.0, "env.workers": 1})
    why = r"(?s)1 restarts.*state saved as"
    with pytest.warns(UserWarning, match="lost"), pytest.raises(TrainingFault, match=why):
        lh.train(partial(Failing, fail, 3, always=True), config=config)


@pytest.mark.parametrize(("field", "value"), [("workers", 2), ("timeout", 1.0), ("max_restarts", 3)])
def test_settings_of_processes_are_refused_without_them(tiny, field, value):
    with pytest.raises(ConfigError, match=f"env.{field}.*backend is sync"):
        tiny(**{f"env.{field}": value})
