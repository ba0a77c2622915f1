"""The run directory: its name, its config.json, and how a run is found."""

import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import levelhead as lh
from levelhead import files, rundir
from levelhead.serialize import from_json


def test_a_run_lies_under_its_environment_named_by_utc_time_and_seed(tiny, workdir):
    directory = rundir.create(tiny("Some/Env-v0", seed=7))
    assert directory.parent == Path("runs/Some_Env-v0")
    assert re.fullmatch(r"\d{8}T\d{6}Z-s7", directory.name)


def test_runs_that_begin_in_the_same_second_do_not_share_a_directory(tiny, workdir):
    directories = [rundir.create(tiny()) for _ in range(5)]
    assert len(set(directories)) == 5


@pytest.mark.parametrize("occupied", ["directory", "file"])
def test_an_occupied_run_dir_is_refused_and_left_alone(tiny, workdir, occupied):
    path = workdir / "mine"
    keep = path / "keep" if occupied == "directory" else path
    keep.parent.mkdir(exist_ok=True)
    keep.write_text("precious")
    with pytest.raises(lh.ConfigError, match=r"run_dir .*mine is not empty; accepted: a new or an empty directory"):
        lh.train("CartPole-v1", config=tiny(run_dir=path))
    assert keep.read_text() == "precious"
    assert sum(1 for p in workdir.rglob("*") if p.is_file()) == 1


@pytest.mark.parametrize("killed", [False, True])
def test_an_empty_run_dir_is_taken_and_so_is_one_whose_run_was_killed_as_it_began(tiny, workdir, killed):
    (workdir / "mine").mkdir()
    if killed:
        (workdir / "mine" / ".config.json.partial").write_text('{"config": {')
    assert rundir.create(tiny(run_dir=workdir / "mine")) == workdir / "mine"


def test_a_run_consists_of_config_metrics_tensorboard_and_checkpoints(finished):
    names = {p.name for p in finished.directory.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "tb", "checkpoints"}


def test_config_json_loads_as_the_config_of_the_run(finished):
    document = json.loads((finished.directory / "config.json").read_text())
    assert from_json(lh.Config, document["config"]) == finished.config
    info = rundir.read_info(finished.directory)
    env = gym.make("CartPole-v1")
    assert info == rundir.RunInfo(finished.config, env.observation_space, env.action_space, tasks=(), custom=())
    env.close()


def test_config_json_names_the_tasks_and_the_spaces_that_they_share(tiny, workdir, two_tasks):
    run = lh.train(two_tasks, config=tiny(two_tasks, total_steps=1))
    info = rundir.read_info(run.directory)
    assert info.tasks == ("Swing-v0", "Hill-v0")
    assert info.observation_space == gym.spaces.Box(-np.inf, np.inf, (5,))
    assert info.action_space == gym.spaces.Box(-1.0, 1.0, (1,))
    assert run.directory.parent == Path("runs/Swing-v0+Hill-v0")


def test_config_json_holds_versions(finished):
    versions = json.loads((finished.directory / "config.json").read_text())["versions"]
    for package in ("levelhead", "torch", "gymnasium"):
        assert versions[package] == importlib.metadata.version(package)


def test_config_json_holds_the_git_commit_if_there_is_one(tiny, workdir, monkeypatch):
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "someone@example.org")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workdir.parent))

    def commit():
        run = lh.train("CartPole-v1", config=tiny(total_steps=1))
        return json.loads((run.directory / "config.json").read_text())["git_commit"]

    assert commit() is None
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "--no-verify", "-m", "x"]):
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit() == head


SPACES = b'"observation_space":' + b'{"kind":"tuple","spaces":[' * 40 + b"]}" * 40
DAMAGE = {
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "another document": lambda data: b"[]",
    "not text": lambda data: b"\xff" + data,
    "unknown name": lambda data: data.replace(b'"total_steps"', b'"totl_steps"'),
    "missing space": lambda data: data.replace(b'"observation_space"', b'"observation"'),
    "unknown space": lambda data: data.replace(b'"kind": "box"', b'"kind": "bix"'),
    "bounds that miss the shape": lambda data: data.replace(b'"shape": [\n   4\n  ]', b'"shape": [\n   5\n  ]'),
    "unknown dtype": lambda data: data.replace(b'"float32"', b'"floot32"'),
    "wrong type": lambda data: data.replace(b'"custom": []', b'"custom": 3'),
    "wrong type of tasks": lambda data: data.replace(b'"tasks": []', b'"tasks": 3'),
    "missing tasks": lambda data: data.replace(b'"tasks": []', b'"taks": []'),
    "deep": lambda data: b'{"config":' * 100_000,
    "deep spaces": lambda data: data.replace(
        b'"observation_space": {',
        b'"observation_space":' + b'{"kind":"tuple","spaces":[' * 40 + b"]}" * 40 + b',"x":{',
    ),
    "larger than memory": lambda data: data + b" " * files.LIMIT,
    "a box larger than memory": lambda data: data.replace(b'"shape": [\n   4\n  ]', b'"shape": [1000000000000]'),
    "infinite": lambda data: data.replace(b'"reward_scale": 1.0', b'"reward_scale": 1e999'),
    "many digits": lambda data: data.replace(b'"seed": 1', b'"seed": ' + b"1" * 10_000),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_config_json_is_refused_by_name(run_copy, damage):
    path = run_copy / "config.json"
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    with pytest.raises(lh.ConfigError, match=r"config\.json"):
        lh.load_policy(run_copy)


def test_loading_a_policy_imports_nothing_that_config_json_names(run_copy, module):
    name = module("trap", "raise SystemExit('imported')")
    path = run_copy / "config.json"
    text = path.read_text().replace('"imports": []', f'"imports": ["{name}"]')
    path.write_text(text.replace('"env_id": "CartPole-v1"', f'"env_id": "{name}:CartPole-v1"'))
    assert lh.load_policy(run_copy)
    with pytest.raises(SystemExit, match="imported"):
        lh.resume(run_copy, total_steps=128)


def test_a_network_larger_than_any_memory_is_refused_by_name(run_copy):
    path = run_copy / "config.json"
    document = json.loads(path.read_text())
    document["config"]["network"]["actor"] = [10**15]
    path.write_text(json.dumps(document))
    for open_run in (lh.load_policy, lambda run: lh.resume(run, total_steps=128)):
        with pytest.raises(lh.CheckpointError, match="step-000000000096 doesn't fit the run that its config describes"):
            open_run(run_copy)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_config_json_that_is_no_file_of_its_own_is_refused_by_name_without_waiting(run_copy, tmp_path, kind):
    path = run_copy / "config.json"
    outside = path.rename(tmp_path / "outside")
    path.symlink_to(outside) if kind == "link" else os.mkfifo(path)
    with pytest.raises(lh.ConfigError, match=r"config\.json cannot be read \((a symbolic link|not a regular file)\)"):
        lh.load_policy(run_copy)


@pytest.mark.parametrize("kind", ["link", "pipe", "deep"])
def test_hostile_metrics_are_refused_by_name_when_a_run_is_resumed(run_copy, tmp_path, kind):
    path = run_copy / "metrics.jsonl"
    outside = path.rename(tmp_path / "outside")
    match kind:
        case "link":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "deep":
            path.write_text("[" * 200_000 + "\n")
    with pytest.raises(lh.CheckpointError, match=r"metrics\.jsonl (cannot be read|is damaged in line 1)"):
        lh.resume(run_copy, total_steps=128)
    assert rundir.last_metrics(run_copy) == {}
    assert rundir.read_info(run_copy).config.total_steps == 96


def test_the_last_metrics_of_a_long_file_are_found_at_its_end(tmp_path):
    line = b'{"step": 1, "iteration": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line * (files.LIMIT // len(line) + 10) + b'{"step": 7}\n{"torn')
    assert rundir.last_metrics(tmp_path) == {"step": 7}


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(lh.ConfigError, match=r"is not a run directory: config\.json"):
        rundir.read_info(tmp_path)
    with pytest.raises(
        lh.ConfigError, match=r"nowhere doesn't exist; accepted: a run directory, a checkpoint.*'latest'"
    ):
        rundir.find(tmp_path / "nowhere")


def test_latest_is_the_run_that_was_last_begun_or_resumed(tiny, workdir):
    with pytest.raises(lh.ConfigError, match="there is no run under"):
        rundir.find("latest")
    first, second = (lh.train("CartPole-v1", config=tiny(total_steps=32, seed=s)).directory for s in (1, 2))
    os.utime(first / "config.json", (1, 1))
    assert rundir.find("latest") == second
    lh.resume(first, total_steps=64)
    assert rundir.find("latest") == first
    assert set(rundir.all_runs()) == {first, second}


def test_config_json_is_replaced_whole_when_a_run_is_resumed(run_copy):
    with (run_copy / "config.json").open() as before:
        lh.resume(run_copy, total_steps=128)
        # Whoever opened the file before still reads all of it: at no time was it half-written under its name.
        assert json.loads(before.read())["config"]["total_steps"] == 96
    assert rundir.read_info(run_copy).config.total_steps == 128
