"""The files of a data set's folder, listed once, and image files found by the names that annotations give."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from detector.data.exif import orientation_of
from detector.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
LABEL_SUFFIXES = frozenset({".json", ".names", ".txt", ".xml", ".yaml", ".yml"})
LISTED = IMAGE_SUFFIXES | LABEL_SUFFIXES
SKIPPED = frozenset({"__MACOSX", "__pycache__"})

_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class Folder:
    """A data set's folder.

    Attributes:
        root: the folder.
        stamps: (size in bytes, modification time in ns) of every image and label file, by its path relative
            to `root` with "/" between the parts. Files of other kinds and hidden ones are not listed.
    """

    root: Path
    stamps: Mapping[str, tuple[int, int] | None]

    @cached_property
    def images(self) -> tuple[str, ...]:
        """All image files, in order of their names."""
        return tuple(name for name in self.stamps if suffix(name) in IMAGE_SUFFIXES)

    def named(self, *suffixes: str) -> tuple[str, ...]:
        """All files that end in one of `suffixes`, in order of their names."""
        return tuple(name for name in self.stamps if suffix(name) in suffixes)

    def has_folder(self, name: str) -> bool:
        """Whether `name` is a folder; one without a listed file counts too."""
        return (self.root / name).is_dir()

    def find_image(self, name: str, under: str = "") -> str | None:
        """The one image file below `under` that `name` can mean; None where there is none, or several.

        A file of exactly this name below `under` comes first. Otherwise "\\" counts as "/", upper and lower
        case count as equal, and of the files of the same last part the one that has most folders in common,
        counted from the end, is meant. The result is always a file of this folder, whatever `name` says.
        """
        if (exact := f"{under}/{name}" if under else name) in self.stamps and suffix(name) in IMAGE_SUFFIXES:
            return exact
        parts = parts_of(name)
        candidates = self._by_last_part.get(_folded(parts[-1]), []) if parts else []
        inside = [path for path in candidates if is_under(path, under)]
        scores = {path: _likeness(parts, path.split("/")) for path in inside}
        best = [path for path in inside if scores[path] == max(scores.values())]
        return best[0] if len(best) == 1 else None

    @cached_property
    def _by_last_part(self) -> Mapping[str, list[str]]:
        index: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.images:
            index[_folded(name.rsplit("/", 1)[-1])].append(name)
        return index


def list_folder(root: Path, without: Path | None = None) -> Folder:
    """List a folder and everything below it, links to folders followed.

    Args:
        root: the folder.
        without: a folder below `root` that is no part of the data set.

    Raises:
        DataError: `root` is not a folder or cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    try:
        stamps = dict(sorted(_walk(str(root), "", {os.path.realpath(without)} if without else set())))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return Folder(root, stamps)


def _walk(folder: str, prefix: str, entered: set[str]) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Names and stamps below a folder, `entered` left out: it ends circles of links."""
    if (real := os.path.realpath(folder)) in entered:
        return
    entered.add(real)
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name in SKIPPED:
                continue
            if os.path.splitext(name)[1].lower() in LISTED and entry.is_file():  # noqa: PTH122 (of 100,000 files)
                status = entry.stat()
                yield prefix + name, (status.st_size, status.st_mtime_ns)
            elif entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{name}/", entered)


def stamp_of(path: Path) -> tuple[int, int] | None:
    """(size in bytes, modification time in ns) of a file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def suffix(name: str) -> str:
    """The ending of a file name in lower case, dot included."""
    return PurePosixPath(name).suffix.lower()


def parent(name: str) -> str:
    """The folder part of a relative path; "" for a file at the top."""
    return name.rpartition("/")[0]


def is_under(name: str, folder: str) -> bool:
    """Whether a relative path lies below a relative folder; every path lies below ""."""
    return not folder or name.startswith(f"{folder}/")


def parts_of(name: str) -> list[str]:
    """The parts of a path written on any system, without drive letters, "." and ".."."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[1:] if parts and len(parts[0]) == 2 and parts[0][1] == ":" else parts


def _folded(text: str) -> str:
    """Equal for names that differ in upper and lower case or in how an accent is encoded (macOS: NFD)."""
    return unicodedata.normalize("NFC", text).casefold()


def _likeness(wanted: list[str], present: list[str]) -> tuple[int, int]:
    """How many parts agree, counted from the end; then how many of them letter for letter."""
    agreeing = 0
    pairs = list(zip(reversed(wanted), reversed(present), strict=False))
    while agreeing < len(pairs) and _folded(pairs[agreeing][0]) == _folded(pairs[agreeing][1]):
        agreeing += 1
    return agreeing, sum(a == b for a, b in pairs[:agreeing])


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of an image as a viewer shows it, EXIF orientation applied; reads the header.

    Raises:
        DataError: the file is not an image that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if orientation_of(image) in _ON_ITS_SIDE else (width, height)
    except Exception as error:  # Pillow's readers let through whatever damaged bytes make them raise
        raise DataError(f"{path}: is not an image that can be read ({error})") from error
