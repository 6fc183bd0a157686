"""Files of text to values, with every failure as a `DataError` that names the file.

Annotation files come from anywhere. XML with a document type is refused, so that no entity is expanded and no
other file is opened; YAML is read without constructors; nesting and size are bounded.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import yaml

from detector.errors import DataError

MAX_SMALL_BYTES = 64 * 2**20
"""Largest file but JSON that is read: annotations of one image, lists and settings."""

MAX_JSON_BYTES = 8 * 2**30

MAX_COORDINATE = 1e9
"""Pixels; no image has as many, and what is larger is a damaged number."""


def read_bytes(path: Path, limit: int = MAX_SMALL_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read or is larger than `limit`.
    """
    try:
        if (size := path.stat().st_size) > limit:
            raise DataError(f"{path}: has {size:,} bytes; annotation files of up to {limit:,} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_text(path: Path) -> str:
    """A file of UTF-8, or of UTF-16 with a byte order mark.

    Raises:
        DataError: it cannot be read or is not text.
    """
    content = read_bytes(path)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start:,})") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: it cannot be read, is truncated or is not JSON.
    """
    content = read_bytes(path, MAX_JSON_BYTES)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        what = "is truncated: it ends in the middle of the JSON" if cut else "is not JSON"
        raise DataError(f"{path}: {what} (line {error.lineno}, column {error.colno}: {error.msg})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not JSON (not text: {error.reason} at byte {error.start:,})") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise DataError(f"{path}: is not JSON that can be read ({error})") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        DataError: it cannot be read, is not XML, or has a document type (where entities are declared).
    """
    content = read_bytes(path)
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = lambda *_: _refuse_doctype(path)
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise DataError(f"{path}: is not XML that can be read ({error})") from error


def _refuse_doctype(path: Path) -> None:
    raise DataError(f"{path}: has a document type (<!DOCTYPE ...>), which is not read; remove that line")


def read_yaml(path: Path) -> Any:
    """The value of a YAML file, of plain types alone.

    Raises:
        DataError: it cannot be read or is not YAML.
    """
    try:
        return yaml.safe_load(read_text(path))
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        # PyYAML lets through the errors of the types that it makes: a date of month 13, a list as a key.
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: is not YAML that can be read ({reason})") from error


def finite(value: object, where: str) -> float:
    """A number, or text that is one.

    Args:
        value: what a file holds.
        where: file and place, for the message.

    Raises:
        DataError: it is not a finite number of at most `MAX_COORDINATE`.
    """
    number = number_in(value)
    if number is None or not abs(number) <= MAX_COORDINATE:
        raise DataError(f"{where}: must be a number, got {short(value)}")
    return float(number)


def number_in(value: object) -> int | float | None:
    """The number that a value is or spells: 3, "3", "3.5", true (1). Whole numbers come as int.

    None for what is no number; NaN and infinities are numbers here.
    """
    if isinstance(value, str):
        value = _spelled(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return int(value) if isinstance(value, bool) else value if isinstance(value, int | float) else None


def _spelled(text: str) -> int | float | None:
    if "_" in text:  # which Python takes for a separator of digits
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def short(value: object) -> str:
    """A value for a message, at most 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists within lists
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= 60 else text[:57] + "..."
