"""The committed numbers of the authors' code are those that their code gave."""

from pathlib import Path

from tests.support.golden import ARCHIVE, files_of


def test_the_packed_numbers_are_those_of_the_authors_outputs(authors: Path, shared: Path) -> None:
    files = dict(files_of(shared / "golden", shared / "reference" / "paper_tables.json"))
    assert {path.name: path.read_bytes() for path in authors.iterdir()} == files


def test_the_packed_numbers_are_small() -> None:
    assert ARCHIVE.stat().st_size < 1_000_000
