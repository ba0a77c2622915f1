"""Checkpoints: a directory that is complete or absent, tensors in safetensors, the rest in JSON, all under SHA-256."""

import hashlib
import json
import re
import reprlib
import shutil
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from levelhead.errors import CheckpointError
from levelhead.files import LIMIT, open_regular, parse, read_small, storing, sync_directory, write_synced

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
BEST = "best"
"""The name under `checkpoints/` that means the best one."""
CHUNK = 1 << 20
"""Bytes that are hashed at once."""


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Writes `run/checkpoints/step-<12 digits>`, atomically: under a temporary name, synced, then renamed.

    Args:
        run: the run directory.
        step: environment steps so far.
        tensors: by file; each becomes `<name>.safetensors`.
        state: JSON values; `score`, if there is one, decides which checkpoint is the best.

    Returns:
        The checkpoint's directory. One of the same step that is already there stays as it is: a run is at one state at
        a step, and a moment without the old one and the new one would be a moment to lose both.

    Raises:
        StorageError: it cannot be written, as on a full disk; nothing of it is left, and all others are as they were.
    """
    final = run / "checkpoints" / f"step-{step:012d}"
    for unfinished in final.parent.glob(".step-*"):  # saved or deleted by half, when a process was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    if final.exists():
        return final
    files = {
        f"{name}.safetensors": safetensors.torch.save({k: x.detach().cpu().contiguous() for k, x in group.items()})
        for name, group in tensors.items()
    }
    files[STATE] = _encode({"step": step, **state})
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files[MANIFEST] = _encode({"format": FORMAT, "sha256": hashes})
    partial = final.with_name(f".{final.name}.partial")
    with storing(final):
        try:
            _write(partial, files)
            partial.rename(final)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_directory(final.parent)
    return final


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file, and the state, of a checkpoint directory, every file checked against the manifest first.

    Whatever the files hold, none of it is run, and no more is held in memory than tensors and `LIMIT` bytes of JSON.

    Raises:
        CheckpointError: something is missing, damaged or unknown. Names the file, and the checkpoint before this one.
    """
    try:
        hashes = _hashes(path)
        state = _state(path, hashes)
        names = [name for name in hashes if name != STATE]
        return {name.removesuffix(".safetensors"): _tensors(path / name, hashes) for name in names}, state
    except CheckpointError as error:
        before = [p for p in checkpoints(path.parent.parent) if p.name < path.name]
        offer = f". The one before it: {before[-1]}" if before else ""
        raise CheckpointError(f"{error}{offer}") from error


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def best(run: Path) -> Path | None:
    """The checkpoint with the highest score, the latest of several; None where none has one.

    Raises:
        CheckpointError: what one says of its score is damaged, so that it might be the best.
    """
    scores = {path: _state(path, _hashes(path)).get("score") for path in checkpoints(run)}
    return max(
        (path for path, score in scores.items() if score is not None), key=lambda p: (scores[p], p), default=None
    )


def prune(run: Path, last: int) -> None:
    """Deletes all checkpoints but the last so many and the best one. Where that is in doubt, all stay, with a warning.

    Raises:
        StorageError: the directory cannot be changed.
    """
    every = checkpoints(run)
    try:
        kept = {*every[-last:], best(run)}
    except CheckpointError as error:
        warnings.warn(f"no checkpoint is deleted: {error}", stacklevel=2)
        return
    for path in every:
        if path not in kept:
            deleted = path.with_name(f".{path.name}.deleted")
            with storing(path):
                path.rename(deleted)  # what is killed from here on is no half a checkpoint
                sync_directory(path.parent)
            shutil.rmtree(deleted, ignore_errors=True)


def resolve(path: Path) -> Path:
    """The checkpoint that `path` means: itself, the last one of a run directory, or its best, `checkpoints/best`.

    Raises:
        CheckpointError: there is none.
    """
    path = path.absolute()
    if path.parent.name == "checkpoints" and path.name == BEST:
        if (found := best(path.parent.parent)) is None:
            raise CheckpointError(f"{path} is unknown: no checkpoint there was saved with a score")
        return found
    named_as_one = path.parent.name == "checkpoints" and path.name.startswith("step-")
    if named_as_one or (path / MANIFEST).exists():
        return path
    found = checkpoints(path.parent if path.name == "checkpoints" and not (path / "checkpoints").exists() else path)
    if not found:
        raise CheckpointError(
            f"{path} is neither a checkpoint nor a run directory with checkpoints;"
            " a run that ended before its first one starts anew"
        )
    return found[-1]


def supersede(path: Path) -> None:
    """Makes a checkpoint the last one of its run: later ones are renamed to `superseded-...` and no longer counted."""
    for later in checkpoints(path.parent.parent):
        if later.name > path.name:
            set_aside = later.with_name(f"superseded-{later.name}")
            shutil.rmtree(set_aside, ignore_errors=True)
            with storing(later):
                later.rename(set_aside)


def _encode(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 by file name, as the manifest of a checkpoint lists them."""
    with _naming(path / MANIFEST):
        manifest = parse(read_small(path / MANIFEST))
    if manifest.get("format") != FORMAT:
        found = reprlib.repr(manifest.get("format"))
        raise CheckpointError(f"{path / MANIFEST} has format {found}; this version reads {FORMAT}")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or STATE not in hashes:
        raise CheckpointError(f"{path / MANIFEST} lists no {STATE}: damaged")
    for name in hashes:
        if name != STATE and not re.fullmatch(r"\w+\.safetensors", name):
            raise CheckpointError(
                f"{path / MANIFEST} names a file outside its directory, or of another kind: {reprlib.repr(name)}"
            )
    return hashes


def _state(path: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What `state.json` of a checkpoint says, checked against the manifest."""
    with _naming(path / STATE):
        data = read_small(path / STATE)
        _require_hash(path / STATE, hashlib.sha256(data), hashes)
        state = parse(data)
        if not isinstance(state.get("step"), int):
            raise ValueError("it lacks the step")
        if not isinstance(state.get("score"), float | int | None):
            raise ValueError("its score is no number")
    return state


def _tensors(path: Path, hashes: Mapping[str, str]) -> dict[str, Tensor]:
    with _naming(path):
        sha = hashlib.sha256()
        with open_regular(path) as file:
            header = int.from_bytes(file.read(8), "little")
            file.seek(0)
            while chunk := file.read(CHUNK):
                sha.update(chunk)
        _require_hash(path, sha, hashes)
        if header > LIMIT:
            raise ValueError(f"a header of {header:,} bytes")
        return safetensors.torch.load_file(path)


def _require_hash(path: Path, found: "hashlib._Hash", hashes: Mapping[str, str]) -> None:
    if found.hexdigest() != hashes[path.name]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """Around reading: errors become one that names the file."""
    try:
        yield
    except OSError as error:
        listed = "" if path.name == MANIFEST else f" ({MANIFEST} lists it)"
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}{listed}") from error
    except (KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    """A new directory with these files, on the disk when this returns."""
    directory.mkdir(parents=True)
    for name, data in files.items():
        write_synced(directory / name, [data])
    sync_directory(directory)
