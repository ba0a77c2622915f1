"""Dataclasses as JSON and back, strictly: an unknown name or a wrong type is an error that names it."""

import dataclasses
import difflib
import functools
import json
import types
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from levelhead.errors import ConfigError
from levelhead.schedules import Schedule, schedule

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A config, or any part of one, as JSON values; schedules become numbers or texts."""
    if isinstance(value, Schedule):
        return value.start if value.shape == "constant" else str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_json(x) for x in cast("tuple[Any, ...]", value)]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], data: Any, name: str = "config") -> T:
    """The inverse of `to_json`.

    Raises:
        ConfigError: an unknown name (the nearest known one is named) or a value of the wrong type.
    """
    return cast("T", _read(kind, data, name))


def flattened(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """JSON objects within objects as one, values as text under dotted names."""
    flat: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat


def coerce(config: Any, prefix: str = "") -> None:
    """Brings every field of a frozen dataclass to its declared type, for use in `__post_init__`.

    Numbers and texts become schedules, lists tuples, texts paths; numpy's numbers become Python's.

    Args:
        config: the instance.
        prefix: of the field names in errors.

    Raises:
        ConfigError: a value that doesn't stand for one of the declared type.
    """
    for name, kind in _hints(type(config)).items():
        object.__setattr__(config, name, _read(kind, getattr(config, name), prefix + name))


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, data: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _read(next(a for a in args if a is not type(None)), data, name)
    if kind is Any:
        return data
    if isinstance(data, bool):  # which Python counts among the numbers
        if kind is bool:
            return data
        raise ConfigError(f"{name} is {data}; accepted: {_described(kind)}")
    if origin is Literal and data in args:
        return data
    if origin is tuple and isinstance(data, list | tuple):
        return tuple(_read(args[0], x, name) for x in cast("list[Any]", data))
    if origin is list and isinstance(data, list | tuple):
        return [_read(args[0], x, name) for x in cast("list[Any]", data)]
    if origin is dict and isinstance(data, dict):
        return {str(key): _read(args[1], x, name) for key, x in cast("dict[Any, Any]", data).items()}
    if kind is Schedule and isinstance(data, Schedule | str | Real):
        try:
            return schedule(data if isinstance(data, Schedule | str) else float(data))
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    if kind is Path and isinstance(data, str | Path):
        return Path(data)
    if kind is float and isinstance(data, Real):
        return float(data)
    if kind is int and isinstance(data, Integral):
        return int(data)
    if kind is not Schedule and dataclasses.is_dataclass(kind):
        return data if isinstance(data, cast("type[Any]", kind)) else _read_fields(cast("type[Any]", kind), data, name)
    if type(data) is kind:
        return data
    raise ConfigError(f"{name} is {data}; accepted: {_described(kind)}")


def _described(kind: Any) -> str:
    return f"one of {get_args(kind)}" if get_origin(kind) is Literal else str(getattr(kind, "__name__", kind))


def _read_fields(kind: type[Any], data: Any, name: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{name} is {data!r}; accepted: an object")
    hints = _hints(kind)
    given = cast("dict[str, Any]", data)
    for key in given:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
            raise ConfigError(f"unknown name {key!r} in {name}{hint}")
    try:
        return kind(**{key: _read(hints[key], value, f"{name}.{key}") for key, value in given.items()})
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
