"""CVAT's own XML ("CVAT for images"): one annotations.xml of <image> elements with <box> and <polygon>."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from detector.data.formats.contents import (
    ALL,
    Builder,
    Content,
    around,
    pixel_size,
    split_of,
    split_of_path,
    usable_splits,
)
from detector.data.formats.folder import Folder, parent
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import finite, read_xml
from detector.errors import DataError

_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_LEFT_OUT = ("points", "polyline", "skeleton", "cuboid", "ellipse", "mask", "tag")


def read(folder: Folder, notes: Notes) -> dict[str, Content]:
    """All XML files of the folder whose root is <annotations>.

    Raises:
        DataError: a file is not XML, or lacks what a box needs.
    """
    builder = Builder(folder, notes)
    for name in folder.named(".xml"):
        root = read_xml(folder.root / name)
        for element in root.findall("image") if root.tag == "annotations" else ():
            _add_image(builder, name, element)
    return usable_splits(builder.contents(), notes)


def _add_image(builder: Builder, name: str, element: Element) -> None:
    stated = element.get("name", "")
    found = builder.folder.find_image(stated, parent(name)) or builder.folder.find_image(stated)
    if found is None:
        builder.notes.count("images that were not found, left out", stated)
        return
    split = split_of(element.get("subset", "")) or split_of_path(found) or ALL
    builder.add_image(split, found, pixel_size(element.get("width"), element.get("height")))
    for shape in element:
        where = f"{builder.folder.root / name}: image {stated!r}, <{shape.tag}>"
        if shape.tag in _LEFT_OUT:
            builder.notes.count(f"shapes without a box (<{shape.tag}>), left out", where)
        elif shape.tag in ("box", "polygon"):
            _add_shape(builder, split, shape, where)


def _add_shape(builder: Builder, split: str, shape: Element, where: str) -> None:
    if not (label := shape.get("label")):
        raise DataError(f"{where}: needs a label")
    turned = finite(shape.get("rotation", "0"), f"{where}: rotation")
    if shape.tag == "box":
        corners = [finite(shape.get(key), f"{where}: {key}") for key in _CORNERS]
        corners = _around_turned(corners, turned) if turned else corners
    else:
        corners = around([point.split(",") for point in shape.get("points", "").split(";")], where)
    if shape.tag == "polygon" or turned:
        builder.notes.count("polygons and turned boxes, read as the boxes around them", where)
    builder.add_box(split, label, corners)


def _around_turned(corners: Sequence[float], degrees: float) -> list[float]:
    """The box around one that is turned about its centre."""
    x1, y1, x2, y2 = corners
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = (x2 - x1) * cos + (y2 - y1) * sin, (x2 - x1) * sin + (y2 - y1) * cos
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
