"""Damaged and hostile checkpoints are refused by name, and no code in them runs."""

import hashlib
import json
import os
import pickle
import random
import shutil
import tracemalloc
import zipfile

import pytest
import torch

import levelhead as lh
from levelhead import checkpoint, files

FILES = ("policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.fixture
def run(tmp_path):
    """A run directory with checkpoints of steps 100 and 200."""
    for step in (100, 200):
        tensors = {"policy": {"w": torch.full((2, 3), step)}, "optimizer": {"m": torch.full((4,), step / 7)}}
        checkpoint.save(tmp_path, step, tensors, {"progress": {"at": step}})
    return tmp_path


def reseal(path):
    """Makes the manifest agree with the files again, as someone would who tampers on purpose."""
    names = [p.name for p in path.iterdir() if p.name != "manifest.json"]
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "sha256": hashes}))


def refused(path, name):
    with pytest.raises(lh.CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path / name) in message
    assert message.endswith(f"The one before it: {path.with_name('step-000000000100')}")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_and_the_checkpoint_before_offered(run, name):
    path = run / "checkpoints/step-000000000200"
    data = (path / name).read_bytes()
    bits = range(8 * len(data))
    for bit in bits if name == "manifest.json" else random.Random(0).sample(bits, 200):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(damaged)
        with pytest.raises(lh.CheckpointError, match=r"step-000000000200.*The one before it: .*step-000000000100$"):
            checkpoint.load(path)
    if name != "manifest.json":
        refused(path, name)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_by_name(run, name):
    path = run / "checkpoints/step-000000000200"
    data = (path / name).read_bytes()
    for length in (0, 1, len(data) // 3, len(data) - 1):
        (path / name).write_bytes(data[:length])
        refused(path, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(run, name):
    (run / "checkpoints/step-000000000200" / name).unlink()
    refused(run / "checkpoints/step-000000000200", name)


def test_without_an_earlier_checkpoint_none_is_offered(run):
    path = run / "checkpoints/step-000000000100"
    (path / "state.json").unlink()
    with pytest.raises(lh.CheckpointError) as caught:
        checkpoint.load(path)
    assert "before it" not in str(caught.value)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"format": 2, "sha256": {}}, "has format 2; this version reads 1"),
        ({"sha256": {}}, "has format None"),
        ([], "not a JSON object"),
        ({"format": 1}, r"lists no state\.json"),
        ({"format": 1, "sha256": ["state.json"]}, r"lists no state\.json"),
        *(
            ({"format": 1, "sha256": {"state.json": "0", name: "0"}}, r"state\.json|outside its directory")
            for name in ("../x.safetensors", "/etc/passwd", "..", "a/b.safetensors", "\x00", "")
        ),
    ],
)
def test_an_unknown_or_hostile_manifest_is_refused(run, manifest, message):
    path = run / "checkpoints/step-000000000200"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(lh.CheckpointError, match=message):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/{}/outside.safetensors", "sub/outside.safetensors"])
def test_no_file_outside_the_checkpoint_is_read(run, name):
    path = run / "checkpoints/step-000000000200"
    name = name.format(str(path.parent).lstrip("/"))
    for place in (path.parent, path / "sub"):
        place.mkdir(exist_ok=True)
        shutil.copy(path / "policy.safetensors", place / "outside.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"][name] = manifest["sha256"]["policy.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(lh.CheckpointError, match="names a file outside its directory"):
        checkpoint.load(path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("make", ["pickle", "torch", "zip", "pt2"])
def test_a_file_that_could_run_code_is_refused_and_does_not_run(run, tmp_path, make):
    path, trace = run / "checkpoints/step-000000000200", tmp_path / "executed"
    target = path / "policy.safetensors"
    match make:
        case "pickle":
            target.write_bytes(pickle.dumps(Payload(str(trace))))
        case "torch":
            torch.save({"w": Payload(str(trace))}, target)
        case "zip":
            with zipfile.ZipFile(target, "w") as file:
                file.writestr("archive/data.pkl", pickle.dumps(Payload(str(trace))))
        case "pt2":
            with zipfile.ZipFile(target, "w") as file:
                file.writestr("archive/archive_format", "pt2")
                file.writestr("archive/data/constants/x.pt", pickle.dumps(Payload(str(trace))))
    reseal(path)
    refused(path, "policy.safetensors")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["policy.pt2", "policy.pt", "policy.pkl", "policy.safetensors.py", "policy"])
def test_a_manifest_that_names_a_file_of_another_kind_is_refused_before_that_is_opened(run, tmp_path, name):
    path, trace = run / "checkpoints/step-000000000200", tmp_path / "executed"
    torch.save({"w": Payload(str(trace))}, path / name)
    reseal(path)
    refused(path, "manifest.json")
    assert not trace.exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_file_of_its_own_is_refused_by_name_without_waiting(run, tmp_path, name, kind):
    path = run / "checkpoints/step-000000000200"
    outside = (path / name).rename(tmp_path / "outside")
    match kind:
        case "link":
            (path / name).symlink_to(outside)  # whose content is that of the manifest
        case "pipe":
            os.mkfifo(path / name)
        case "directory":
            (path / name).mkdir()
    refused(path, name)


HEADERS = {
    "longer than any file": (1 << 63).to_bytes(8, "little"),
    "longer than is read": (files.LIMIT + 1).to_bytes(8, "little") + b"{}",
    "longer than the file": (100_000).to_bytes(8, "little") + b"{}",
    "deep": (200_000).to_bytes(8, "little") + b'{"a":' * 40_000,
    "no header": b"",
    "a tensor beyond the end": (72).to_bytes(8, "little")
    + b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'[:72].ljust(72),
    "an unknown type": (64).to_bytes(8, "little")
    + b'{"w":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}'.ljust(64)
    + bytes(4),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_is_refused_by_name(run, data):
    path = run / "checkpoints/step-000000000200"
    (path / "policy.safetensors").write_bytes(data)
    reseal(path)
    refused(path, "policy.safetensors")


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"step": 1e999}', '{"step": ' + "9" * 100_000 + "}", '{"format": "' + "x" * 100_000 + '"}', "{}"],
    ids=["deep", "infinite", "many digits", "long", "empty"],
)
def test_hostile_json_is_refused_by_name_in_few_words(run, name, text):
    path = run / "checkpoints/step-000000000200"
    (path / name).write_text(text)
    if name == "state.json":
        reseal(path)
    refused(path, name)
    with pytest.raises(lh.CheckpointError) as caught:
        checkpoint.load(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_json_of_a_size_that_memory_has_no_room_for_is_not_read(run, name):
    path = run / "checkpoints/step-000000000200"
    os.truncate(path / name, 1 << 42)
    refused(path, name)


def test_tensors_are_checked_piece_by_piece(run):
    """A file much larger than the memory that reading it may take."""
    path = run / "checkpoints/step-000000000200"
    os.truncate(path / "policy.safetensors", 256 << 20)
    tracemalloc.start()
    refused(path, "policy.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("missing", ["policy.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_that_lacks_a_part_is_refused(run_copy, missing):
    last = checkpoint.checkpoints(run_copy)[-1]
    (last / missing).unlink()
    reseal(last)
    with pytest.raises(lh.CheckpointError, match=missing.removesuffix(".safetensors")):
        lh.resume(run_copy, total_steps=128)


@pytest.mark.parametrize("missing", ["step", "progress"])
def test_a_state_that_lacks_an_entry_is_refused(run_copy, missing):
    last = checkpoint.checkpoints(run_copy)[-1]
    state = json.loads((last / "state.json").read_text())
    del state[missing]
    (last / "state.json").write_text(json.dumps(state))
    reseal(last)
    with pytest.raises(lh.CheckpointError, match=missing):
        lh.resume(run_copy, total_steps=128)
