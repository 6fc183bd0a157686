"""VGG Image Annotator: one JSON file of all images with their "regions", or a project that holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from detector.data.formats.contents import (
    ALL,
    Builder,
    Content,
    around,
    split_of,
    split_of_path,
    usable_splits,
)
from detector.data.formats.folder import Folder, parent
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import finite, short
from detector.errors import DataError

_LABEL_KEYS = ("class", "label", "name", "type", "category", "object")
ONLY_CLASS = "object"
"""Class of regions where none has an attribute."""


class _Region(NamedTuple):
    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]
    where: str


def images_of(value: object) -> Mapping[str, Any] | None:
    """The images of a VIA file by their keys; None where the value of a JSON file is not VIA's."""
    if isinstance(value, dict) and isinstance(value.get("_via_img_metadata"), dict):
        return dict(value["_via_img_metadata"])
    if isinstance(value, dict) and value and all(_is_image(x) for x in value.values()):
        return value
    return None


def _is_image(value: object) -> bool:
    return isinstance(value, dict) and "filename" in value and "regions" in value


def read(folder: Folder, files: Mapping[str, Any], notes: Notes) -> dict[str, Content]:
    """Images and regions of VIA's files.

    Args:
        folder: of the data set.
        files: values of the JSON files by their names.
        notes: for what is left out.

    Raises:
        DataError: a region lacks what its box needs, or no one attribute can be the class.
    """
    builder = Builder(folder, notes)
    key = _label_key(folder, [r for name, value in files.items() for r in _all_regions(folder, name, value)])
    if key is None:
        notes.say(f"no region has an attribute: all are of one class, {ONLY_CLASS!r}")
    for name, value in files.items():
        for image in (images_of(value) or {}).values():
            _add_image(builder, name, image, key)
    return usable_splits(builder.contents(), notes)


def _add_image(builder: Builder, name: str, image: object, key: str | None) -> None:
    if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
        raise DataError(f"{builder.folder.root / name}: an image must be an object with a filename")
    found = builder.folder.find_image(image["filename"], parent(name)) or builder.folder.find_image(
        image["filename"]
    )
    if found is None:
        builder.notes.count("images that were not found, left out", image["filename"])
        return
    split = split_of_path(found) or split_of(name) or ALL
    builder.add_image(split, found)
    for region in _regions(builder.folder, name, image):
        _add_region(builder, split, region, key)


def _all_regions(folder: Folder, name: str, value: object) -> Iterator[_Region]:
    for image in (images_of(value) or {}).values():
        yield from _regions(folder, name, image)


def _regions(folder: Folder, name: str, image: Any) -> Iterator[_Region]:
    """Regions of an image: a list, or of version 1 an object of numbered ones."""
    where = f"{folder.root / name}: {short(image.get('filename') if isinstance(image, dict) else image)}"
    regions = image.get("regions") if isinstance(image, dict) else None
    items = regions.values() if isinstance(regions, dict) else regions
    if not isinstance(items, Iterable) or isinstance(items, str):
        raise DataError(f"{where}: regions must be a list")
    for i, region in enumerate(items):
        shape = region.get("shape_attributes") if isinstance(region, dict) else None
        attributes = region.get("region_attributes") if isinstance(region, dict) else None
        if not isinstance(shape, dict):
            raise DataError(f"{where}: region {i} must have shape_attributes")
        yield _Region(shape, attributes if isinstance(attributes, dict) else {}, f"{where}, region {i}")


def _label_key(folder: Folder, regions: list[_Region]) -> str | None:
    """The attribute that is the class: the only one that all regions have, or the one named like a class."""
    keys = {key for region in regions for key, value in region.attributes.items() if _label(value)}
    if not keys:
        return None
    everywhere = sorted(k for k in keys if all(_label(region.attributes.get(k)) for region in regions))
    named = [key for key in everywhere if key.lower() in _LABEL_KEYS]
    if len(everywhere) == 1 or len(named) == 1:
        return (named or everywhere)[0]
    lacking = "every region has" if everywhere else "not every region has"
    raise DataError(
        f"{folder.root}: cannot tell which attribute of VIA's regions is the class; {lacking} "
        f"{', '.join(map(short, everywhere or sorted(keys)))}. Name one of them 'class'."
    )


def _label(value: object) -> str:
    """The text of an attribute; of check boxes the one that is set."""
    if isinstance(value, dict):
        chosen = [key for key, is_set in value.items() if is_set]
        return str(chosen[0]) if len(chosen) == 1 else ""
    return str(value).strip() if isinstance(value, str | int) else ""


def _add_region(builder: Builder, split: str, region: _Region, key: str | None) -> None:
    kind = region.shape.get("name")
    corners = _corners(str(kind), region.shape, region.where)
    if corners is None:
        builder.notes.count(f"regions without a box ({short(kind)}), left out", region.where)
        return
    if kind != "rect":
        builder.notes.count(f"regions of kind {kind}, read as the boxes around them", region.where)
    label = _label(region.attributes.get(key)) if key is not None else ONLY_CLASS
    builder.add_box(split, label, corners)


def _corners(kind: str, shape: Mapping[str, Any], where: str) -> list[float] | None:
    def number(name: str) -> float:
        return finite(shape.get(name), f"{where}: {name}")

    if kind == "rect":
        x, y = number("x"), number("y")
        return [x, y, x + number("width"), y + number("height")]
    if kind in ("circle", "ellipse"):
        x, y = number("cx"), number("cy")
        rx, ry = (number("r"),) * 2 if kind == "circle" else (number("rx"), number("ry"))
        return [x - rx, y - ry, x + rx, y + ry]
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise DataError(f"{where}: all_points_x and all_points_y must be lists of one length")
        return around(list(zip(xs, ys, strict=True)), where)
    return None
