"""Damaged files: whatever is in them, a reader returns, or raises a `DataError` that names the data set."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detector.data.coco import read_data
from detector.data.formats.convert import Reading, convert
from detector.data.formats.folder import LABEL_SUFFIXES
from detector.errors import DataError
from tests.support import layouts

MUTATIONS = 60
"""Of each layout."""

VALUES: list[Any] = [
    None, True, "", "0", "x", "NaN", -1, 0, 1.5, 2**31, 2**63, 10**400, -(10**30), 1e308, float("nan"),
    float("inf"), [], [[]], {}, {"a": 1}, [1, 2, 3, 4], ["1", None], "a\\b", "../../etc/passwd", "/", "\x00",
    "é" * 300, json.loads("[" * 500 + "]" * 500),
]  # fmt: skip

TOKENS = [
    b"", b"nan", b"inf", b"-1", b"1e999", b"9" * 5000, b"\xff\xfe", b"\x00", b"<", b"&a;", b"]]>", b"{",
    b"[" * 2000, b"a: " * 200, b"- " * 2000, b"!!python/object:os.system", b"*x", b"&x [*x, *x]",
    b"2024-13-45", b"<a>" * 3000, b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>",
    "\u2028".encode(), b"0x1", b"1_000", b"? [a]: b",
]  # fmt: skip


def truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def flipped(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def with_token(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content) + 1)
    return content[:start] + chance.choice(TOKENS) + content[start + chance.randint(0, 6) :]


def with_other_word(content: bytes, chance: random.Random) -> bytes:
    words = content.split(b" ")
    words[chance.randrange(len(words))] = chance.choice(TOKENS)
    return b" ".join(words)


def in_other_encoding(content: bytes, chance: random.Random) -> bytes:
    text = content.decode() + chance.choice(["", "é", "\n"])
    return text.encode(chance.choice(["utf-16", "latin-1", "utf-8-sig", "utf-32", "cp037"]))


def with_other_value(content: bytes, chance: random.Random) -> bytes:
    """One value of a JSON file replaced or left out."""
    try:
        value = json.loads(content)
    except ValueError:
        return with_token(content, chance)
    path = chance.choice(list(_paths(value)))
    if not path:
        return json.dumps(chance.choice(VALUES)).encode()
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    if chance.random() < 0.2:
        del owner[path[-1]]
    else:
        owner[path[-1]] = chance.choice(VALUES)
    return json.dumps(value).encode()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    truncated, flipped, with_token, with_other_word, in_other_encoding, with_other_value, with_other_value,
    with_other_value, lambda content, chance: b"", lambda content, chance: b"\x00" * 100,
]  # fmt: skip


def error_of(folder: Path, cache: Path, reading: Reading) -> str | None:
    try:
        read_data(convert(folder, cache, reading).paths)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("layout", layouts.SPLIT | layouts.UNSPLIT)
def test_damaged_files_raise_nothing_but_an_error_that_names_the_data_set(
    tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "data"
    (layouts.SPLIT | layouts.UNSPLIT)[layout](layouts.small_source(tmp_path / "source", 4, 2), folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix in LABEL_SUFFIXES and path.is_file())
    chance = random.Random(layout)
    for number in range(MUTATIONS):
        path = chance.choice(files)
        original = path.read_bytes()
        path.write_bytes(chance.choice(DAMAGES)(original, chance))
        reading = Reading(split=0.3 if layout in layouts.UNSPLIT else None)
        message = error_of(folder, tmp_path / "work" / str(number), reading)
        assert message is None or str(tmp_path) in message
        path.write_bytes(original)
