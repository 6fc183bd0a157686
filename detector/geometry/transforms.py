"""Image sizes and box arithmetic in numpy, for data before it becomes tensors.

Axes: n boxes. Coordinates are continuous (width = x2 - x1); `detector.geometry.boxes` has the same
arithmetic on tensors, for the model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def resized_size(width: int, height: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """Size of an image that is resized to `short_side`, with its aspect ratio.

    The short side is reduced where the long side would exceed `max_long_side`. The other side is truncated,
    as in the reference, so the long side may exceed its limit by a pixel.

    Args:
        width, height: original size in pixels.
        short_side, max_long_side: as in `config.Data`.

    Returns:
        (height, width) in pixels.
    """
    low, high = min(width, height), max(width, height)
    short = short_side
    if high / low * short_side > max_long_side:
        short = max(1, round(max_long_side * low / high))
    long = int(short * high / low)
    return (long, short) if width < height else (short, long)


def xywh_to_xyxy(boxes: Floats) -> Floats:
    """Corners of boxes given as COCO's (x, y, width, height).

    Args:
        boxes: (n, 4) float.

    Returns:
        (n, 4) float of the same precision.
    """
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def scale_boxes(boxes: Floats, old_hw: tuple[int, int], new_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes of a resized image; each axis has its own factor, because sizes are whole pixels.

    Args:
        boxes: (n, 4) float, xyxy, pixels of the image of size `old_hw` (height, width).

    Returns:
        (n, 4) float32, xyxy, pixels of the image of size `new_hw`.
    """
    y, x = new_hw[0] / old_hw[0], new_hw[1] / old_hw[1]
    scaled: Floats = boxes * np.array((x, y, x, y))
    return scaled.astype(np.float32)


def flip_boxes(boxes: Floats, width: Floats | float) -> Floats:
    """Boxes of a horizontally flipped image.

    Args:
        boxes: (..., 4) float, xyxy, pixels.
        width: of the image without padding; an array must broadcast against the leading axes.

    Returns:
        (..., 4) float, xyxy.
    """
    flipped = boxes.copy()
    flipped[..., 0] = width - boxes[..., 2]
    flipped[..., 2] = width - boxes[..., 0]
    return flipped
