"""SSD's augmentation (Liu et al., ECCV 2016, Sec. 2.2 and 3.6; the authors' Caffe code where it says more).

Expansion and crop together choose a window: a rectangle of the image's plane, which may leave the image. The
window is warped to the square; what is outside the image has the mean's colour. Differences from the authors'
code, which rounds to whole pixels at each step:

- The canvas is never made. Where the window leaves the image, the image's edge falls on a whole pixel of the
  square, so pixels move by up to half of one against the boxes.
- Images are reduced with an antialiasing filter, as this project's test images are; of OpenCV's only "area"
  is one.
- Colours are distorted after the warp and not before, on fewer pixels. It differs where a channel is clipped.
- A turn of the hue goes round the circle; theirs stops at red.

Boxes are (n, 4) float32, xyxy. Axis T: attempts at a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.config import Augmentation
from detector.data.decode import Pixels
from detector.data.sampler import Stream

Boxes = NDArray[np.float32]
Window = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the image."""

FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
    Image.Resampling.NEAREST,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
"""The five interpolations, all equally likely: linear, area, nearest, cubic and Lanczos."""

_HUES = 255
"""Steps of Pillow's hue in the whole circle: 0 and 255 are both red."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """Changes of all colours of an image.

    Attributes:
        brightness: added to all channels, of 255.
        contrast: factor of all channels.
        saturation: factor of the saturation.
        hue: turn of the hue circle, degrees.
        contrast_first: whether the contrast changes before saturation and hue, or after; brightness is first.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True


@dataclass(frozen=True, slots=True)
class View:
    """How an image is seen in one step.

    Attributes:
        window: what becomes the square.
        distortion: of the image's colours.
        resampling: the filter of the warp.
    """

    window: Window
    distortion: Distortion
    resampling: Image.Resampling


# --- what is drawn ---------------------------------------------------------------------------------


def draw_view(stream: Stream, size: tuple[int, int], boxes: Boxes, augmentation: Augmentation) -> View:
    """A random view of an image.

    Args:
        stream: gives the random numbers.
        size: (height, width) of the image.
        boxes: its objects, pixels of the image.
        augmentation: the probabilities and ranges.
    """
    height, width = size
    distortion = draw_distortion(stream, augmentation)
    canvas = draw_canvas(stream, (0.0, 0.0, float(width), float(height)), augmentation)
    window = draw_crop(stream, canvas, boxes, augmentation)
    return View(window, distortion, FILTERS[int(stream.uniform(0, len(FILTERS)))])


def draw_distortion(stream: Stream, augmentation: Augmentation) -> Distortion:
    """Each of the four changes with the probability of a distortion; both orders equally often."""
    contrast_first = stream.chance(0.5)

    def maybe(middle: float, reach: float) -> float:
        drawn = stream.uniform(middle - reach, middle + reach)
        return drawn if stream.chance(augmentation.distortion) else middle

    return Distortion(
        brightness=maybe(0.0, augmentation.brightness),
        contrast=maybe(1.0, augmentation.contrast),
        saturation=maybe(1.0, augmentation.saturation),
        hue=maybe(0.0, augmentation.hue),
        contrast_first=contrast_first,
    )


def draw_canvas(stream: Stream, image: Window, augmentation: Augmentation) -> Window:
    """The image's rectangle, or a larger one of its shape around it."""
    if not stream.chance(augmentation.expansion):
        return image
    ratio = stream.uniform(1.0, augmentation.max_expansion)
    width, height = image[2] - image[0], image[3] - image[1]
    left = image[0] - stream.uniform(0.0, (ratio - 1) * width)
    top = image[1] - stream.uniform(0.0, (ratio - 1) * height)
    return left, top, left + ratio * width, top + ratio * height


def draw_crop(stream: Stream, canvas: Window, boxes: Boxes, augmentation: Augmentation) -> Window:
    """The canvas, or a part of it that overlaps an object enough.

    The authors draw a crop for each overlap and choose one of those found. Trying them in random order until
    one is found gives each the same probability.
    """
    least: list[float | None] = [None, *augmentation.crop_ious, 0.0]
    for choice in stream.order(len(least)):
        iou = least[choice]
        if iou is None:
            return canvas
        if (crop := _crop_with(stream, canvas, boxes, iou, augmentation)) is not None:
            return crop
    return canvas


def _crop_with(
    stream: Stream, canvas: Window, boxes: Boxes, iou: float, augmentation: Augmentation
) -> Window | None:
    """The first crop of all attempts that an object overlaps with at least this IoU; None where none does."""
    if not len(boxes):
        return None
    crops_T4 = _crops(stream, canvas, augmentation)
    found = np.flatnonzero(overlaps(crops_T4, boxes).max(axis=1) >= iou)
    if not len(found):
        return None
    left, top, right, bottom = crops_T4[found[0]].tolist()
    return left, top, right, bottom


def _crops(stream: Stream, canvas: Window, augmentation: Augmentation) -> NDArray[np.float64]:
    """(T, 4) float64, xyxy, a crop for each attempt."""
    scales_T, aspects_T, x_T, y_T = stream.uniforms(4, augmentation.crop_attempts)
    scale_T = augmentation.crop_scale + scales_T * (1 - augmentation.crop_scale)
    widest_T = np.minimum(augmentation.crop_aspect, 1 / scale_T**2)  # no side is longer than the canvas's
    aspect_T = 1 / widest_T + aspects_T * (widest_T - 1 / widest_T)
    left, top, right, bottom = canvas
    width_T = (right - left) * scale_T * np.sqrt(aspect_T)
    height_T = (bottom - top) * scale_T / np.sqrt(aspect_T)
    x_T, y_T = left + x_T * (right - left - width_T), top + y_T * (bottom - top - height_T)
    return np.stack([x_T, y_T, x_T + width_T, y_T + height_T], axis=1)


def overlaps(windows: NDArray[np.float64], boxes: Boxes) -> NDArray[np.float64]:
    """(T, n) float64, IoU of T rectangles and n boxes."""
    low = np.maximum(boxes[:, :2], windows[:, None, :2])
    high = np.minimum(boxes[:, 2:], windows[:, None, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=2)
    areas_T, areas_n = (
        (rectangles[:, 2:] - rectangles[:, :2]).prod(axis=1) for rectangles in (windows, boxes)
    )
    union = areas_T[:, None] + areas_n - inside
    share: NDArray[np.float64] = inside / np.maximum(union, 1e-12)
    return share


# --- what becomes of boxes and pixels --------------------------------------------------------------


def boxes_in(window: Window, boxes: Boxes, side: int) -> tuple[Boxes, NDArray[np.bool_]]:
    """What a window shows of boxes.

    A box stays if its centre is in the window, and is cut at its border.

    Returns:
        (m, 4) float32, those that stay, pixels of the square; and (n,) bool, which these are.
    """
    corner = np.array(window[:2], dtype=np.float64)
    size = np.array(window[2:], dtype=np.float64) - corner
    relative = (boxes.reshape(-1, 2, 2) - corner) / size
    centre = relative.mean(axis=1)
    stays: NDArray[np.bool_] = ((centre >= 0) & (centre <= 1)).all(axis=1)
    cut = np.clip(relative[stays], 0, 1) * side
    return cut.reshape(-1, 4).astype(np.float32), stays


def pixels_in(view: View, image: Pixels, side: int, fill: Sequence[int]) -> Pixels:
    """What a window shows of an image.

    Args:
        view: the window, colours and filter.
        image: (H, W, 3) uint8 RGB.
        side: of the square, pixels.
        fill: RGB of what is outside the image.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    part = _part_inside(view.window, (image.shape[1], image.shape[0]), side)
    square = np.empty((side, side, 3), dtype=np.uint8)
    if part is None:
        square[:] = fill
        return square
    left, top, right, bottom, box = part
    seen = Image.fromarray(image).resize((right - left, bottom - top), view.resampling, box=box)
    if (right - left, bottom - top) != (side, side):
        square[:] = fill
    square[top:bottom, left:right] = np.asarray(distorted(seen, view.distortion))
    return square


def _part_inside(
    window: Window, size: tuple[int, int], side: int
) -> tuple[int, int, int, int, Window] | None:
    """Where the image is in the square (whole pixels), and the part of the image that is seen there.

    Args:
        window: pixels of the image.
        size: (width, height) of the image.
        side: of the square.
    """
    places, parts = [], []
    for axis in (0, 1):
        start, end = window[axis], window[axis + 2]
        low, high = max(start, 0.0), min(end, float(size[axis]))
        if high <= low:
            return None
        scale = side / (end - start)
        first, last = round((low - start) * scale), round((high - start) * scale)
        if first == last:  # less than half a pixel
            return None
        places.append((first, last))
        parts.append((low, high))
    (left, right), (top, bottom) = places
    return left, top, right, bottom, (parts[0][0], parts[1][0], parts[0][1], parts[1][1])


def distorted(image: Image.Image, distortion: Distortion) -> Image.Image:
    """An RGB image with other colours; each channel is clipped to 0..255 after every change."""
    levels = np.arange(256, dtype=np.float64)
    before = _clipped(levels + distortion.brightness)
    contrast = _clipped(levels * distortion.contrast)
    if distortion.contrast_first:
        before, contrast = contrast[before], _clipped(levels)
    image = _mapped(image, before, before, before)
    if distortion.hue or distortion.saturation != 1:
        hue = ((levels + round(distortion.hue * _HUES / 360)) % _HUES).astype(np.uint8)
        saturation = _clipped(levels * distortion.saturation)
        image = _mapped(image.convert("HSV"), hue, saturation, _clipped(levels)).convert("RGB")
    return _mapped(image, contrast, contrast, contrast)


def _clipped(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _mapped(image: Image.Image, *tables: NDArray[np.uint8]) -> Image.Image:
    """Each channel by its table of 256 levels."""
    table = np.concatenate(tables)
    if (table == np.tile(np.arange(256, dtype=np.uint8), len(tables))).all():
        return image
    return image.point(table.tolist())
