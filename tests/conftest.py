"""What several tests share: runs that take a moment, and ways to look at what they left."""

import json
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace

import gymnasium as gym
import pytest
import torch

import levelhead as lh
from levelhead import checkpoint
from toys import Guarded, Hybrid, Pixels

torch.set_num_threads(1)  # tensors are tiny here: a second thread only costs


def _with_fields(config, changes):
    """`config` with fields changed by their dotted names."""
    here = {name: x for name, x in changes.items() if "." not in name}
    below = {}
    for name, x in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = x
    return replace(config, **here, **{part: _with_fields(getattr(config, part), x) for part, x in below.items()})


@pytest.fixture(scope="session")
def with_fields():
    return _with_fields


@pytest.fixture(scope="session")
def tiny():
    """A config that trains in a tenth of a second; fields change by their dotted names."""

    def make(env_id="CartPole-v1", **changes):
        config = lh.Config(
            env_id,
            total_steps=96,
            num_envs=2,
            num_steps=16,
            device="cpu",
            checkpoint_every=32,
            network=lh.NetworkConfig(actor=(8,), critic=(8,)),
            ppo=lh.PPOConfig(epochs=2, minibatches=2),
            optimizer=lh.OptimizerConfig(learning_rate=lh.Schedule(1e-2, 1e-2, "constant")),
        )
        return _with_fields(config, changes)

    return make


@pytest.fixture
def interruptible():
    """SIGINT and SIGHUP as in a terminal, wherever the tests were started."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _metrics(directory):
    """Lines of metrics.jsonl, but for the clock's."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if not name.startswith("time/")} for line in lines]


@pytest.fixture(scope="session")
def metrics():
    return _metrics


@pytest.fixture(scope="session")
def outcome():
    """Everything that a run left behind, as something to compare: parameters, optimiser, progress and metrics."""

    def read(directory):
        manifest = json.loads((checkpoint.checkpoints(directory)[-1] / "manifest.json").read_text())
        return {"metrics": _metrics(directory), **manifest["sha256"]}

    return read


@pytest.fixture(scope="session")
def two_tasks():
    """Ids, joined by +, of a pendulum and a car on a hill whose episodes are short enough to end in a tiny run."""
    where = "gymnasium.envs.classic_control"
    gym.register("Swing-v0", f"{where}:PendulumEnv", max_episode_steps=10)
    gym.register("Hill-v0", f"{where}:Continuous_MountainCarEnv", max_episode_steps=15)
    yield "Swing-v0+Hill-v0"
    for env_id in ("Swing-v0", "Hill-v0"):
        del gym.registry[env_id]


gym.register("Hybrid-v0", Hybrid)
gym.register("Pixels-v0", Pixels)
gym.register("Guarded-v0", Guarded)


@pytest.fixture
def no_room():
    """A context in which no file may grow beyond so many bytes: as with a full disk, its last part isn't written."""

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A working directory of the test's own, for whatever runs/ it writes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """A finished run with three checkpoints and an observation normaliser; not to be written to."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return lh.train("CartPole-v1", config=tiny(run_dir=directory, **{"network.normalize_observation": True}))


@pytest.fixture
def run_copy(finished, tmp_path):
    """A copy of the finished run's directory, free to be damaged."""
    return shutil.copytree(finished.directory, tmp_path / "copy")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Puts a module where Python finds it; forgets it and the environments it registered afterwards."""
    before, names = set(gym.registry), []

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)
    for env_id in set(gym.registry) - before:
        del gym.registry[env_id]
