"""Anchor boxes and their centres on the regular grids of the feature maps P3..P7.

Axes: A anchors over all levels: level, then y, then x, then the anchor of the location (ratio-major,
scale inner); a anchors of one location. A head's channel a * C + c of a level belongs to anchor a.
Boxes are xyxy float32, pixels of the padded input image; the centre of cell (x, y) of a level with stride
s is ((x + 0.5) s, (y + 0.5) s).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from detector.config import Anchors

_FINEST_PAPER_STRIDE = 8
"""Stride of P3 in the paper; other strides use its anchor shapes in proportion."""


@dataclass(frozen=True)
class Level:
    """One feature map and the slice of the anchors that lies on it.

    Attributes:
        stride: input pixels per cell.
        height: cells.
        width: cells.
        start: index of the level's first anchor among all.
        num_per_location: anchors per cell (#A).
    """

    stride: int
    height: int
    width: int
    start: int
    num_per_location: int

    @property
    def num_anchors(self) -> int:
        """Anchors on the whole level."""
        return self.height * self.width * self.num_per_location


@dataclass(frozen=True, eq=False)
class AnchorGrid:
    """All anchors of a padded input. Cached and shared: its tensors must not be changed.

    Attributes:
        boxes_A4: (A, 4) float32, xyxy.
        centers_A2: (A, 2) float32, x and y.
        strides_A: (A,) float32, stride of each anchor's level.
        levels: from the finest to the coarsest.
        cells: per level (a, 4) float32, xyxy: the anchors of the cell (0, 0).
    """

    boxes_A4: Tensor
    centers_A2: Tensor
    strides_A: Tensor
    levels: tuple[Level, ...]
    cells: tuple[Tensor, ...]


def anchor_grid(
    config: Anchors,
    strides: Sequence[int],
    feature_sizes: Sequence[tuple[int, int]],
    device: torch.device | str,
) -> AnchorGrid:
    """The anchors of feature maps of these sizes; equal arguments give the same object.

    All cells are included, also those in the padding of the batch (as in the authors' code).

    Args:
        config: shapes of one location's anchors.
        strides: of each level, input pixels, from the finest.
        feature_sizes: (height, width) of each level, cells.
        device: of the tensors.

    Returns:
        The grid; see `AnchorGrid`.

    Raises:
        ValueError: `strides` and `feature_sizes` differ in length.
    """
    if len(strides) != len(feature_sizes):
        raise ValueError(f"need one feature size per stride, got {len(feature_sizes)} for {len(strides)}")
    sizes = tuple((int(height), int(width)) for height, width in feature_sizes)
    return _cached_grid(config, tuple(strides), sizes, torch.device(device))


def feature_sizes(height: int, width: int, strides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(height, width) of P3..P7 for a batch of that size, which is padded to whole cells of P5.

    P6 and P7 halve P5 and P6, rounding up, as their stride-2 convolutions do.
    """
    p5 = strides[2]
    sizes = [(-(-height // p5) * p5 // stride, -(-width // p5) * p5 // stride) for stride in strides[:3]]
    while len(sizes) < len(strides):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return tuple(sizes)


@lru_cache(maxsize=64)
def _cached_grid(
    config: Anchors, strides: tuple[int, ...], sizes: tuple[tuple[int, int], ...], device: torch.device
) -> AnchorGrid:
    # A grid that was cached under inference_mode could not be used by a later training.
    with torch.inference_mode(False):
        levels = _levels(config.num_per_location, strides, sizes)
        cells = [_cell_anchors(config, level.stride, index) for index, level in enumerate(levels)]
        corners = [_corners(level) for level in levels]
        boxes = [
            (corner.repeat(1, 2)[:, None] + cell).flatten(0, 1)
            for corner, cell in zip(corners, cells, strict=True)
        ]
        centers = [
            (corner + level.stride / 2).repeat_interleave(level.num_per_location, dim=0)
            for corner, level in zip(corners, levels, strict=True)
        ]
        strides_A = [torch.full((level.num_anchors,), float(level.stride)) for level in levels]
        return AnchorGrid(
            boxes_A4=torch.cat(boxes).to(device),
            centers_A2=torch.cat(centers).to(device),
            strides_A=torch.cat(strides_A).to(device),
            levels=levels,
            cells=tuple(cell.to(device) for cell in cells),
        )


def _levels(
    num_per_location: int, strides: tuple[int, ...], sizes: tuple[tuple[int, int], ...]
) -> tuple[Level, ...]:
    levels: list[Level] = []
    start = 0
    for stride, (height, width) in zip(strides, sizes, strict=True):
        levels.append(Level(stride, height, width, start, num_per_location))
        start += levels[-1].num_anchors
    return tuple(levels)


def _cell_anchors(config: Anchors, stride: int, index: int) -> Tensor:
    """Anchors of the cell (0, 0), (a, 4) float32.

    The authors round the two sides of a ratio h / w to whole pixels on a square of one stride (halves to
    even), before they scale it: ratio 0.5 at stride 8 is 11 x 6, so 88 x 48 at scale 8. At strides as small
    as 2 rounding would destroy the ratio, so the shape is rounded at the paper's stride of this level,
    8 * 2^index, and scaled to the level's own stride. At the paper's strides both are the same.
    """
    paper_stride = _FINEST_PAPER_STRIDE * 2**index
    unit = stride / paper_stride
    boxes = []
    for ratio in config.ratios:
        width = round(math.sqrt(paper_stride**2 / ratio))
        height = round(width * ratio)
        for step in range(config.scales_per_octave):
            half = config.scale * 2 ** (step / config.scales_per_octave) * unit / 2
            boxes.append((-width * half, -height * half, width * half, height * half))
    return (torch.tensor(boxes, dtype=torch.float64) + stride / 2).float()


def _corners(level: Level) -> Tensor:
    """Top left corners of a level's cells in row-major order, (H * W, 2) float32, x and y."""
    ys = torch.arange(level.height) * float(level.stride)
    xs = torch.arange(level.width) * float(level.stride)
    return torch.stack((xs.repeat(level.height), ys.repeat_interleave(level.width)), dim=1)
