"""Identity of a config: its canonical JSON and the hash of it.

Two configs are the same if and only if their canonical JSON is. The JSON names every dataclass's type, so
classes with equal fields differ. It converts numbers by annotation, so 8 and 8.0 are equal in a float field.
It refuses values without a stable text, such as callables and NaN.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any

KEY_LENGTH = 12
"""Hexadecimal characters of a key: 48 bits, enough for a million trials without a collision."""


def canonical_json(config: Any) -> str:
    """The one JSON text of a config.

    Args:
        config: a dataclass whose fields are annotated with bool, int, float, str, None, Literal,
            tuples, other such dataclasses, and unions of these.

    Raises:
        TypeError: a field has a value of another type, or one without a stable text; names the field.
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"a config must be a dataclass, got {config!r}")
    return _dump(_dataclass(config, type(config).__name__))


def key(config: Any) -> str:
    """The first 12 hexadecimal characters of the SHA-256 of the canonical JSON."""
    return key_of(canonical_json(config))


def key_of(text: str) -> str:
    """The key of a config by its canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def checked_key(text: str) -> str:
    """Returns a key unchanged; ValueError for anything else, before it becomes part of a path."""
    if not re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", text):
        raise ValueError(f"a trial key is {KEY_LENGTH} hexadecimal characters, got {text!r}")
    return text


def evaluation_key(trial_key: str, text: str) -> str:
    """Key of an evaluation: a hash of its trial's key and the canonical JSON of its config."""
    return key_of(f"{trial_key}\n{text}")


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError as error:
        raise TypeError(f"{kind.__name__}: an annotation cannot be resolved: {error}") from error


def _dataclass(config: Any, path: str) -> dict[str, Any]:
    kind: Any = type(config)  # Any: mypy takes a dataclass type for unhashable
    hints = _hints(kind)
    encoded = {
        field.name: _encode(getattr(config, field.name), hints[field.name], f"{path}.{field.name}")
        for field in fields(config)
    }
    return {"__type__": kind.__name__, **encoded}


def _encode(value: Any, annotation: Any, path: str) -> Any:
    """`value` as JSON types, converted by `annotation`."""
    member = next((m for m in _members(annotation) if _accepts(value, m)), None)
    if member is None:
        raise TypeError(f"{path}: must be {_shown(annotation)}, got {value!r} ({type(value).__name__})")
    if member is float:
        return _float(value, path)
    if member is int:
        return int(value)
    if typing.get_origin(member) is tuple:
        kinds = _item_annotations(member, len(value)) or ()
        return [_encode(v, kinds[i], f"{path}[{i}]") for i, v in enumerate(value)]
    if is_dataclass(member):
        return _dataclass(value, path)
    return value


def _float(value: Any, path: str) -> float:
    number = float(value) + 0.0  # makes -0.0 equal to 0.0
    if not math.isfinite(number):
        raise TypeError(f"{path}: must be finite, got {value!r}")
    return number


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation allows; float before int, so that 8 becomes 8.0 in `int | float`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        nested = [member for part in typing.get_args(annotation) for member in _members(part)]
        return sorted(nested, key=lambda member: member is not float)
    return [annotation]


def _accepts(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; items of tuples and fields of dataclasses are checked later."""
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in typing.get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and _item_annotations(kind, len(value)) is not None
    if kind is type(None) or kind is bool or kind is str:
        return type(value) is kind
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool)
    return is_dataclass(kind) and isinstance(value, typing.cast(type, kind))


def _item_annotations(kind: Any, length: int) -> tuple[Any, ...] | None:
    """The annotations of a tuple's items; None when the tuple cannot have `length` items."""
    arguments = typing.get_args(kind)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (arguments[0],) * length
    return arguments if len(arguments) == length else None


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
