"""Checks of a file in COCO's format: each check yields findings, which list the wrong entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from detector.errors import DataError

MAX_LISTED = 10
"""Cases of one kind that an error message lists."""

_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_KIND_NAMES = {int: "an integer", str: "text", list: "a list [x, y, width, height]"}

Item = dict[str, Any]


class Finding(NamedTuple):
    """A kind of error and the entries that have it; no cases mean no error."""

    what: str
    cases: Sequence[str]


def refuse(
    subject: object, findings: Iterator[Finding] | Sequence[Finding], limit: int | None = MAX_LISTED
) -> None:
    """Raises a `DataError` that lists the cases of every finding, up to `limit` each, with their number.

    Raises:
        DataError: if any finding has a case.
    """
    lines: list[str] = []
    for what, cases in findings:
        if cases:
            lines.append(f"  {what} ({len(cases)}):")
            lines += [f"    {case}" for case in cases[:limit]]
            if limit is not None and len(cases) > limit:
                lines.append(f"    and {len(cases) - limit} more")
    if lines:
        raise DataError("\n".join([f"{subject}: cannot be used", *lines]))


def findings_of(content: Any, images: Path, annotated: bool) -> Iterator[Iterator[Finding]]:
    """The checks of a file's content, in order. Each needs a content that passed those before it.

    Args:
        content: the decoded JSON.
        images: the folder of the image files.
        annotated: whether the file must have annotations.
    """
    yield _section_findings(content, annotated)
    yield _item_findings(content)
    yield _reference_findings(content)
    yield _file_findings(content["images"], images)


def _section_findings(content: Any, annotated: bool) -> Iterator[Finding]:
    """The three top-level lists exist and have entries (annotations: if `annotated`) that are objects."""
    if not isinstance(content, dict):
        yield Finding("the top level must be an object", [f"found {_short(content)}"])
        return
    for section in _FIELDS:
        items = content.get(section)
        if section not in content:
            yield Finding("keys missing at the top level", [f'"{section}"'])
        elif not isinstance(items, list):
            yield Finding(f'"{section}" must be a list', [f"found {_short(items)}"])
        elif not items and (annotated or section != "annotations"):
            yield Finding(f'"{section}" must have at least one entry', ["found []"])
        else:
            cases = [f"{section}[{i}] = {_short(x)}" for i, x in enumerate(items) if not isinstance(x, dict)]
            yield Finding(f'entries of "{section}" must be objects', cases)


def _item_findings(content: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Every entry has the required keys, of the right type."""
    for section, fields in _FIELDS.items():
        for key, kind in fields.items():
            wrong = [(i, x) for i, x in enumerate(content[section]) if type(x.get(key)) is not kind]
            missing = [f"{section}[{i}]" for i, x in wrong if key not in x]
            typed = [f"{section}[{i}].{key} = {_short(x[key])}" for i, x in wrong if key in x]
            yield Finding(f'"{key}" is missing', missing)
            yield Finding(f'"{key}" must be {_KIND_NAMES[kind]}', typed)
    sizes = [
        f"images[{i}].{key} = {_short(image[key])}"
        for i, image in enumerate(content["images"])
        for key in ("width", "height")
        if type(image.get(key)) is int and image[key] < 1
    ]
    yield Finding("image sizes must be at least 1", sizes)
    yield Finding("bbox must be four numbers [x, y, width, height]", _malformed_boxes(content["annotations"]))


def _malformed_boxes(annotations: Sequence[Item]) -> list[str]:
    boxes = [a.get("bbox") for a in annotations]
    if _is_numeric(boxes, (len(boxes), 4)):
        return []
    return [
        f"annotations[{i}].bbox = {_short(box)}"
        for i, box in enumerate(boxes)
        if isinstance(box, list) and not _is_numeric(box, (4,))
    ]


def _is_numeric(values: Sequence[Any], shape: tuple[int, ...]) -> bool:
    try:
        array = np.array(values)
    except ValueError:  # numpy refuses lists of different lengths
        return False
    return array.shape == shape and array.dtype.kind in "iuf"


def _reference_findings(content: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Ids are unique, and annotations refer to images and categories that exist."""
    for section, items in content.items():
        if section in _FIELDS:
            counts = Counter(x["id"] for x in items)
            cases = [f"id {i} occurs {count} times" for i, count in counts.items() if count > 1]
            yield Finding(f'ids of "{section}" must differ', cases)
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        known = {x["id"] for x in content[section]}
        cases = [
            f"annotations[{i}] (id {a['id']}): {key} = {a[key]}"
            for i, a in enumerate(content["annotations"])
            if a[key] not in known
        ]
        yield Finding(f'"{key}" must be an id of "{section}"', cases)


def _file_findings(images: Sequence[Item], directory: Path) -> Iterator[Finding]:
    # Data sets are untrusted: their file names must not lead to other files of this machine.
    outside = [
        f"images[{i}].file_name = {image['file_name']!r}"
        for i, image in enumerate(images)
        if _leaves_its_folder(image["file_name"])
    ]
    yield Finding(f"image files must lie under {directory}", outside)
    # One listing instead of a system call per image, which is much faster on network file systems.
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    cases = [
        f"images[{i}].file_name = {image['file_name']!r}"
        for i, image in enumerate(images)
        if image["file_name"] not in present and not (directory / image["file_name"]).is_file()
    ]
    yield Finding(f"image files not found under {directory}", cases)


def _leaves_its_folder(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
