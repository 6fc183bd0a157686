"""File names as annotations write them, to the files that are meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from detector.data.formats.folder import Folder, is_under
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import short

_SUGGESTED = 10
"""Missing files for which a similar name is looked for: it takes a second in a large data set."""


def find_files(images: list[dict[str, Any]], folder: Folder, under: str, notes: Notes) -> list[str]:
    """Put the name of the file that is meant in place of each file name that is not exactly one.

    Args:
        images: COCO's, changed in place.
        folder: of the data set.
        under: folder that file names start from.
        notes: count what is found under another spelling.

    Returns:
        A line for each image whose file is not found, with the most similar name for the first ones.
    """
    missing = []
    for i, image in enumerate(images):
        name = image["file_name"]
        if (f"{under}/{name}" if under else name) in folder.stamps:
            continue
        found = folder.find_image(name, under)
        if found is None:
            missing.append((i, name))
        else:
            image["file_name"] = found[len(under) + 1 :] if under else found
            notes.count("file names found under another spelling", f"{short(name)} is {image['file_name']}")
    named = {str(image["file_name"]) for image in images}
    return list(_with_suggestions(missing, named, folder, under))


def _with_suggestions(
    missing: list[tuple[int, str]], named: set[str], folder: Folder, under: str
) -> Iterator[str]:
    """Suggests only files that no other image names: of numbered files all names are similar."""
    free = (name for name in folder.images if is_under(name, under) and not _is_named(name, under, named))
    present = {name.rsplit("/", 1)[-1]: name for name in free}
    for count, (i, name) in enumerate(missing):
        line = f"images[{i}].file_name = {short(name)}"
        last_part = name.replace("\\", "/").rsplit("/", 1)[-1][:255]
        if count < _SUGGESTED and (near := difflib.get_close_matches(last_part, present, 1)):
            line += f"; the most similar file is {present[near[0]]}"
        yield line


def _is_named(name: str, under: str, named: set[str]) -> bool:
    return (name[len(under) + 1 :] if under else name) in named
