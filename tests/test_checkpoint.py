"""Checkpoints: complete or absent, checked to the last bit, and free of code."""

import hashlib
import json
import os
import shutil

import pytest
import torch

import levelhead as lh
from levelhead import checkpoint

FILES = ("policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def content(step):
    x = torch.arange(6, dtype=torch.float64).reshape(2, 3) + step
    return {"policy": {"w": x, "count": torch.tensor(step)}, "optimizer": {"m": x.t().half()}}, {
        "progress": {"at": step}
    }


def save(run, step, marker=None):
    return checkpoint.save(run, step, *content(step if marker is None else marker))


def holds(path, step, marker=None):
    tensors, state = checkpoint.load(path)
    expected, progress = content(step if marker is None else marker)
    assert state == {"step": step, **progress}
    assert tensors.keys() == expected.keys()
    for name, group in expected.items():
        assert tensors[name].keys() == group.keys()
        assert all(torch.equal(tensors[name][k], x) and tensors[name][k].dtype == x.dtype for k, x in group.items())
    return True


@pytest.fixture
def run(tmp_path):
    save(tmp_path, 100)
    save(tmp_path, 200)
    return tmp_path


# -- what is in it -----------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was_saved(run):
    assert holds(run / "checkpoints/step-000000000100", 100)
    assert holds(run / "checkpoints/step-000000000200", 200)


def test_it_holds_safetensors_and_json_alone_and_the_manifest_their_hashes(finished):
    for path in checkpoint.checkpoints(finished.directory):
        assert {p.name for p in path.iterdir()} == {*FILES, "advantage.safetensors", "rewards.safetensors"}
        hashes = json.loads((path / "manifest.json").read_text())["sha256"]
        expected = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}
        assert hashes == {name: x for name, x in expected.items() if name != "manifest.json"}


def test_saving_a_step_again_leaves_the_one_there_as_it_is(run):
    before = {p.name: p.read_bytes() for p in (run / "checkpoints/step-000000000200").iterdir()}
    save(run, 200, marker=5)
    assert before == {p.name: p.read_bytes() for p in (run / "checkpoints/step-000000000200").iterdir()}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-000000000100", "step-000000000200"}


# -- crashes -----------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


def cut_power(monkeypatch, after):
    """Lets `after` operations on the file system happen, and none from then on; the list of those that did."""
    done = []

    def guard(module, name):
        original = getattr(module, name)

        def operation(*args, **kwargs):
            if len(done) >= after:
                raise PowerCut
            done.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, operation)

    for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
        guard(os, name)
    guard(shutil, "rmtree")
    return done


def operations_of_a_save(tmp_path, step):
    with pytest.MonkeyPatch.context() as patch:
        done = cut_power(patch, 10**6)
        save(tmp_path, step)
    return len(done)


def test_a_crash_at_any_moment_leaves_every_earlier_step_loadable(tmp_path):
    step = 300

    def fresh(name):
        run = tmp_path / name
        save(run, 100)
        save(run, 200)
        return run

    total = operations_of_a_save(fresh("whole"), step)
    assert total >= 7
    for after in range(total):
        run = fresh(str(after))
        with pytest.MonkeyPatch.context() as patch:
            cut_power(patch, after)
            with pytest.raises(PowerCut):
                save(run, step, marker=7)
        found = {p.name: p for p in checkpoint.checkpoints(run)}
        assert {"step-000000000100", "step-000000000200"} <= found.keys(), after
        for name, path in found.items():
            tensors, _ = checkpoint.load(path)
            assert int(tensors["policy"]["count"]) == (7 if str(step) in name else int(name.removeprefix("step-")))
        kept = 7 if f"step-{step:012d}" in found else 9
        save(run, step, marker=9)
        assert holds(run / f"checkpoints/step-{step:012d}", step, marker=kept)


def test_files_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    happened = []
    for name in ("fsync", "rename", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (happened.append(name), original(*a))[1])
    save(tmp_path, 100)
    named = next(i for i, name in enumerate(happened) if name != "fsync")
    assert happened[:named].count("fsync") >= len(FILES) + 1  # every file, and the directory that lists them
    assert "fsync" in happened[named:]


# -- which one a name means --------------------------------------------------------------------------------------


def test_a_run_means_its_last_checkpoint_and_a_checkpoint_itself(run):
    first, last = (run / f"checkpoints/step-{step:012d}" for step in (100, 200))
    assert checkpoint.resolve(run) == last
    assert checkpoint.resolve(first) == first
    assert checkpoint.checkpoints(run) == [first, last]


def test_a_checkpoint_without_its_manifest_is_not_passed_over(run):
    (run / "checkpoints/step-000000000200/manifest.json").unlink()
    with pytest.raises(lh.CheckpointError, match=r"step-000000000200/manifest\.json cannot be read"):
        checkpoint.load(checkpoint.resolve(run))


def test_a_directory_without_checkpoints_is_refused_by_name(tmp_path):
    with pytest.raises(lh.CheckpointError, match="neither a checkpoint nor a run directory with checkpoints"):
        checkpoint.resolve(tmp_path)


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (10**12, 999, 10**11):
        save(tmp_path, step)
    assert [int(p.name.removeprefix("step-")) for p in checkpoint.checkpoints(tmp_path)] == [999, 10**11, 10**12]
