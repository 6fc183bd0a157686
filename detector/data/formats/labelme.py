"""LabelMe: one JSON file an image, whose "shapes" are rectangles, polygons, circles and others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detector.data.formats.contents import (
    ALL,
    Builder,
    Content,
    around,
    pixel_size,
    split_of_path,
    usable_splits,
)
from detector.data.formats.folder import Folder, parent
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import read_json, short
from detector.errors import DataError

_BOXED = ("rectangle", "polygon", "mask", "rotation", "oriented_rectangle")
"""Kinds of shapes that the box around their points stands for."""


def label_files(folder: Folder) -> Iterator[str]:
    """JSON files named as an image beside them, or in a folder of their own beside the images'."""
    stems = {Path(image).stem for image in folder.images}
    yield from (name for name in folder.named(".json") if Path(name).stem in stems)


def is_labelme(value: object) -> bool:
    """Whether the value of a JSON file is LabelMe's."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def read(folder: Folder, notes: Notes) -> dict[str, Content]:
    """All JSON files of the folder that are LabelMe's.

    Raises:
        DataError: a file is not JSON, or a shape lacks what its box needs.
    """
    builder = Builder(folder, notes)
    described = set()
    for name in label_files(folder):
        value = read_json(folder.root / name)
        if is_labelme(value) and (image := _image(folder, name, value, notes)):
            described.add(image)
            split = split_of_path(image) or ALL
            builder.add_image(split, image, pixel_size(value.get("imageWidth"), value.get("imageHeight")))
            for i, shape in enumerate(value["shapes"]):
                _add(builder, split, shape, f"{folder.root / name}: shapes[{i}]")
    for image in folder.images:
        if image not in described:
            notes.count("images without a JSON file, left out", image)
    return usable_splits(builder.contents(), notes)


def _image(folder: Folder, name: str, value: Mapping[str, Any], notes: Notes) -> str | None:
    stated = str(value["imagePath"])
    found = folder.find_image(stated, parent(name)) or folder.find_image(stated)
    if found is None:
        notes.count("JSON files without their image, left out", f"{name}, which names {short(stated)}")
    return found


def _add(builder: Builder, split: str, shape: object, where: str) -> None:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise DataError(f"{where}: must be an object with a label")
    kind = shape.get("shape_type") or "polygon"  # as in files before shape_type was introduced
    points = shape.get("points")
    if kind == "circle":
        corners = _around_circle(points, where)
    elif kind in _BOXED:
        corners = around(points if isinstance(points, list) else [], where)
    else:
        builder.notes.count(f"shapes without a box ({short(kind)}), left out", where)
        return
    if kind != "rectangle":
        builder.notes.count(f"shapes of kind {kind}, read as the boxes around them", where)
    builder.add_box(split, shape["label"], corners)


def _around_circle(points: object, where: str) -> list[float]:
    """Of a circle: its centre and a point of its edge."""
    if not isinstance(points, list) or len(points) != 2:
        raise DataError(f"{where}: a circle needs two points, its centre and one of its edge")
    (x, y), (edge_x, edge_y) = around(points[:1], where)[:2], around(points[1:], where)[:2]
    radius = math.hypot(edge_x - x, edge_y - y)
    return [x - radius, y - radius, x + radius, y + radius]
