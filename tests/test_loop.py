"""Around the trainer: what follows when something cannot be written, and which checkpoint counts as the best."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import levelhead as lh
from levelhead import api, checkpoint
from levelhead.writers import JsonlWriter, TensorBoardWriter

pytestmark = pytest.mark.usefixtures("workdir")

ROOM = 40_000
"""Bytes that a file may have: enough for all of a tiny run but the checkpoints of a wide network."""
WIDE = {"network.actor": (128, 128)}


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def steps(directory):
    return [int(p.name.removeprefix("step-")) for p in checkpoint.checkpoints(directory)]


# -- full disks --------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_stops_training_with_the_older_ones_intact(tiny, workdir, no_room):
    run = lh.train("CartPole-v1", config=tiny(run_dir=workdir / "run", **WIDE))
    before = lh.load_policy(run.directory)
    with no_room(ROOM), pytest.raises(lh.StorageError, match=r"step-000000000128 cannot be written: File too large$"):
        lh.resume(run.directory, total_steps=160)
    assert steps(run.directory) == [32, 64, 96]
    assert len(list((run.directory / "checkpoints").iterdir())) == 3
    x = np.ones((1, 4), np.float32)
    assert before.act(x) == lh.load_policy(run.directory).act(x)
    assert lh.resume(run.directory).step == 160


def test_training_goes_on_with_a_warning_where_that_is_asked_for_but_does_not_end_so(tiny, workdir, no_room):
    config = tiny(run_dir=workdir / "run", write_failure="warn", **WIDE)
    with (
        no_room(ROOM),
        pytest.warns(UserWarning, match=r"step-0000000000\d\d cannot be written: File too large; training goes on"),
        pytest.raises(lh.StorageError, match="step-000000000096 cannot be written"),
    ):
        lh.train("CartPole-v1", config=config)
    assert [line["step"] for line in lines(workdir / "run")] == [32, 64, 96]
    assert steps(workdir / "run") == []


def test_a_run_whose_checkpoints_failed_for_a_while_learns_the_same(tiny, workdir, outcome, no_room, monkeypatch):
    whole = lh.train("CartPole-v1", config=tiny(write_failure="warn", **WIDE))
    save = checkpoint.save

    def fail(run, step, *rest):
        with no_room(ROOM if step < 96 else -1):
            return save(run, step, *rest)

    monkeypatch.setattr(checkpoint, "save", fail)
    with pytest.warns(UserWarning, match="training goes on"):
        run = lh.train("CartPole-v1", config=tiny(write_failure="warn", **WIDE))
    assert steps(run.directory) == [96]
    assert outcome(run.directory) == outcome(whole.directory)


def large(original):
    """A writer's `write` that makes the metrics of iteration 2 larger than `ROOM`."""

    def write(self, iteration):
        if iteration.iteration == 2:
            more = {f"x/{i}": 0.0 for i in range(ROOM // 4)}
            iteration = replace(iteration, metrics=iteration.metrics | more)
        original(self, iteration)

    return write


@pytest.mark.parametrize("writer", [JsonlWriter, TensorBoardWriter])
def test_metrics_that_cannot_be_written_stop_training(tiny, workdir, no_room, monkeypatch, writer):
    monkeypatch.setattr(writer, "write", large(writer.write))
    name = "metrics.jsonl" if writer is JsonlWriter else "tb/events.out.tfevents.*"
    with no_room(ROOM), pytest.raises(lh.StorageError, match=rf"run/{name} cannot be written: File too large$"):
        lh.train("CartPole-v1", config=tiny(run_dir=workdir / "run"))
    monkeypatch.undo()
    assert [line["step"] for line in lines(workdir / "run")][:1] == [32]
    assert lh.resume(workdir / "run").step == 96


@pytest.mark.parametrize("writer", [JsonlWriter, TensorBoardWriter])
def test_metrics_that_cannot_be_written_are_left_out_where_training_goes_on(
    tiny, workdir, no_room, monkeypatch, writer
):
    monkeypatch.setattr(writer, "write", large(writer.write))
    with no_room(ROOM), pytest.warns(UserWarning, match="cannot be written: File too large; training goes on"):
        lh.train("CartPole-v1", config=tiny(run_dir=workdir / "run", write_failure="warn"))
    events = EventAccumulator(str(workdir / "run" / "tb")).Reload()
    found = {
        JsonlWriter: [line["step"] for line in lines(workdir / "run")],
        TensorBoardWriter: [event.step for event in events.Scalars("value/mean")],
    }
    assert found.pop(writer) == [32, 96]
    assert list(found.values()) == [[32, 64, 96]]


def test_a_fault_is_named_even_where_its_state_cannot_be_saved(tiny, workdir, no_room):
    class Faulty(gym.Wrapper):
        def step(self, action):
            observation, _, *rest = self.env.step(action)
            return observation, float("nan"), *rest

    config = tiny(run_dir=workdir / "run", **WIDE)
    with no_room(ROOM), pytest.raises(lh.TrainingFault, match=r"non-finite reward.*state not saved: .*File too large"):
        lh.train(lambda: Faulty(gym.make("CartPole-v1")), config=config)


def test_a_run_that_cannot_be_begun_is_named(tiny, workdir, no_room):
    with no_room(100), pytest.raises(lh.StorageError, match=r"run/config.json cannot be written: File too large"):
        lh.train("CartPole-v1", config=tiny(run_dir=workdir / "run"))


# -- the best checkpoint -----------------------------------------------------------------------------------------


def scores(directory):
    return {int(p.name[5:]): checkpoint.load(p)[1]["score"] for p in checkpoint.checkpoints(directory)}


def test_scores_are_returns_of_the_iteration_that_was_saved(tiny):
    run = lh.train("CartPole-v1", config=tiny())
    assert scores(run.directory) == {line["step"]: line["rollout/ep_rew_mean"] for line in lines(run.directory)}


def test_where_evaluations_run_scores_are_theirs(tiny):
    run = lh.train("CartPole-v1", config=tiny(eval_every=64, eval_episodes=2))
    found = scores(run.directory)
    assert found == {line["step"]: line.get("eval/mean_return") for line in lines(run.directory)}
    assert [step for step, score in found.items() if score is not None] == [64]
    assert checkpoint.best(run.directory).name == "step-000000000064"


def returning(*values):
    """Evaluations that come out so, one after another."""
    left = iter(values)
    return lambda *args: {"eval/mean_return": next(left)}


def test_the_best_one_outlives_a_resumption_and_is_never_taken_for_the_last(tiny, monkeypatch, outcome):
    config = tiny(total_steps=224, keep_checkpoints=2, eval_every=32)
    monkeypatch.setattr(api, "_score", returning(1.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    whole = lh.train("CartPole-v1", config=config)
    monkeypatch.setattr(api, "_score", returning(1.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    run = lh.train("CartPole-v1", config=replace(config, total_steps=128))
    assert steps(run.directory) == [64, 96, 128]
    assert lh.resume(run.directory, total_steps=224).step == 224
    assert steps(run.directory) == steps(whole.directory) == [64, 192, 224]
    assert outcome(run.directory) == outcome(whole.directory)
    assert checkpoint.best(run.directory).name == "step-000000000064"


def test_the_best_one_can_be_played_by_name(tiny):
    run = lh.train("CartPole-v1", config=tiny())
    best = checkpoint.best(run.directory)
    named, meant = (lh.load_policy(p) for p in (run.directory / "checkpoints/best", best))
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_array_equal(named.value(torch.tensor(x)), meant.value(torch.tensor(x)))
