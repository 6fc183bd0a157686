"""Pictures of detections beside the ground truth, for people to look at.

Ground truth is dashed, blue on white, with its class; detections are solid and orange, with class and
score. Boxes are xyxy, in pixels of the image before enlargement.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from detector.files import write_and_rename

Array = npt.NDArray[Any]
Corners = tuple[float, float, float, float]
Colour = tuple[int, int, int]

TRUTH_COLOUR: Colour = (0, 90, 220)
DETECTION_COLOUR: Colour = (255, 150, 0)
_INK: Colour = (20, 20, 20)
_PAPER: Colour = (255, 255, 255)
_DASH = 7  # pixels of the enlarged picture, drawn and left out in turn
_MARGIN = 12
_TAG_SIZE, _TITLE_SIZE = 13, 20


def draw_detections(
    image: npt.NDArray[np.uint8],
    boxes: Array,
    scores: Array,
    labels: Array,
    truth_boxes: Array,
    truth_labels: Array,
    class_names: Sequence[str],
    scale: int = 1,
    min_score: float = 0.3,
) -> Image.Image:
    """Draw one image's ground truth and detections; the best detections lie on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (D, 4) floats, xyxy in image pixels.
        scores: (D,) floats, 0 to 1.
        labels: (D,) integers, places in `class_names`.
        truth_boxes: (G, 4) floats, xyxy in image pixels.
        truth_labels: (G,) integers, places in `class_names`.
        class_names: K names.
        scale: enlargement; 3 or 4 makes the tags of a 96-pixel image legible.
        min_score: detections below are left out: a detector keeps a hundred, and most are noise.

    Returns:
        RGB picture of scale * W by scale * H pixels.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image).resize((scale * width, scale * height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for box in truth_boxes:
        _dashed_box(draw, _corners(box, scale))
    order = [d for d in np.argsort(scores, kind="stable").tolist() if scores[d] >= min_score]
    for d in order:
        _solid_box(draw, _corners(boxes[d], scale))
    taken: list[Corners] = []
    for d in reversed(order):  # the best choose their tag's place first
        text = f"{class_names[int(labels[d])]} {scores[d]:.2f}"
        places = _tag_places(_corners(boxes[d], scale), text, picture.size, from_top=True)
        taken.append(next((p for p in places if not any(_overlap(p, t) for t in taken)), places[0]))
        _tag(draw, taken[-1], text, DETECTION_COLOUR, _INK)
    for box, label in zip(truth_boxes, truth_labels, strict=True):
        text = class_names[int(label)]
        places = _tag_places(_corners(box, scale), text, picture.size, from_top=False)
        free = [p for p in places if not any(_overlap(p, t) for t in taken)]
        for place in free[:1]:  # an object's name gives way to the detections' tags
            taken.append(place)
            _tag(draw, place, text, TRUTH_COLOUR, _PAPER)
    return picture


def contact_sheet(images: Sequence[Image.Image], columns: int, path: Path, title: str) -> None:
    """Lay pictures out in rows under a title and a legend, and write them as one PNG.

    Args:
        images: at least one; each is centred in a cell as large as the largest.
        columns: cells in a row.
        path: of the PNG; written beside and renamed.
        title: above the pictures.

    Raises:
        ValueError: no picture, or no column.
    """
    if not images or columns < 1:
        raise ValueError(f"need at least one picture and one column, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_width = max(image.width for image in images) + _MARGIN
    cell_height = max(image.height for image in images) + _MARGIN
    header = _header(title, columns * cell_width + _MARGIN)
    sheet = Image.new("RGB", (header.width, header.height + rows * cell_height), _PAPER)
    sheet.paste(header)
    for n, image in enumerate(images):
        row, column = divmod(n, columns)
        x = _MARGIN + column * cell_width + (cell_width - _MARGIN - image.width) // 2
        y = header.height + row * cell_height + (cell_height - _MARGIN - image.height) // 2
        sheet.paste(image, (x, y))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_and_rename(path, buffer.getvalue())


def _header(title: str, min_width: int) -> Image.Image:
    """Title line and legend line, at least `min_width` wide and as wide as the title needs."""
    font = ImageFont.load_default(_TITLE_SIZE)
    width = max(min_width, int(font.getlength(title)) + 2 * _MARGIN, 280)
    header = Image.new("RGB", (width, _TITLE_SIZE + _TAG_SIZE + 4 * _MARGIN), _PAPER)
    draw = ImageDraw.Draw(header)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    y = 2 * _MARGIN + _TITLE_SIZE
    swatch = (_MARGIN, y, _MARGIN + 36.0, y + 16.0)
    _dashed_box(draw, swatch)
    _legend_text(draw, swatch, "ground truth")
    swatch = (_MARGIN + 150, y, _MARGIN + 186.0, y + 16.0)
    _solid_box(draw, swatch)
    _legend_text(draw, swatch, "detection")
    return header


def _legend_text(draw: ImageDraw.ImageDraw, swatch: Corners, text: str) -> None:
    _, y0, x1, y1 = swatch
    font = ImageFont.load_default(_TAG_SIZE)
    draw.text((x1 + 6, (y0 + y1) / 2), text, fill=_INK, font=font, anchor="lm")


def _corners(box: Array, scale: int) -> Corners:
    x0, y0, x1, y1 = (round(scale * float(side)) for side in box)
    return x0, y0, x1, y1


def _solid_box(draw: ImageDraw.ImageDraw, box: Corners) -> None:
    x0, y0, x1, y1 = box
    # A thin dark edge keeps the colour apart from an image of the same colour.
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_INK, width=1)
    draw.rectangle(box, outline=DETECTION_COLOUR, width=3)


def _dashed_box(draw: ImageDraw.ImageDraw, box: Corners) -> None:
    x0, y0, x1, y1 = box
    draw.rectangle(box, outline=_PAPER, width=2)  # white between the dashes: visible on any image
    for start in np.arange(x0, x1, 2 * _DASH).tolist():
        for y in (y0, y1):
            draw.line((start, y, min(start + _DASH, x1), y), fill=TRUTH_COLOUR, width=2)
    for start in np.arange(y0, y1, 2 * _DASH).tolist():
        for x in (x0, x1):
            draw.line((x, start, x, min(start + _DASH, y1)), fill=TRUTH_COLOUR, width=2)


def _tag(draw: ImageDraw.ImageDraw, place: Corners, text: str, paper: Colour, ink: Colour) -> None:
    draw.rectangle(place, fill=paper)
    x0, y0, x1, y1 = place
    font = ImageFont.load_default(_TAG_SIZE)
    draw.text(((x0 + x1) / 2, (y0 + y1) / 2), text, fill=ink, font=font, anchor="mm")


def _tag_places(box: Corners, text: str, size: tuple[int, int], from_top: bool) -> list[Corners]:
    """Places for a tag at the corners of a box, best first, moved inside a picture of `size`."""
    width, height = ImageFont.load_default(_TAG_SIZE).getlength(text) + 6, _TAG_SIZE + 3
    x0, y0, x1, y1 = box
    rows = [y0 - height, y0, y1 - height, y1]
    tops = [min(max(y, 0), size[1] - height) for y in (rows if from_top else rows[::-1])]
    lefts = [min(max(x, 0), size[0] - width) for x in (x0, x1 - width)]
    return [(x, y, x + width, y + height) for y in tops for x in lefts]


def _overlap(a: Corners, b: Corners) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
