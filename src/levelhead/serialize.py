"""Dataclasses as JSON and back, strictly: an unknown name or a wrong type is an error that names it."""

import dataclasses
import difflib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

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


def _read(kind: Any, data: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is not Schedule and dataclasses.is_dataclass(kind):
        return _read_fields(cast("type[Any]", kind), data, name)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _read(next(a for a in args if a is not type(None)), data, name)
    if origin is Annotated:
        return _read(args[0], data, name)
    try:
        if kind is Schedule:
            return schedule(data)
        if origin is tuple:
            return tuple(_read(args[0], x, name) for x in data)
        if origin is Literal and data in args:
            return data
        if origin is dict or kind is Path:
            return (Path if kind is Path else dict)(data)
        if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
        if type(data) is kind:
            return data
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error
    raise ConfigError(f"{name} is {data!r}; accepted: {args or getattr(kind, '__name__', kind)}")


def _read_fields(kind: type[Any], data: Any, name: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{name} is {data!r}; accepted: an object")
    hints = get_type_hints(kind)
    for key in cast("dict[str, Any]", data):
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
            raise ConfigError(f"unknown name {key!r} in {name}{hint}")
    try:
        return kind(**{key: _read(hints[key], value, f"{name}.{key}") for key, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
