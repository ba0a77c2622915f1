"""Returns are what they claim to be, and the network learns them at any scale."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

# Box2D's bindings crash on import where this warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


class Pilot:
    """Never fires; thinks that the rest is worth `rest`."""

    def __init__(self, rest):
        self.rest = rest

    def act(self, observation):
        return np.int64(0)

    def value(self, observation):
        assert observation.shape == (8,)
        if self.rest is None:
            raise AssertionError("asked for the value after a real end")
        return torch.tensor(self.rest)


def test_a_crash_ends_the_return_and_nothing_is_added(example):
    data = example("offline_q").play(Pilot(None), episodes=2, exploration=0.0, seed=0)
    last = np.flatnonzero(np.diff(data["episodes"], append=-1))
    assert len(last) == 2
    assert data["returns"][last].tolist() == [-100.0, -100.0]  # what a crash costs


def test_a_time_limit_adds_the_critics_value_of_what_would_have_followed(example, monkeypatch):
    offline_q = example("offline_q")
    short = copy.deepcopy(gym.spec("LunarLander-v3"))
    short.max_episode_steps = 20
    monkeypatch.setattr(offline_q, "ENV_ID", short)
    nothing, thousand = (offline_q.play(Pilot(rest), episodes=1, exploration=0.5, seed=0) for rest in (0.0, 1000.0))
    assert np.array_equal(nothing["observations"], thousand["observations"])
    added = thousand["returns"] - nothing["returns"]
    assert added == pytest.approx(1000 * offline_q.GAMMA ** np.arange(20, 0, -1), rel=1e-4)


def rows(scale):
    """Returns of four thousand made-up steps, in a hundred episodes."""
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((4000, 8), dtype=np.float32)
    actions = rng.integers(4, size=4000)
    returns = scale * (5 + observations[:, 0] + np.abs(observations[:, 1]) + actions)
    return {
        "observations": observations,
        "actions": actions,
        "returns": returns.astype(np.float32),
        "episodes": np.arange(4000) // 40,
    }


def test_values_of_actions_are_learned_in_the_units_of_the_returns(example, capsys):
    data = rows(1000.0)
    result = example("offline_q").fit(data, epochs=40, seed=0, report_every=20)
    head, returns = result.network.head, data["returns"]
    assert result.r2 > 0.4
    assert result.rmse < 0.8 * result.std
    assert result.losses[-1] < 0.6
    assert head.count == 40 * 50
    assert head.mean.item() == pytest.approx(returns.mean(), rel=0.03)
    assert head.std.item() == pytest.approx(returns.std(), rel=0.06)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 20", "epoch 40"]
    with torch.no_grad():
        both = result.network(torch.zeros(4, 8), torch.arange(4))
    assert (both.diff() > 200).all()  # each action is worth 1000 more than the one before


def test_collect_writes_what_fit_reads(example, tmp_path, capsys):
    path = tmp_path / "data.npz"
    offline_q = example("offline_q")
    offline_q.main(
        ["collect", "--data", str(path), "--run-dir", str(tmp_path / "run"), "--total-steps", "1", "--episodes", "5"]
    )
    with np.load(path) as data:
        kinds = {name: (x.shape[1:], x.dtype) for name, x in data.items()}
    assert kinds == {
        "observations": ((8,), np.float32),
        "actions": ((), np.int64),
        "returns": ((), np.float32),
        "episodes": ((), np.int64),
    }
    offline_q.main(["fit", "--data", str(path), "--epochs", "1"])
    assert "held-out episodes: R^2" in capsys.readouterr().out
