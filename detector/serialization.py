"""Converts configs to dictionaries, lists and scalars and back, for checkpoints and other files.

Each dictionary has the name of its class in "type", so that members of unions are restored.
"""

from __future__ import annotations

import types
from collections.abc import Set
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from detector import config as cfg

T = TypeVar("T")

_CLASSES: dict[Any, type[Any]] = {
    name: kind for name, kind in vars(cfg).items() if isinstance(kind, type) and is_dataclass(kind)
}
_OTHER_VERSION = (
    "written by another version of this program: read it with the version that wrote it, or train again"
)


def to_dict(config: Any) -> Any:
    """The config as dictionaries, lists and scalars; each dictionary has its class in "type"."""
    if is_dataclass(config) and not isinstance(config, type):
        values = {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}
        return {"type": type(config).__name__, **values}
    return [to_dict(v) for v in config] if isinstance(config, tuple) else config


def from_dict(data: Any, kind: type[T]) -> T:
    """The config from the result of `to_dict`.

    Args:
        data: dictionaries of classes in `detector.config`, lists and scalars.
        kind: class of the config.

    Raises:
        ValueError: a class is unknown, a field is missing, unknown or of the wrong type, or its class refuses
            a value; the message has the path, as "Trial.data".
    """
    value = _rebuilt(data, kind.__name__)
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, got {_named(value)}")
    return value


def _rebuilt(data: Any, place: str) -> Any:
    match data:
        case dict():
            return _instance(data, place)
        case list():
            return tuple(_rebuilt(item, f"{place}[{i}]") for i, item in enumerate(data))
        case _:
            return data


def _instance(data: dict[str, Any], place: str) -> Any:
    kind = _CLASSES.get(str(data.get("type")))
    if kind is None:
        raise ValueError(f"{place}: no config class is called {data.get('type')!r}; {_OTHER_VERSION}")
    hints = get_type_hints(kind)
    given = {name: value for name, value in data.items() if name != "type"}
    _refuse(place, f"{kind.__name__} needs", hints.keys() - given.keys())
    _refuse(place, f"{kind.__name__} does not know", given.keys() - hints.keys())
    values = {name: _rebuilt(value, f"{place}.{name}") for name, value in given.items()}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{place}.{name}: cannot be {_named(value)}")
    return kind(**values)


def _refuse(place: str, what: str, names: Set[str]) -> None:
    if names:
        raise ValueError(f"{place}: {what} {', '.join(sorted(names))}; {_OTHER_VERSION}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; items of tuples are checked by their class."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _named(value: Any) -> str:
    return f"a {type(value).__name__}" if is_dataclass(value) else repr(value)
