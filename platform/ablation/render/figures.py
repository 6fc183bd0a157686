"""Writes the figures; draws one again only when its content has changed, since that takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from inspect import getsource
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ablation import metric
from ablation.files import write_whole
from ablation.results import claims, statistics
from ablation.results.table import FilledTable

KINDS = ("pdf", "png")
"""In the order of writing. The PNG is written last, so that its `_DRAWN_FROM` holds for both files."""

_DRAWN_FROM = "Source"
"""The entry of the PNG file that identifies its content."""


def write_figures(directory: Path, tables: Sequence[FilledTable]) -> tuple[list[Path], list[str]]:
    """Write `<table>.png` and `.pdf` of every table with a number in it.

    Returns:
        The paths, and a sentence for each table that cannot be drawn; it has no figure then.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths, problems = list[Path](), list[str]()
    for filled in tables:
        if any(cell.values for cell in filled.cells if cell.metric == filled.cells[0].metric):
            files = [directory / f"{filled.table.id}.{kind}" for kind in KINDS]
            try:
                _write(filled, files)
                paths += files
            except OSError:
                raise
            except Exception as error:  # matplotlib raises anything
                problems.append(f"{filled.name} has no figure: {type(error).__name__}: {error}")
                for path in files:
                    path.unlink(missing_ok=True)  # of other numbers
    return paths, problems


def _write(filled: FilledTable, files: Sequence[Path]) -> None:
    source = _source(filled)
    if _drawn_from(files) != source:
        for path, content in zip(files, _drawn(filled, source), strict=True):
            write_whole(path, content)


def _source(filled: FilledTable) -> str:
    """A hash of the table and of the code that draws it."""
    code = [getsource(module) for module in (claims, metric, statistics)]
    code.append(Path(__file__).with_name("drawing.py").read_text())  # not imported: matplotlib takes a second
    return hashlib.sha256(f"{filled!r} {version('matplotlib')} {code}".encode()).hexdigest()


def _drawn_from(files: Sequence[Path]) -> str | None:
    """The `_source` of the existing files; None where one is missing or damaged."""
    if not all(path.is_file() for path in files):
        return None
    try:
        with Image.open(files[-1]) as image:
            return str(image.info.get(_DRAWN_FROM))
    except (OSError, UnidentifiedImageError):
        return None


def _drawn(filled: FilledTable, source: str) -> Iterator[bytes]:
    """The bytes of each kind. Equal tables give equal bytes: no date, no version."""
    from ablation.render.drawing import draw

    figure = draw(filled)
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None, _DRAWN_FROM: source})):
        drawn = BytesIO()
        figure.savefig(drawn, format=kind, dpi=160, metadata=metadata)
        yield drawn.getvalue()
