"""What is remembered of files, and when it is found out again."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from experiments.detection.remembered import remembered


class Finder:
    """Counts how often it is asked."""

    def __init__(self, *made: Path) -> None:
        self.asked, self.made = 0, made

    def __call__(self) -> tuple[dict[str, Any], Iterable[Path]]:
        self.asked += 1
        return {"asked": self.asked}, self.made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (path := tmp_path / "annotations.json").write_text("{}")
    return path


def test_facts_are_found_once_while_their_files_stay_as_they_are(file: Path, tmp_path: Path) -> None:
    find = Finder()
    for _ in range(3):
        assert remembered(tmp_path / "known" / "record.json", [file], find) == {"asked": 1}


def test_another_size_or_another_time_of_a_file_is_noticed(file: Path, tmp_path: Path) -> None:
    find, record = Finder(), tmp_path / "record.json"
    remembered(record, [file], find)
    file.write_text("{ }")
    assert remembered(record, [file], find) == {"asked": 2}
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert remembered(record, [file], find) == {"asked": 3}
    assert remembered(record, [file], find) == {"asked": 3}


def test_a_file_added_to_a_folder_is_noticed(tmp_path: Path) -> None:
    (folder := tmp_path / "images").mkdir()
    os.utime(folder, ns=(0, 0))
    find, record = Finder(), tmp_path / "record.json"
    remembered(record, [folder], find)
    (folder / "1.png").write_bytes(b"")
    assert remembered(record, [folder], find) == {"asked": 2}


def test_a_file_that_was_made_with_the_facts_and_is_gone_is_noticed(file: Path, tmp_path: Path) -> None:
    (made := tmp_path / "decoded.rgb").write_bytes(b"pixels")
    find, record = Finder(made), tmp_path / "record.json"
    remembered(record, [file], find)
    assert remembered(record, [file], find) == {"asked": 1}
    made.unlink()
    assert remembered(record, [file], find) == {"asked": 2}


def test_a_file_that_was_not_asked_about_before_is_noticed(file: Path, tmp_path: Path) -> None:
    find, record = Finder(), tmp_path / "record.json"
    remembered(record, [file], find)
    assert remembered(record, [file, tmp_path], find) == {"asked": 2}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3, "facts": {}}'])
def test_a_damaged_record_is_written_anew(content: str, file: Path, tmp_path: Path) -> None:
    (record := tmp_path / "record.json").write_text(content)
    find = Finder()
    assert remembered(record, [file], find) == remembered(record, [file], find) == {"asked": 1}


def test_nothing_is_remembered_of_files_that_cannot_be_used(file: Path, tmp_path: Path) -> None:
    def fails() -> tuple[dict[str, Any], Iterable[Path]]:
        raise ValueError("truncated")

    with pytest.raises(ValueError, match="truncated"):
        remembered(tmp_path / "record.json", [file], fails)
    assert not (tmp_path / "record.json").exists()
