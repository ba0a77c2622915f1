"""The run directory: what is in it, and how to find one."""

import fcntl
import json
import os
import platform
import subprocess
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym

from levelhead import checkpoint, files, spaces
from levelhead.config import Config
from levelhead.errors import ConfigError
from levelhead.serialize import from_json, to_json

ROOT = Path("runs")
CONFIG = "config.json"
PARTIAL = f".{CONFIG}.partial"
"""All that there is where a run was killed at the moment at which it began."""
METRICS = "metrics.jsonl"
HANDOVER = 20
"""Tenths of a second that a process which was killed may take to be gone."""


@dataclass(frozen=True)
class RunInfo:
    """What `config.json` says of a run."""

    config: Config
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    tasks: tuple[str, ...]
    """Names of the tasks that the environments play; empty where there is one alone."""
    custom: tuple[str, ...]
    """Parts that were handed over as objects, which no config can rebuild: some of `env`, `network`, `value`,
    `action_head`, `objective`."""
    launch: str | None = None
    """What `torchrun` call the run was started by."""


def create(config: Config) -> Path:
    """A new, empty run directory.

    Raises:
        ConfigError: the one that the config names holds something already, or cannot be made.
    """
    try:
        return _create(config)
    except OSError as error:
        raise ConfigError(f"run directory {config.run_dir or ROOT} cannot be made: {error.strerror}") from error


def _create(config: Config) -> Path:
    if config.run_dir is not None:
        path = config.run_dir
        if path.exists() and (not path.is_dir() or any(found.name != PARTIAL for found in path.iterdir())):
            raise ConfigError(f"run_dir {config.run_dir} is not empty; accepted: a new or an empty directory")
        config.run_dir.mkdir(parents=True, exist_ok=True)
        return config.run_dir
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-s{config.seed}"
    parent = ROOT / config.env_id.replace("/", "_")
    for attempt in range(1000):
        path = parent / (f"{stem}-{attempt}" if attempt else stem)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise ConfigError(f"no free name for a run in {parent}")


def of_launch(config: Config, launch: str | None) -> Path | None:
    """The run directory that an earlier attempt of the same `torchrun` call has begun; None where there is none."""
    parent = ROOT / config.env_id.replace("/", "_")
    candidates = sorted(parent.glob(f"*/{CONFIG}")) if config.run_dir is None else [config.run_dir / CONFIG]
    for path in reversed(candidates):
        try:
            if launch is not None and files.parse(files.read_small(path))["launch"] == launch:
                return path.parent
        except (OSError, ValueError, KeyError, TypeError):  # none of ours
            continue
    return None


def hold(directory: Path) -> int:
    """A descriptor that keeps other processes from writing to a run for as long as it is open.

    Raises:
        ConfigError: another one has it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    patience = HANDOVER
    while not _locked(descriptor):
        if not patience:
            os.close(descriptor)
            raise ConfigError(f"{directory} is being written to by another training")
        patience -= 1
        time.sleep(0.1)
    return descriptor


def _locked(descriptor: int) -> bool:
    """Whether it is locked by now; as good as, on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def let_go(descriptor: int) -> None:
    """Lets others have it, processes that were forked meanwhile notwithstanding."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def set_aside(source: Path) -> None:
    """Makes a checkpoint the last one of its run. What came after it is kept under other names, and a warning says so.

    Raises:
        StorageError: it cannot be kept.
    """
    directory = source.parent.parent
    later = [other for other in checkpoint.checkpoints(directory) if other.name > source.name]
    if not later:
        return
    metrics = directory / METRICS
    kept = metrics.with_name(f"superseded-{later[-1].name}-{METRICS}")
    files.replace(kept, [metrics.read_bytes()] if metrics.exists() else [])
    checkpoint.supersede(source)
    warnings.warn(
        f"going on from {source.name}: {len(later)} later checkpoint{'s' * (len(later) > 1)} of {directory}"
        f" {'are' if len(later) > 1 else 'is'} called superseded-... now, and metrics as they were {kept.name}",
        stacklevel=2,
    )


def write_info(directory: Path, info: RunInfo) -> None:
    """Writes `config.json`, with the versions that the run was made with.

    Raises:
        StorageError: it cannot be written.
    """
    document = {
        "config": to_json(info.config),
        "observation_space": spaces.to_json(info.observation_space),
        "action_space": spaces.to_json(info.action_space),
        "tasks": list(info.tasks),
        "custom": list(info.custom),
        "launch": info.launch,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("levelhead", "torch", "gymnasium", "numpy")},
        },
        "git_commit": _git_commit(),
    }
    files.replace(directory / CONFIG, [json.dumps(document, indent=1, allow_nan=False).encode(), b"\n"])


def read_info(directory: Path) -> RunInfo:
    """What `config.json` says.

    Raises:
        ConfigError: the directory is no run, or the file is damaged.
    """
    path = directory / CONFIG
    try:
        document = files.parse(files.read_small(path))
        return RunInfo(
            from_json(Config, document["config"], str(path)),
            spaces.from_json(document["observation_space"]),
            spaces.from_json(document["action_space"]),
            tuple(document["tasks"]),
            tuple(document["custom"]),
            document.get("launch"),
        )
    except OSError as error:
        raise ConfigError(f"{directory} is not a run directory: {CONFIG} cannot be read ({error.strerror})") from error
    except ConfigError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}") from error


def all_runs() -> list[Path]:
    """Every run under `runs/`, the newest last."""
    return [p.parent for p in sorted(ROOT.glob(f"**/{CONFIG}"), key=lambda p: p.lstat().st_mtime_ns)]


def last_metrics(directory: Path) -> dict[str, Any]:
    """The last whole line of `metrics.jsonl`; empty where there is none."""
    try:
        with files.open_regular(directory / METRICS) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - files.LIMIT))
            lines = file.read(files.LIMIT).splitlines()
    except OSError:  # none yet; and that something is amiss with it, `resume` says
        return {}
    for line in reversed(lines):
        try:
            return files.parse(line)
        except ValueError:  # torn, or damaged
            continue
    return {}


def find(name: str | Path) -> Path:
    """The run directory that `name` means: a path, or `latest`, the newest that has a checkpoint.

    Raises:
        ConfigError: there is none.
    """
    if str(name) != "latest":
        path = Path(name)
        if not (path.parent if path.name == checkpoint.BEST else path).exists():
            raise ConfigError(f"{path} doesn't exist; accepted: a run directory, a checkpoint in one, or 'latest'")
        return path
    saved = [run for run in all_runs() if any((run / "checkpoints").glob("step-*"))]
    if not saved:
        raise ConfigError(f"there is no run under {ROOT.resolve()} that has a checkpoint")
    return saved[-1]


def _git_commit() -> str | None:
    """The commit of the working directory's repository, if it is one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
