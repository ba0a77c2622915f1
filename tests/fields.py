"""The fields of a config by their dotted names."""

import dataclasses
from typing import Any, get_type_hints

from levelhead.config import Config
from levelhead.schedules import Schedule
from levelhead.serialize import to_json


def leaves(kind: type = Config, prefix: str = ""):
    """Dotted name and type of every field that is not itself a group of fields."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and hint is not Schedule:
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def flat(config: Config) -> dict[str, Any]:
    """Values as JSON by dotted name."""
    values = {}
    for name, _ in leaves():
        value = to_json(config)
        for part in name.split("."):
            value = value[part]
        values[name] = value
    return values
