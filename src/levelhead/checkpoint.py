"""Checkpoints: a directory that is complete or absent, tensors in safetensors, the rest in JSON, all under SHA-256."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from levelhead.errors import CheckpointError

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Writes `run/checkpoints/step-<12 digits>`, atomically: under a temporary name, synced, then renamed.

    Args:
        run: the run directory.
        step: environment steps so far.
        tensors: by file; each becomes `<name>.safetensors`.
        state: JSON values.

    Returns:
        The checkpoint's directory. One of the same step that is already there stays as it is: a run is at one state at
        a step, and a moment without the old one and the new one would be a moment to lose both.
    """
    final = run / "checkpoints" / f"step-{step:012d}"
    if final.exists():
        return final
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {
        f"{name}.safetensors": safetensors.torch.save({k: x.detach().cpu().contiguous() for k, x in group.items()})
        for name, group in tensors.items()
    }
    files[STATE] = _encode({"step": step, **state})
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files[MANIFEST] = _encode({"format": FORMAT, "sha256": hashes})
    for name, data in files.items():
        _write_synced(partial / name, data)
    _sync_directory(partial)
    partial.rename(final)
    _sync_directory(final.parent)
    return final


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file, and the state, of a checkpoint directory, every file checked against the manifest first.

    Raises:
        CheckpointError: something is missing, damaged or unknown. Names the file, and the checkpoint before this one.
    """
    try:
        manifest = _decode(path / MANIFEST, _read(path / MANIFEST))
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{path / MANIFEST} has format {manifest.get('format')!r}; this version reads {FORMAT}"
            )
        hashes = manifest.get("sha256")
        if not isinstance(hashes, dict) or STATE not in hashes:
            raise CheckpointError(f"{path / MANIFEST} lists no {STATE}: damaged")
        files: dict[str, bytes] = {}
        for name, expected in hashes.items():
            if Path(name).name != name:
                raise CheckpointError(f"{path / MANIFEST} names a file outside its directory: {name}")
            files[name] = _read(path / name)
            if hashlib.sha256(files[name]).hexdigest() != expected:
                raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the one in {MANIFEST}")
        state = _decode(path / STATE, files.pop(STATE))
        if not isinstance(state.get("step"), int):
            raise CheckpointError(f"{path / STATE} is damaged: it lacks the step")
        tensors = {name.removesuffix(".safetensors"): _tensors(path / name, data) for name, data in files.items()}
    except CheckpointError as error:
        before = [p for p in checkpoints(path.parent.parent) if p.name < path.name]
        offer = f". The one before it: {before[-1]}" if before else ""
        raise CheckpointError(f"{error}{offer}") from error
    return tensors, state


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def resolve(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the last one of a run directory.

    Raises:
        CheckpointError: there is none.
    """
    path = path.absolute()
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
            later.rename(set_aside)


def _encode(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _decode(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: not a JSON object")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
