"""Box coders: a box as offsets of an anchor box, or as distances from the anchor's centre.

Axes: `...` any leading axes, A anchors. Boxes are xyxy float, input-image pixels. A coder also has the
activation of the head's raw output and the initial bias of its last layer. Sections 2 and 3.2 of the paper;
the constants are those of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_MAX_LOG_SCALE = math.log(1000 / 16)
"""A decoded side is at most 62.5 times the anchor's, so that exp() cannot overflow early in training."""


class Coder(Protocol):
    """The interface of a coder.

    Attributes:
        initial_bias: of the head's regression layer.
    """

    initial_bias: float

    def activate(self, raw: Tensor) -> Tensor:
        """The head's (scaled) output as deltas."""

    def encode(self, boxes_gt: Tensor, grid_boxes: Tensor, strides: Tensor) -> Tensor:
        """Deltas that decode to `boxes_gt`."""

    def decode(self, deltas: Tensor, grid_boxes: Tensor, strides: Tensor) -> Tensor:
        """Boxes of deltas."""


class BoxCoder:
    """(dx, dy, dw, dh): the centre's move in anchor sides and the sides' log ratios, times weights.

    Args:
        weights: factors of dx, dy, dw and dh.
    """

    initial_bias = 0.0

    def __init__(self, weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)) -> None:
        self._weights = tuple(weights)

    def activate(self, raw: Tensor) -> Tensor:
        """The output unchanged: offsets may be negative."""
        return raw

    def encode(self, boxes_gt: Tensor, grid_boxes: Tensor, strides: Tensor) -> Tensor:
        """Deltas of ground-truth boxes.

        Args:
            boxes_gt: (..., A, 4) float, xyxy; a side of 0 gives -inf.
            grid_boxes: (..., A, 4) float, xyxy, the anchors.
            strides: (..., A) float; not used.

        Returns:
            (..., A, 4) float.
        """
        center, size = _center_and_size(grid_boxes)
        center_gt, size_gt = _center_and_size(boxes_gt)
        offsets = (*((center_gt - center) / size).unbind(-1), *(size_gt / size).log().unbind(-1))
        return torch.stack([d * w for d, w in zip(offsets, self._weights, strict=True)], dim=-1)

    def decode(self, deltas: Tensor, grid_boxes: Tensor, strides: Tensor) -> Tensor:
        """Boxes of deltas.

        Args:
            deltas: (..., A, 4) float.
            grid_boxes: (..., A, 4) float, xyxy, the anchors.
            strides: (..., A) float; not used.

        Returns:
            (..., A, 4) float, xyxy, not clipped; sides are at most 62.5 times the anchor's.
        """
        center, size = _center_and_size(grid_boxes)
        offsets = [d / w for d, w in zip(deltas.unbind(-1), self._weights, strict=True)]
        center = center + torch.stack(offsets[:2], dim=-1) * size
        half = torch.stack(offsets[2:], dim=-1).clamp(max=_MAX_LOG_SCALE).exp() * size / 2
        return torch.cat((center - half, center + half), dim=-1)


class PointCoder:
    """(l, t, r, b): distances from the anchor's centre to the four sides, in strides of its level.

    For square anchors this is what the authors' code computes from the anchor's width.
    """

    # Half of the 8 S anchor, in strides: the first boxes have the anchors' size, as with BoxCoder.
    initial_bias = 4.0

    def activate(self, raw: Tensor) -> Tensor:
        """ReLU of the output: distances are not negative."""
        return raw.relu()

    def encode(self, boxes_gt: Tensor, grid_boxes: Tensor, strides: Tensor) -> Tensor:
        """Distances to ground-truth boxes.

        Args:
            boxes_gt: (..., A, 4) float, xyxy.
            grid_boxes: (..., A, 4) float, xyxy; only the centres count.
            strides: (..., A) float, pixels.

        Returns:
            (..., A, 4) float, strides; negative where the centre lies outside the box.
        """
        center, _ = _center_and_size(grid_boxes)
        low, high = boxes_gt.chunk(2, dim=-1)
        return torch.cat((center - low, high - center), dim=-1) / strides.unsqueeze(-1)

    def decode(self, deltas: Tensor, grid_boxes: Tensor, strides: Tensor) -> Tensor:
        """Boxes of distances.

        Args:
            deltas: (..., A, 4) float, strides.
            grid_boxes: (..., A, 4) float, xyxy; only the centres count.
            strides: (..., A) float, pixels.

        Returns:
            (..., A, 4) float, xyxy, not clipped.
        """
        center, _ = _center_and_size(grid_boxes)
        to_low, to_high = (deltas * strides.unsqueeze(-1)).chunk(2, dim=-1)
        return torch.cat((center - to_low, center + to_high), dim=-1)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.chunk(2, dim=-1)
    return (low + high) / 2, high - low
