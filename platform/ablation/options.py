"""What a user may change of a study, as data: a frozen dataclass of the study's own.

    @dataclass(frozen=True)
    class Options:
        images: Path | None = option("folder of images to train on", metavar="DIR", names_data=True)
        max_steps: int | None = option("train at most so many steps", metavar="N", least=1, label="{}steps")

Each field is an option of the command line, here --images and --max-steps. None means that it was not given.
What is given and names no data set becomes part of the name of folders, "quick-90steps", so that results of
different options never share a table. A study's `Profile.prepare` turns options into trial configs.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

KINDS = (bool, int, float, str, Path)
"""Types that the command line can read, beside a `Literal` of texts."""

_KEY = "ablation.option"


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a study's options, as the command line reads it.

    Attributes:
        kind: one of `KINDS`.
        choices: the texts that are allowed, or that a path may be instead; any when empty.
        least: the smallest number allowed.
        label: the value's part of a name, "{}steps" for "90steps".
        names_data: whether it says which data set to use: `check-data` has it too, and names do not.
        group: title of the options that the help shows together; "" for the study's general one.
    """

    name: str
    help: str
    kind: type
    choices: tuple[str, ...]
    metavar: str | None
    least: float | None
    label: str
    names_data: bool
    group: str

    @property
    def flag(self) -> str:
        """As it is typed: "--max-steps"."""
        return f"--{self.name.replace('_', '-')}"

    def parsed(self, text: str) -> Any:
        """The value that a text on the command line stands for; ValueError says what is allowed."""
        if text in self.choices:
            return text
        if self.kind is Path:
            return path(text)
        if self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}, got {text!r}")
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        # "not >=" instead of "<", because NaN is neither.
        if value is None or (self.least is not None and not value >= self.least):
            what = "a whole number" if self.kind is int else "a number"
            limit = "" if self.least is None else f" >= {self.least:g}"
            raise ValueError(f"must be {what}{limit}, got {text!r}")
        return value


def path(text: str) -> Path:
    """The absolute path that a text on the command line names: workers have another working folder.

    Raises:
        ValueError: the text is empty, as that of an unset variable of a shell; `Path` takes it for ".".
    """
    if not text.strip():
        raise ValueError("must be a path, got an empty text")
    return Path(text).absolute()


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a study of which a user can change nothing."""


def option(
    help: str,
    *,
    metavar: str | None = None,
    least: float | None = None,
    label: str = "",
    names_data: bool = False,
    group: str = "",
) -> Any:
    """A field of a study's options; its annotation is `KIND | None`. Arguments as in `Option`.

    A path that may be a word instead is `Path | Literal["none"] | None`.

    Args:
        label: the field's name and the value when empty: "steps-90".
    """
    given = {
        "help": help,
        "metavar": metavar,
        "least": least,
        "label": label,
        "names_data": names_data,
        "group": group,
    }
    return field(default=None, metadata={_KEY: given})


def declared(kind: type) -> tuple[Option, ...]:
    """The options that a class declares, in the order of its fields.

    Raises:
        TypeError: it is no dataclass, or a field was not made by `option` or has another type than
            `KIND | None`; names the field.
    """
    if not is_dataclass(kind):
        raise TypeError(f"options must be a dataclass, got {kind!r}")
    hints = get_type_hints(kind)
    return tuple(_declared(f"{kind.__name__}.{f.name}", f, hints[f.name]) for f in fields(kind))


def _declared(where: str, one: Any, hint: Any) -> Option:
    if _KEY not in one.metadata:
        raise TypeError(f"{where} must be declared as `{one.name}: TYPE | None = option(...)`")
    metadata = dict(one.metadata[_KEY])
    members = [member for member in get_args(hint) if member is not type(None)]
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    choices = tuple(text for member in members if get_origin(member) is Literal for text in get_args(member))
    kinds = [member for member in members if get_origin(member) is not Literal]
    if not optional or len(kinds) > 1 or (choices and kinds not in ([], [Path])):
        raise TypeError(f"{where} must be of a type `TYPE | None`, got {hint}")
    kind = kinds[0] if kinds else str
    if kind not in KINDS or not all(isinstance(choice, str) for choice in choices):
        names = ", ".join(one.__name__ for one in KINDS)
        raise TypeError(f"{where} must be one of {names} or a Literal of texts, got {members}")
    label = metadata.pop("label") or f"{one.name.replace('_', '-')}-{{}}"
    return Option(one.name, kind=kind, choices=choices, label=label, **metadata)


def given(options: Any) -> dict[str, Any]:
    """The values of the options that were given, by name."""
    values = ((one.name, getattr(options, one.name)) for one in fields(options))
    return {name: value for name, value in values if value is not None}


def without(options: Any, **own: Any) -> Any:
    """The options without those that ask for what a profile does anyway.

    Args:
        own: the profile's own values, by the option's name.
    """
    return replace(options, **{name: None for name, value in own.items() if getattr(options, name) == value})


def named(profile: str, options: Any) -> str:
    """A profile's name with the options given, as folders and tables show it: "coco-90its-64px"."""
    return "-".join([profile, *_labels(options)])


def _labels(options: Any) -> Iterator[str]:
    values = given(options)
    for one in declared(type(options)):
        if one.name in values and not one.names_data:
            yield one.label.format(values[one.name])


def words(options: Any) -> list[str]:
    """The options given as words of a command line."""
    values = given(options)
    typed = [(one, values[one.name]) for one in declared(type(options)) if one.name in values]
    return [word for one, value in typed for word in _words(one, value)]


def _words(one: Option, value: Any) -> list[str]:
    if one.kind is bool:
        return [one.flag if value else one.flag.replace("--", "--no-", 1)]
    return [one.flag, str(value)]
