"""Files are whole or not there."""

import os
from pathlib import Path

import pytest

from ablation.errors import last_line
from ablation.files import write_whole


def test_a_file_is_replaced_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "tables.md"
    path.write_text("old")
    assert write_whole(path, "né") == path
    assert path.read_text(encoding="utf-8") == "né"
    write_whole(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tables.md"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_are_readable_for_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    assert write_whole(tmp_path / "whole", "").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Traceback\n  in f\nValueError: no \n\n", "ValueError: no"),
        ("one", "one"),
        (" \n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_last_line_of_an_error_is_for_people(text: str | None, line: str) -> None:
    assert last_line(text) == line
