"""Identity of a config: its canonical JSON, and the hash of that.

Two configs are the same exactly when their canonical JSON is. It names every dataclass's type, so
that classes with equal fields differ; it converts numbers by annotation, so that 8 and 8.0 are equal
in a float field; and it refuses whatever could not be written the same way everywhere and for ever.
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
"""Hexadecimal characters of a key: 48 bits, enough for millions of trials without a collision."""


def canonical_json(config: Any) -> str:
    """The one JSON text of a config.

    Args:
        config: a dataclass whose fields are annotated with bool, int, float, str, None, Literal,
            tuples, other such dataclasses, and unions of these.

    Raises:
        TypeError: a field holds something else or something unstable; names the field's path.
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"a config must be a dataclass, got {config!r}")
    return _dump(_dataclass(config, type(config).__name__))


def key(config: Any) -> str:
    """The first 12 hexadecimal characters of the SHA-256 of the canonical JSON."""
    return _hash(canonical_json(config))


def checked_key(text: str) -> str:
    """Returns a key unchanged; ValueError for anything else, before it becomes part of a path."""
    if not re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", text):
        raise ValueError(f"a trial key is {KEY_LENGTH} hexadecimal characters, got {text!r}")
    return text


def evaluation_key(trial_key: str, evaluation: Any) -> str:
    """Identity of an evaluation: the same config is another evaluation for another trial."""
    return _hash(f"{trial_key}\n{canonical_json(evaluation)}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError as error:
        raise TypeError(f"{kind.__name__}: an annotation names something unknown there: {error}") from error


def _dataclass(config: Any, path: str) -> dict[str, Any]:
    kind: Any = type(config)  # typed loosely: mypy thinks that a dataclass type has no hash
    hints = _hints(kind)
    encoded = {
        field.name: _encode(getattr(config, field.name), hints[field.name], f"{path}.{field.name}")
        for field in fields(config)
    }
    return {"__type__": kind.__name__, **encoded}


def _encode(value: Any, annotation: Any, path: str) -> Any:
    """`value` as JSON types, as `annotation` says."""
    member = next((m for m in _members(annotation) if _accepts(value, m)), None)
    if member is None:
        raise TypeError(f"{path}: {_shown(annotation)} allowed, got {value!r} ({type(value).__name__})")
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
    number = float(value) + 0.0  # -0.0, which equals 0.0, becomes 0.0
    if not math.isfinite(number):
        raise TypeError(f"{path}: a finite number is needed, got {value!r}")
    return number


def _members(annotation: Any) -> list[Any]:
    """The kinds of value an annotation allows; float before int, so that 8 is 8.0 in `int | float`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        nested = [member for part in typing.get_args(annotation) for member in _members(part)]
        return sorted(nested, key=lambda member: member is not float)
    return [annotation]


def _accepts(value: Any, kind: Any) -> bool:
    """Whether a value fits a kind by its own type; what is inside a tuple or dataclass is seen later."""
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
    """The annotation of each of a tuple's items; None when it cannot have that many."""
    arguments = typing.get_args(kind)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (arguments[0],) * length
    return arguments if len(arguments) == length else None


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
