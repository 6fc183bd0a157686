"""Boxes that are not what COCO says (x, y, width, height in pixels): told by all of a split together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detector.data.formats.notes import Notes

BoxForm = Literal["xywh", "corners", "relative"]
"""COCO's; [x1, y1, x2, y2] in pixels; x, y, width, height relative to the image's."""

BOX_FORMS: tuple[BoxForm, ...] = get_args(BoxForm)

_NEARLY_ALL = 0.99
_LEAVING = 1 / 3
"""Share of boxes that must leave the image, read as COCO's, before corners are suspected."""

_FEWEST = 4
"""Boxes from which on a suspicion is voiced: three can look like anything."""

Item = dict[str, Any]


def suspected_form(coco: Mapping[str, Sequence[Item]]) -> BoxForm:
    """What the boxes of a split look like.

    Relative: nearly all numbers are within 0 to 1. Corners: nearly all boxes fit into their images as corners
    and a third leaves them as COCO's.
    """
    boxes, sizes = _boxes_and_sizes(coco)
    if len(boxes) < _FEWEST:
        return "xywh"
    if ((boxes >= 0) & (boxes <= 1)).all(axis=1).mean() >= _NEARLY_ALL:
        return "relative"
    low, high = boxes[:, :2], boxes[:, 2:]
    fit_as_corners = ((high > low) & (high <= sizes + 1)).all(axis=1)
    leave = (low + high > sizes + 1).any(axis=1)
    if fit_as_corners.mean() >= _NEARLY_ALL and leave.mean() >= _LEAVING:
        return "corners"
    return "xywh"


def _boxes_and_sizes(coco: Mapping[str, Sequence[Item]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, 4) and (n, 2) float64: bbox and image size (width, height) of each well-formed annotation."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    rows = [(a["bbox"], sizes[a["image_id"]]) for a in coco["annotations"] if a["image_id"] in sizes]
    boxes = np.array([box for box, _ in rows], dtype=np.float64).reshape(-1, 4)
    return boxes, np.array([size for _, size in rows], dtype=np.float64).reshape(-1, 2)


def convert_boxes(coco: Mapping[str, Sequence[Item]], form: BoxForm, notes: Notes) -> None:
    """Write boxes of `form` as COCO's, in place; their areas are then those of the boxes."""
    if form == "xywh":
        return
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    for i, annotation in enumerate(coco["annotations"]):
        x, y, third, fourth = annotation["bbox"]
        if form == "corners":
            annotation["bbox"] = [x, y, third - x, fourth - y]
        elif annotation["image_id"] in sizes:
            width, height = sizes[annotation["image_id"]]
            annotation["bbox"] = [x * width, y * height, third * width, fourth * height]
        annotation.pop("area", None)
        notes.count(f"boxes converted from {form}, as asked for", f"annotations[{i}]")
