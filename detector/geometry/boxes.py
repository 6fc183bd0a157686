"""Arithmetic on boxes in continuous coordinates: width = x2 - x1, with no "+ 1 pixel".

Axes: `...` any leading axes, M and P boxes of two sets. Boxes are xyxy unless a name says xywh, in pixels of
one image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes.

    Args:
        boxes: (..., 4) float, xyxy.

    Returns:
        (...) float, square pixels; the product of the sides, not clamped.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of `a` with every box of `b`.

    The float32 expression inter / (area_a + area_b - inter) has the reference's order of operations:
    RetinaNet's rule compares the results for equality, so another order would assign other anchors.

    Args:
        a: (..., M, 4) float, xyxy.
        b: (..., P, 4) float, xyxy; leading axes broadcast against those of `a`.

    Returns:
        (..., M, P) in [0, 1]; 0 where both boxes have no area.
    """
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)
    # One contiguous row per coordinate, so that the operations below run along P at stride 1.
    bx1, by1, bx2, by2 = b.mT.contiguous().unsqueeze(-3).unbind(-2)
    # In place: allocating (..., M, P) takes longer than the arithmetic.
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    inter = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0).mul_(width)
    del width
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(inter)
    return inter.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes given as COCO's (x, y, width, height).

    Args:
        boxes: (..., 4) float, top left corner and size.

    Returns:
        (..., 4) float, xyxy.
    """
    corner, size = boxes.chunk(2, dim=-1)
    return torch.cat((corner, corner + size), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """COCO's (x, y, width, height) of boxes given by their corners.

    Args:
        boxes: (..., 4) float, xyxy.

    Returns:
        (..., 4) float, top left corner and size.
    """
    low, high = boxes.chunk(2, dim=-1)
    return torch.cat((low, high - low), dim=-1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes cut at the borders of an image.

    Args:
        boxes: (..., 4) float, xyxy.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        (..., 4) float, x in [0, width] and y in [0, height]; a box outside has no area.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    sides = (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height))
    return torch.stack(sides, dim=-1)


def flip_horizontal(boxes: Tensor, width: float) -> Tensor:
    """Boxes of a horizontally flipped image.

    Args:
        boxes: (..., 4) float, xyxy.
        width: of the image, pixels.

    Returns:
        (..., 4) float, xyxy: x becomes width - x.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)
