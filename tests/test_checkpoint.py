"""Checkpoints: complete or absent, checked to the last bit, and free of code."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import suppress

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


def save(run, step, marker=None, **more):
    tensors, state = content(step if marker is None else marker)
    return checkpoint.save(run, step, tensors, {**state, **more})


def holds(path, step, marker=None, **more):
    tensors, state = checkpoint.load(path)
    expected, progress = content(step if marker is None else marker)
    assert state == {"step": step, **progress, **more}
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


# -- full disks --------------------------------------------------------------------------------------------------


def tree(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["mkdir", "fsync", "rename"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_cannot_be_written_is_named_and_leaves_all_as_it_was(run, monkeypatch, name, reason):
    def fail(*args, **kwargs):
        raise OSError(reason, os.strerror(reason))

    before = tree(run)
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(lh.StorageError, match=rf"step-000000000300 cannot be written: {os.strerror(reason)}$"):
        save(run, 300)
    assert tree(run) == before
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-000000000100", "step-000000000200"}
    monkeypatch.undo()
    assert holds(save(run, 300), 300)


def test_a_file_that_may_not_grow_so_large_leaves_all_as_it_was(run, no_room):
    before = tree(run)
    with no_room(10_000), pytest.raises(lh.StorageError, match=r"step-000000000300 cannot be written: File too large"):
        checkpoint.save(run, 300, {"policy": {"w": torch.zeros(10_000)}}, {})
    assert tree(run) == before
    assert len(list((run / "checkpoints").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_disk_that_is_really_full_leaves_all_as_it_was(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(mounted.stderr)
    try:
        save(disk, 100)
        before = tree(disk)
        with pytest.raises(lh.StorageError, match="step-000000000300 cannot be written: No space left on device"):
            checkpoint.save(disk, 300, {"policy": {"w": torch.zeros(100_000)}}, {})
        assert tree(disk) == before
        assert holds(save(disk, 200), 200)
    finally:
        subprocess.run(["umount", disk], check=True)


# -- how many stay -----------------------------------------------------------------------------------------------


def scored(run, scores):
    """Checkpoints of steps 100, 200, ... with these scores."""
    for i, score in enumerate(scores, start=1):
        save(run, 100 * i, score=score)


def steps(run):
    return [int(p.name.removeprefix("step-")) for p in checkpoint.checkpoints(run)]


def all_hold(run, scores):
    for path, step in zip(checkpoint.checkpoints(run), steps(run), strict=True):
        assert holds(path, step, score=scores[step // 100 - 1])


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((1.0, 9.0, 2.0, 3.0, 4.0), [200, 400, 500]),
        ((1.0, 2.0, 3.0, 4.0, 9.0), [400, 500]),
        ((9.0, 9.0, 1.0, 2.0, 3.0), [200, 400, 500]),
        ((-9.0, None, -3, -5.0, None), [300, 400, 500]),
        ((None,) * 5, [400, 500]),
        ((1.0, 0.0), [100, 200]),
    ],
)
def test_the_last_ones_and_the_best_stay(tmp_path, scores, kept):
    scored(tmp_path, scores)
    checkpoint.prune(tmp_path, 2)
    assert steps(tmp_path) == kept
    all_hold(tmp_path, scores)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {f"step-{s:012d}" for s in kept}


def test_the_best_one_has_a_name_and_is_not_taken_for_the_last(tmp_path):
    scored(tmp_path, (1.0, 9.0, 2.0))
    assert checkpoint.resolve(tmp_path / "checkpoints/best") == tmp_path / "checkpoints/step-000000000200"
    assert checkpoint.resolve(tmp_path) == tmp_path / "checkpoints/step-000000000300"


def test_without_scores_no_checkpoint_is_the_best(run):
    with pytest.raises(lh.CheckpointError, match=r"checkpoints/best is unknown: no checkpoint there .* score"):
        checkpoint.resolve(run / "checkpoints/best")


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_where_the_best_is_in_doubt_nothing_is_deleted_and_none_is_called_so(tmp_path, name):
    scored(tmp_path, (1.0, 9.0, 2.0, 3.0, 4.0))
    path = tmp_path / "checkpoints/step-000000000100" / name
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(lh.CheckpointError, match=rf"step-000000000100/{name}"):
        checkpoint.resolve(tmp_path / "checkpoints/best")
    with pytest.warns(UserWarning, match=rf"no checkpoint is deleted: .*step-000000000100/{name}"):
        checkpoint.prune(tmp_path, 2)
    assert steps(tmp_path) == [100, 200, 300, 400, 500]


def test_a_crash_while_old_ones_are_deleted_leaves_whole_ones_alone(tmp_path):
    scores, kept = (1.0, 9.0, 2.0, 3.0, 4.0), {200, 400, 500}

    def fresh(name):
        scored(tmp_path / name, scores)
        return tmp_path / name

    whole = fresh("whole")
    with pytest.MonkeyPatch.context() as patch:
        done = cut_power(patch, 10**6)
        checkpoint.prune(whole, 2)
    assert len(done) >= 6
    for after in range(len(done)):
        run = fresh(str(after))
        with pytest.MonkeyPatch.context() as patch:
            cut_power(patch, after)
            with suppress(PowerCut):
                checkpoint.prune(run, 2)
        assert kept <= set(steps(run)), after
        all_hold(run, scores)
        save(run, 600, score=0.0)
        assert not list((run / "checkpoints").glob(".*")), after


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
