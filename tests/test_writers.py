"""Where metrics go: JSON lines, TensorBoard, and the console."""

import io
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import levelhead as lh
from levelhead.trainer import Iteration
from levelhead.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter
from toys import Counting

PROMISED = {
    *(f"rollout/{name}" for name in ("ep_rew_mean", "ep_len_mean")),
    *(f"train/{name}" for name in ("approx_kl", "clip_fraction", "explained_variance", "value_loss")),
    *(f"train/{name}" for name in ("policy_gradient_loss", "entropy_loss", "learning_rate")),
    *(f"value/{name}" for name in ("mean", "std", "target_mean", "target_std", "preservation_error")),
    *(f"advantage/{name}" for name in ("mean", "std")),
    *(f"grad/{name}" for name in ("actor_norm", "critic_norm")),
    *(f"time/{name}" for name in ("fps", "collect", "learn")),
    "entropy/action",
}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def iteration(number, **metrics):
    return Iteration(number, 100 * number, 100, {"time/fps": 50.0, **metrics})


@pytest.fixture(scope="module")
def lines(finished):
    return lines_of(finished.directory / "metrics.jsonl")


# -- metrics.jsonl -----------------------------------------------------------------------------------------------


def test_every_iteration_has_a_line_with_step_and_iteration(lines):
    assert [(line["step"], line["iteration"]) for line in lines] == [(32, 1), (64, 2), (96, 3)]


def test_the_promised_metrics_are_there_under_their_names(lines):
    assert set(lines[-1]) >= PROMISED


def test_metrics_are_finite_numbers(lines):
    for line in lines:
        for name, value in line.items():
            assert type(value) in (int, float), name
            assert np.isfinite(value), name


def test_a_metric_without_a_value_is_left_out(tiny, workdir):
    run = lh.train(lambda: Counting(plan=((10**6, "t"),)), config=tiny())
    for line in lines_of(run.directory / "metrics.jsonl"):
        assert "rollout/ep_rew_mean" not in line
        assert "rollout/ep_len_mean" not in line
        assert {"train/value_loss", "value/std"} <= set(line)


def test_rates_and_times_of_an_iteration_agree(lines):
    for line in lines:
        assert line["time/fps"] * (line["time/collect"] + line["time/learn"]) == pytest.approx(32)


def test_what_a_learning_rate_does_is_logged_as_it_was_used(tiny, workdir, metrics):
    config = tiny(**{"optimizer.learning_rate": lh.Schedule(3e-4, 0.0)})
    directory = lh.train("CartPole-v1", config=config).directory
    rates = [line["train/learning_rate"] for line in metrics(directory)]
    assert rates == pytest.approx([3e-4, 2e-4, 1e-4])


def test_lines_are_readable_while_training_goes_on(tiny, workdir):
    seen = []

    class Reader(gym.Wrapper):
        def step(self, action):
            seen.append(len(lines_of(workdir / "run" / "metrics.jsonl")))
            return self.env.step(action)

    config = tiny(run_dir=workdir / "run", num_envs=1, num_steps=32)
    lh.train(lambda: Reader(gym.make("CartPole-v1")), config=config)
    assert seen == [0] * 32 + [1] * 32 + [2] * 32


@pytest.mark.parametrize("torn", ["", '{"step": 40', '{"step": 400, "iteration": 4}'])
def test_lines_after_the_resumed_iteration_and_a_torn_one_are_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": 100 * i, "iteration": i}) + "\n" for i in (1, 2, 3)) + torn)
    writer = JsonlWriter(path, iteration=2)
    assert [line["iteration"] for line in lines_of(path)] == [1, 2]
    writer.write(iteration(3, x=1.5))
    assert lines_of(path)[2:] == [{"step": 300, "iteration": 3, "time/fps": 50.0, "x": 1.5}]
    writer.close()


def test_nothing_but_finite_numbers_can_be_written(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError):
        writer.write(iteration(1, x=float("nan")))
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


# -- TensorBoard -------------------------------------------------------------------------------------------------


def scalars(directory):
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_holds_the_same_values_over_steps(finished, lines):
    expected = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "iteration"):
                expected.setdefault(name, []).append((line["step"], float(np.float32(value))))
    assert scalars(finished.directory / "tb") == expected


def test_tensorboard_shows_steps_that_a_resumed_run_takes_again_once(run_copy):
    shutil.rmtree(run_copy / "checkpoints" / "step-000000000096")
    lh.resume(run_copy, total_steps=128)
    assert [step for step, _ in scalars(run_copy / "tb")["value/mean"]] == [32, 64, 96, 128]


def test_tensorboard_is_complete_once_the_writer_is_closed(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    for i in range(1, 4):
        writer.write(iteration(i, x=i / 2))
    writer.close()
    assert scalars(tmp_path)["x"] == [(100, 0.5), (200, 1.0), (300, 1.5)]


# -- the console -------------------------------------------------------------------------------------------------


def shown(total_steps, iterations, **options):
    file = io.StringIO()
    writer = ConsoleWriter(total_steps, Console(file=file, **options))
    for it in iterations:
        writer.write(it)
    writer.close()
    return file.getvalue()


def test_without_a_terminal_there_are_plain_lines_one_per_tenth():
    text = shown(20_000, (iteration(i, **{"value/mean": 1.5}) for i in range(1, 201)), width=20)
    lines = text.splitlines()
    assert len(lines) == 10
    assert all(re.match(r"step \d+/20000  value mean 1.5  50 steps/s  left ", line) for line in lines)
    assert "\x1b" not in text
    assert "\r" not in text


def test_without_a_terminal_no_minute_passes_in_silence(monkeypatch):
    clock = itertools.count(0.0, 25.0)
    monkeypatch.setattr("levelhead.writers.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    lines = shown(10**9, map(iteration, range(1, 20)), width=20).splitlines()
    assert len(lines) >= 5


def test_training_into_a_file_writes_plain_lines(tiny, workdir):
    file = io.StringIO()
    lh.train("CartPole-v1", config=tiny(), console=Console(file=file))
    promise, engine, where, *lines = file.getvalue().splitlines()
    assert engine.startswith("environments one after another; actions and gradient steps by ")
    assert where.startswith("writing to runs/CartPole-v1/")
    assert promise.startswith("CartPole-v1, PopArtValueHead, cpu: rewards times any power of two")
    assert [line.split()[1] for line in lines] == ["32/96", "64/96", "96/96"]
    assert all("return" in line and "value std" in line and " left 0:" in line for line in lines)
    assert "\x1b" not in file.getvalue()


def test_without_a_console_nothing_is_shown(tiny, workdir, capfd):
    lh.train("CartPole-v1", config=tiny())
    assert capfd.readouterr() == ("", "")


def test_time_left_is_what_the_rate_makes_of_the_remaining_steps():
    assert shown(1000, [iteration(1)]).rstrip().endswith("50 steps/s  left 0:00:18")
    assert shown(360_100, [iteration(400)]).rstrip().endswith("left 1:46:42")
    assert shown(150, [iteration(2)]).rstrip().endswith("left 0:00:00")


def test_on_a_terminal_a_live_table_shows_progress_and_time_left():
    metrics = {"rollout/ep_rew_mean": 12.34, "value/std": 5.0}
    text = shown(1000, [iteration(1, **metrics)], force_terminal=True, width=100)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "100 of 1,000 steps" in plain
    assert "50 steps/s, 0:00:18 left" in plain
    assert re.search(r"return\s+value std", plain)
    assert re.search(r"12\.3\s+5\b", plain)


def test_a_table_keeps_the_last_value_of_a_metric_that_comes_now_and_then():
    text = shown(300, [iteration(1, **{"eval/mean_return": 7.0}), iteration(2), iteration(3)])
    assert all("eval 7.0" in line for line in text.splitlines())


def test_the_divergence_is_the_one_that_the_objective_reads_where_there_is_one():
    (line,) = shown(50, [iteration(1, **{"train/kl": 0.0081, "train/approx_kl": 0.0})]).splitlines()
    assert "kl 0.0081" in line
    assert line.count("kl") == 1
