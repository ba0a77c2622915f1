"""Files that nobody vouches for, and disks that may be full."""

import errno
import json
import math
import os
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from levelhead.errors import StorageError

LIMIT = 1 << 23
"""Bytes of JSON that are read at once, at most: nothing that levelhead writes comes near."""
DIGITS = 100
"""Of a whole number in JSON, at most."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, and never waits for one: no pipe or device, and no link to elsewhere.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a symbolic link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path) -> bytes:
    """All of a file of JSON.

    Raises:
        OSError: it cannot be read, is no regular file, or larger than `LIMIT`.
    """
    with open_regular(path) as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise OSError(errno.EFBIG, f"larger than {LIMIT:,} bytes", str(path))
    return data


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is none, nests deeper than Python can follow, or holds a number out of range.
    """
    try:
        value = json.loads(data, parse_float=_real, parse_int=_whole, parse_constant=_out_of_range)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _real(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _out_of_range(text)


def _whole(text: str) -> int:
    return int(text) if len(text) <= DIGITS else _out_of_range(text)


def _out_of_range(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:20]} is out of range")


def write_synced(path: Path, pieces: Iterable[bytes]) -> None:
    """A new file, on the disk when this returns."""
    with path.open("xb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Has the disk hold what a directory lists."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storing(path: Path) -> Generator[None]:
    """Around writing: an error of the system becomes one that names the path.

    Raises:
        StorageError: on a full disk, say.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def replace(path: Path, pieces: Iterable[bytes]) -> None:
    """Gives a file new content, all of it or none.

    Raises:
        StorageError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with storing(path):
        partial.unlink(missing_ok=True)  # which may be a link to elsewhere
        try:
            write_synced(partial, pieces)
            partial.replace(path)
            sync_directory(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


class Appended:
    """A file that grows by whole pieces: of one that doesn't fit, nothing stays.

    Raises:
        StorageError: (in every method) it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storing(path):
            self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Appends a piece, and leaves none of it to a buffer."""
        size = os.fstat(self._file.fileno()).st_size
        with storing(self.path):
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                self._file.truncate(size)
                raise

    def close(self) -> None:
        with storing(self.path):
            self._file.close()
