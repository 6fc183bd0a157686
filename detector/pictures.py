"""Pictures of images with boxes.

With ground truth and detections in one picture, ground truth is dashed, blue on white, with its class, and
detections are solid and orange, with class and score. With one of the two alone, boxes have the colour of
their class. Boxes are xyxy, in pixels of the image before enlargement.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from detector.files import write_and_rename

Array = npt.NDArray[Any]
Corners = tuple[float, float, float, float]
Colour = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

TRUTH_COLOUR: Colour = (0, 90, 220)
DETECTION_COLOUR: Colour = (255, 150, 0)
CLASS_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Colours for colour-blind people too (Okabe and Ito 2008, "Color universal design"); class c has c % 7."""

_INK: Colour = (20, 20, 20)
_PAPER: Colour = (255, 255, 255)
_DASH = 7  # pixels of the enlarged picture, drawn and left out in turn
_MARGIN = 12
_TAG_SIZE, _TITLE_SIZE = 13, 20
_WIDER_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc"),
    *("Arial Unicode.ttf", "PingFang.ttc", "msyh.ttc", "YuGothM.ttc", "malgun.ttf"),
)
"""Fonts of Linux, macOS and Windows; Pillow's own has the letters of western Europe only."""
_NO_CHARACTER = "\uffff"
_SMALL_AREA = 64 * 64  # boxes below, in pixels of the enlarged picture, are kept free of tags


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
    """Draws one image's ground truth and detections, the best detections on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (D, 4) floats, xyxy in image pixels.
        scores: (D,) floats, 0 to 1.
        labels: (D,) integers, indices into `class_names`.
        truth_boxes: (G, 4) floats, xyxy in image pixels.
        truth_labels: (G,) integers, indices into `class_names`.
        class_names: K names.
        scale: enlargement; 3 or 4 makes the tags of a 96-pixel image legible.
        min_score: detections below are not drawn.

    Returns:
        RGB picture of scale * W by scale * H pixels.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image).resize((scale * width, scale * height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for box in truth_boxes:
        _dashed_box(draw, _corners(box, scale), TRUTH_COLOUR, _PAPER)
    order = [d for d in np.argsort(scores, kind="stable").tolist() if scores[d] >= min_score]
    for d in order:
        _solid_box(draw, _corners(boxes[d], scale), DETECTION_COLOUR)
    taken: list[Corners] = []
    for d in reversed(order):  # tags of the best are placed first
        text = f"{class_names[int(labels[d])]} {scores[d]:.2f}"
        places = _tag_places(_corners(boxes[d], scale), text, picture.size, from_top=True)
        taken.append(next((p for p in places if not any(_overlap(p, t) for t in taken)), places[0]))
        _tag(draw, taken[-1], text, DETECTION_COLOUR, _INK)
    for box, label in zip(truth_boxes, truth_labels, strict=True):
        text = class_names[int(label)]
        places = _tag_places(_corners(box, scale), text, picture.size, from_top=False)
        free = [p for p in places if not any(_overlap(p, t) for t in taken)]
        for place in free[:1]:  # tags of detections go before names of objects
            taken.append(place)
            _tag(draw, place, text, TRUTH_COLOUR, _PAPER)
    return picture


def draw_by_class(
    image: npt.NDArray[np.uint8],
    boxes: Array,
    labels: Array,
    tags: Sequence[str],
    scale: float = 1.0,
    dashed: Array | None = None,
) -> Image.Image:
    """Draws boxes in the colour of their class, small ones on top of large ones, each with a tag.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (D, 4) floats, xyxy in image pixels.
        labels: (D,) integers, at least 0; the class decides the colour.
        tags: D texts, most important first; one without a free place is not drawn.
        scale: enlargement.
        dashed: (D,) bool, True for dashed boxes; None for none.

    Returns:
        RGB picture of the enlarged size.
    """
    height, width = image.shape[:2]
    size = max(1, round(scale * width)), max(1, round(scale * height))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    corners = [_corners(box, scale) for box in boxes]
    colours = [CLASS_COLOURS[int(label) % len(CLASS_COLOURS)] for label in labels]
    for d in sorted(range(len(corners)), key=lambda d: -_area(corners[d])):
        if dashed is not None and dashed[d]:
            _dashed_box(draw, corners[d], _INK, colours[d])
        else:
            _solid_box(draw, corners[d], colours[d])
    small = [box for box in corners if _area(box) < _SMALL_AREA]
    taken: list[Corners] = []
    for box, colour, tag in zip(corners, colours, tags, strict=True):
        places = _tag_places(box, tag, picture.size, from_top=True)
        free = [p for p in places if not any(_overlap(p, t) for t in taken)]
        clear = [p for p in free if not any(_overlap(p, other) for other in small)]
        for place in (clear or free)[:1]:
            taken.append(place)
            _tag(draw, place, tag, colour, _INK if sum(colour) > 330 else _PAPER)
    return picture


def contact_sheet(
    images: Sequence[Image.Image], columns: int, path: Path, title: str, note: str | None = None
) -> None:
    """Arranges pictures in rows under a title and a legend, and writes them as one PNG.

    Args:
        images: at least one; each is centred in a cell as wide as the widest and as high as its row.
        columns: cells in a row.
        path: of the PNG, which is written atomically.
        title: text above the pictures.
        note: line under the title; None for the legend of `draw_detections`.

    Raises:
        ValueError: no picture, or no column.
    """
    if not images or columns < 1:
        raise ValueError(f"need at least one picture and one column, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    cell_width = max(image.width for image in images) + _MARGIN
    cell_heights = [max(image.height for image in row) + _MARGIN for row in rows]
    header = _header(title, note, columns * cell_width + _MARGIN)
    sheet = Image.new("RGB", (header.width, header.height + sum(cell_heights)), _PAPER)
    sheet.paste(header)
    top = header.height
    for row, cell_height in zip(rows, cell_heights, strict=True):
        for column, image in enumerate(row):
            x = _MARGIN + column * cell_width + (cell_width - _MARGIN - image.width) // 2
            sheet.paste(image, (x, top + (cell_height - _MARGIN - image.height) // 2))
        top += cell_height
    write_png(sheet, path)


def write_png(picture: Image.Image, path: Path) -> None:
    """Writes a picture atomically."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_and_rename(path, buffer.getvalue())


def _header(title: str, note: str | None, min_width: int) -> Image.Image:
    """Title and the line below it, at least `min_width` wide."""
    font, small = _font(title, _TITLE_SIZE), _font(note or "", _TAG_SIZE)
    texts = int(max(font.getlength(title), small.getlength(note or "")))
    header = Image.new(
        "RGB", (max(min_width, texts + 2 * _MARGIN, 280), _TITLE_SIZE + _TAG_SIZE + 4 * _MARGIN), _PAPER
    )
    draw = ImageDraw.Draw(header)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    y = 2 * _MARGIN + _TITLE_SIZE
    if note is not None:
        draw.text((_MARGIN, y), note, fill=_INK, font=small)
        return header
    swatch = (_MARGIN, y, _MARGIN + 36.0, y + 16.0)
    _dashed_box(draw, swatch, TRUTH_COLOUR, _PAPER)
    _legend_text(draw, swatch, "ground truth")
    swatch = (_MARGIN + 150, y, _MARGIN + 186.0, y + 16.0)
    _solid_box(draw, swatch, DETECTION_COLOUR)
    _legend_text(draw, swatch, "detection")
    return header


def _legend_text(draw: ImageDraw.ImageDraw, swatch: Corners, text: str) -> None:
    _, y0, x1, y1 = swatch
    font = _font(text, _TAG_SIZE)
    draw.text((x1 + 6, (y0 + y1) / 2), text, fill=_INK, font=font, anchor="lm")


@lru_cache
def _font(text: str, size: int) -> Font:
    """Pillow's own font, or the first of the machine's with the characters of a text that it lacks."""
    own = ImageFont.load_default(size)
    for name in _WIDER_FONTS if _lacks(own, text) else ():
        with suppress(OSError):  # it is not installed
            if not _lacks(font := ImageFont.truetype(name, size), text):
                return font
    return own


def _lacks(font: Font, text: str) -> bool:
    """Whether a font lacks a character, and draws a box instead."""
    box = bytes(font.getmask(_NO_CHARACTER))
    return any(bytes(font.getmask(character)) == box for character in set(text) if not character.isspace())


def _corners(box: Array, scale: float) -> Corners:
    x0, y0, x1, y1 = (round(scale * float(side)) for side in box)
    return x0, y0, x1, y1


def _solid_box(draw: ImageDraw.ImageDraw, box: Corners, colour: Colour) -> None:
    x0, y0, x1, y1 = box
    # A thin dark edge separates the box from an image of the same colour.
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_INK, width=1)
    draw.rectangle(box, outline=colour, width=3)


def _dashed_box(draw: ImageDraw.ImageDraw, box: Corners, dashes: Colour, gaps: Colour) -> None:
    x0, y0, x1, y1 = box
    draw.rectangle(box, outline=gaps, width=2)  # a colour between the dashes: visible on any image
    for start in np.arange(x0, x1, 2 * _DASH).tolist():
        for y in (y0, y1):
            draw.line((start, y, min(start + _DASH, x1), y), fill=dashes, width=2)
    for start in np.arange(y0, y1, 2 * _DASH).tolist():
        for x in (x0, x1):
            draw.line((x, start, x, min(start + _DASH, y1)), fill=dashes, width=2)


def _tag(draw: ImageDraw.ImageDraw, place: Corners, text: str, paper: Colour, ink: Colour) -> None:
    draw.rectangle(place, fill=paper)
    x0, y0, x1, y1 = place
    font = _font(text, _TAG_SIZE)
    draw.text(((x0 + x1) / 2, (y0 + y1) / 2), text, fill=ink, font=font, anchor="mm")


def _tag_places(box: Corners, text: str, size: tuple[int, int], from_top: bool) -> list[Corners]:
    """Places for a tag at the corners of a box, best first, moved inside a picture of `size`."""
    width, height = _font(text, _TAG_SIZE).getlength(text) + 6, _TAG_SIZE + 3
    x0, y0, x1, y1 = box
    rows = [y0 - height, y0, y1 - height, y1]
    tops = [min(max(y, 0), size[1] - height) for y in (rows if from_top else rows[::-1])]
    lefts = [min(max(x, 0), size[0] - width) for x in (x0, x1 - width)]
    return [(x, y, x + width, y + height) for y in tops for x in lefts]


def _overlap(a: Corners, b: Corners) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
