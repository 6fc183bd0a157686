"""Assigners: the rules that select positive anchors and their ground truth, which the paper compares.

Axes: N images, G ground-truth boxes padded per image, A anchors over all levels, L levels, k candidates
of a level, C candidates of a ground truth over all levels and anchors of a location, H x W cells of a
level. Boxes are xyxy float32, pixels of the padded input image.

An assigner takes a whole batch and returns `match_NA` int64: the index of the anchor's ground truth in its
image, NEGATIVE (-1) or IGNORED (-2). All anchors of an image without ground truth are negative (the authors'
code raises there).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from detector.config import ATSS, MaxIoU, SpatialScale
from detector.geometry.anchors import AnchorGrid, Level
from detector.geometry.boxes import area, pairwise_iou

NEGATIVE = -1
IGNORED = -2

INSIDE_MARGIN = 0.01
"""Pixels from every side by which a centre must be inside a box (authors' code)."""


class Assigner(ABC):
    """A rule that makes anchors positive, negative or ignored."""

    def __call__(self, grid: AnchorGrid, boxes_NG4: Tensor, valid_NG: Tensor) -> Tensor:
        """Matches every anchor of a batch.

        Args:
            grid: the anchors, the same for all images.
            boxes_NG4: (N, G, 4) float32, xyxy; any values where not valid. G may be 0.
            valid_NG: (N, G) bool, False for padding.

        Returns:
            match_NA: (N, A) int64, index of the ground truth, NEGATIVE or IGNORED.
        """
        num_images, num_gts = valid_NG.shape
        if num_gts == 0:
            return boxes_NG4.new_full((num_images, len(grid.boxes_A4)), NEGATIVE, dtype=torch.int64)
        with torch.no_grad():
            # Padding becomes a box without area at the origin, which overlaps no anchor and contains no
            # centre.
            return self._match(grid, torch.where(valid_NG[..., None], boxes_NG4, 0.0))

    @abstractmethod
    def _match(self, grid: AnchorGrid, boxes_NG4: Tensor) -> Tensor:
        """The rule, for at least one box per image; padding is a box of zeros."""


def _inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """Whether centres (..., 2) lie inside boxes (..., 4), by more than INSIDE_MARGIN."""
    low, high = boxes.chunk(2, dim=-1)
    return torch.minimum(centers - low, high - centers).amin(-1) > INSIDE_MARGIN


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table (A, c) at indices (...), as (..., c); faster than table[index]."""
    return table.index_select(0, index.flatten()).view(*index.shape, -1)


# --- RetinaNet -------------------------------------------------------------------------------------


class MaxIoUAssigner(Assigner):
    """RetinaNet's thresholds on the IoU of an anchor with its best ground truth (Sec. 3.1).

    An anchor is positive if its IoU reaches the positive threshold, or is the highest of some ground truth
    (all exact ties). It is matched to the ground truth that it overlaps most, of equal ones the lowest index;
    that need not be the one that made it positive. A ground truth without overlap makes no anchor positive;
    in the authors' code it makes every anchor positive that ties at 0.
    """

    def __init__(self, config: MaxIoU) -> None:
        self._config = config

    def _match(self, grid: AnchorGrid, boxes_NG4: Tensor) -> Tensor:
        iou_NGA = pairwise_iou(boxes_NG4, grid.boxes_A4)
        iou_NA, best_NA = iou_NGA.max(dim=1)
        positive_NA = (iou_NA >= self._config.positive) | _attains_highest(iou_NGA)
        match_NA = torch.where(iou_NA < self._config.negative, NEGATIVE, IGNORED)
        if self._config.inside_gt:
            matched_NA4 = boxes_NG4.gather(1, best_NA[..., None].expand(-1, -1, 4))
            outside_NA = positive_NA & ~_inside(grid.centers_A2, matched_NA4)
            best_NA = best_NA.masked_fill_(outside_NA, IGNORED)
        return torch.where(positive_NA, best_NA, match_NA)


def _attains_highest(iou_NGA: Tensor) -> Tensor:
    """(N, A) bool: the anchor has the highest IoU of some ground truth, and that is not 0."""
    highest_NG1 = iou_NGA.amax(dim=2, keepdim=True)
    unreachable = 2.0
    return (iou_NGA == highest_NG1.masked_fill_(highest_NG1 == 0, unreachable)).any(dim=1)


# --- FCOS ------------------------------------------------------------------------------------------

_BASE_RANGE = 8.0
"""Strides from a centre to the farthest side of its box, at most (64 pixels on P3)."""


class SpatialScaleAssigner(Assigner):
    """FCOS's spatial and scale constraint (Sec. 3.1); the smallest box wins, then the lowest index.

    A centre must lie inside the box (by more than INSIDE_MARGIN, as in the authors' ATSS head; their
    FCOS requires more than 0); with center sampling, also inside a square around the box's centre. The
    distance to the farthest side must be in the level's range: 8 strides of the finer level to 8 strides of
    this one, both inclusive; from 0 on the finest and without limit on the coarsest level.
    """

    def __init__(self, config: SpatialScale) -> None:
        self._radius = config.center_radius

    def _match(self, grid: AnchorGrid, boxes_NG4: Tensor) -> Tensor:
        order_NG = area(boxes_NG4).argsort(dim=1, stable=True)
        boxes_NG4 = boxes_NG4.gather(1, order_NG[..., None].expand(-1, -1, 4))
        limits = [-1.0, *(_BASE_RANGE * level.stride for level in grid.levels[:-1]), 1e8]
        first = [
            self._first_accepted(level, boxes_NG4, low, high).repeat_interleave(level.num_per_location, dim=1)
            for level, low, high in zip(grid.levels, limits[:-1], limits[1:], strict=True)
        ]
        return pad(order_NG, (0, 1), value=NEGATIVE).gather(1, torch.cat(first, dim=1).long())

    def _first_accepted(self, level: Level, boxes_NG4: Tensor, low: float, high: float) -> Tensor:
        """The first box of each cell that fulfils the rule, (N, H * W) integer; G for none.

        All conditions but the lower limit are separable in x and y, so no tensor of distances is larger than
        (N, G, W).
        """
        x1, y1, x2, y2 = boxes_NG4.unsqueeze(-2).unbind(-1)
        within_x, far_x = self._along_axis(level.width, level.stride, x1, x2, low, high)
        within_y, far_y = self._along_axis(level.height, level.stride, y1, y2, low, high)
        accepted_NGHW = (within_x & far_x).unsqueeze(2) & within_y.unsqueeze(3)
        accepted_NGHW |= within_x.unsqueeze(2) & (within_y & far_y).unsqueeze(3)
        num_gts = boxes_NG4.shape[1]
        rank_G = torch.arange(num_gts, device=boxes_NG4.device, dtype=torch.int32)
        return torch.where(accepted_NGHW, rank_G[:, None, None], num_gts).amin(dim=1).flatten(1)

    def _along_axis(
        self, cells: int, stride: int, start: Tensor, end: Tensor, low: float, high: float
    ) -> tuple[Tensor, Tensor]:
        """One axis of the rule for boxes [start, end] (N, G, 1): two (N, G, cells) bool.

        The first: the centre is inside, and both sides are within `high`. The second: a side is at least
        `low` away.
        """
        centers = (torch.arange(cells, device=start.device) + 0.5) * stride
        inner_start, inner_end, margin = start, end, INSIDE_MARGIN
        if self._radius is not None:
            middle, reach = (start + end) / 2, self._radius * stride
            inner_start, inner_end = torch.maximum(start, middle - reach), torch.minimum(end, middle + reach)
            margin = 0.0
        inside = torch.minimum(centers - inner_start, inner_end - centers) > margin
        farthest = torch.maximum(centers - start, end - centers)
        return inside & (farthest <= high), farthest >= low


# --- ATSS ------------------------------------------------------------------------------------------


class Candidates(NamedTuple):
    """Candidate anchors of every ground truth, over all levels.

    Attributes:
        index_NGC: int64, index of the anchor; 0 where not present.
        present_NGC: bool; False where a level has fewer than k cells.
    """

    index_NGC: Tensor
    present_NGC: Tensor


class ATSSAssigner(Assigner):
    """Adaptive training sample selection (Sec. 3.2, Algorithm 1).

    Follows the authors' code where it differs from Algorithm 1: k counts locations, so there are k * #A
    candidates per level; the standard deviation is unbiased; a centre must be inside by more than
    INSIDE_MARGIN. An anchor that two ground truths select is matched to the one with the higher IoU, then the
    lower index. Of equally distant cells the lowest indices are selected; in the authors' code this depends
    on the device. No operation synchronises with the device.
    """

    def __init__(self, config: ATSS) -> None:
        self._topk = config.topk

    def _match(self, grid: AnchorGrid, boxes_NG4: Tensor) -> Tensor:
        index_NGC, present_NGC = nearest_candidates(grid, boxes_NG4, self._topk)
        iou_NGC = pairwise_iou(boxes_NG4.unsqueeze(2), _rows(grid.boxes_A4, index_NGC)).squeeze(2)
        mean_NG, std_NG = iou_statistics(iou_NGC, present_NGC)
        positive_NGC = iou_NGC >= (mean_NG + std_NG).unsqueeze(2)
        positive_NGC &= present_NGC & _inside(_rows(grid.centers_A2, index_NGC), boxes_NG4.unsqueeze(2))
        return _highest_iou_wins(index_NGC, iou_NGC, positive_NGC, len(grid.boxes_A4))


def nearest_candidates(grid: AnchorGrid, boxes_NG4: Tensor, topk: int) -> Candidates:
    """All anchors of the `topk` cells of each level whose centres are nearest to a box's centre.

    Exact, and its cost does not depend on the size of the maps: at least i * j - 1 cells are nearer than the
    cell in the i-th nearest column and the j-th nearest row (from 1), so only cells with i * j <= topk can be
    among the nearest. This also holds for centres at and outside the border of the map. Squared distances
    are float64, which is almost exact for centres of float32 boxes.

    Args:
        grid: the anchors.
        boxes_NG4: (N, G, 4) float32, xyxy.
        topk: cells per level; all cells of a level with fewer.

    Returns:
        The candidates, C = L * topk * #A for each box.
    """
    per_location = grid.levels[0].num_per_location
    stride_L11, size_L21, start_L1 = _level_table(grid.levels, boxes_NG4.device)
    column_M, row_M = _slots(topk, boxes_NG4.device)
    center_NG2 = (boxes_NG4[..., :2].double() + boxes_NG4[..., 2:]) / 2
    nearest, squared = _nearest_along_axes(center_NG2[:, :, None, :, None], stride_L11, size_L21, topk)
    squared_NGLM = squared[..., 0, :].index_select(-1, column_M) + squared[..., 1, :].index_select(-1, row_M)
    width_L1 = size_L21[:, 0]
    row_NGLM = nearest[..., 1, :].index_select(-1, row_M)
    column_NGLM = nearest[..., 0, :].index_select(-1, column_M)
    cell_NGLM = row_NGLM * width_L1 + column_NGLM
    chosen = _smallest(squared_NGLM, cell_NGLM, topk)
    present_NGLk = squared_NGLM.gather(-1, chosen).isfinite()
    first_NGLk = start_L1 + cell_NGLM.gather(-1, chosen).long() * per_location
    index = first_NGLk.where(present_NGLk, 0)[..., None] + torch.arange(
        per_location, device=first_NGLk.device
    )
    present = present_NGLk[..., None].expand_as(index)
    return Candidates(index.flatten(2), present.flatten(2))


def _nearest_along_axes(center: Tensor, stride: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` columns (rows) nearest to x (y), nearest first, the lower of two equally near first.

    For a centre u in cells, the i + 1 nearest of n cells are consecutive from ceil(u - (i + 1) / 2), clamped
    to 0 .. n - 1 - i. The i-th nearest is the cell that the i-th of these windows adds to the window before.

    Args:
        center: (N, G, 1, 2, 1) float64, x and y.
        stride: (L, 1, 1) float64.
        size: (L, 2, 1) float64, cells per axis.
        count: k.

    Returns:
        (N, G, L, 2, k) float64: the index, and the squared distance to the cell's centre in pixels; inf
        where the axis has fewer cells.
    """
    rank = torch.arange(count, device=center.device)
    start = torch.ceil(center / stride - 0.5 - (rank + 1) / 2)
    start = start.minimum(size - 1 - rank).clamp_(min=0)
    before = torch.cat((start[..., :1], start[..., :-1]), dim=-1)
    nearest = torch.where(start < before, start, start + rank)
    squared = ((nearest + 0.5) * stride - center).square_()
    return nearest, squared.masked_fill_(rank >= size, torch.inf)


def _smallest(values: Tensor, indices: Tensor, count: int) -> Tensor:
    """Positions of the `count` smallest values of the last axis; equal ones by the lowest index.

    Two selections, because the order of equal values in topk is undefined. The second one has distinct keys
    among the values that equal the k-th; all smaller values are selected in any order.
    """
    kth = values.topk(count, largest=False).values[..., -1:]
    key = torch.where(values == kth, indices, torch.inf).masked_fill_(values < kth, NEGATIVE)
    return key.topk(count, largest=False, sorted=False).indices


def iou_statistics(iou_NGC: Tensor, present_NGC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the candidates' IoUs; their sum is the threshold.

    In float64, so that candidates with equal IoUs have exactly that mean and a deviation of 0, and are
    positive; in float32 rounding would decide.

    Args:
        iou_NGC: (N, G, C) float32.
        present_NGC: (N, G, C) bool, False for absent candidates.

    Returns:
        (N, G) float64 mean and standard deviation.
    """
    count_NG = present_NGC.sum(dim=2)
    mean_NG = (iou_NGC * present_NGC).sum(dim=2, dtype=torch.float64) / count_NG
    deviation_NGC = (iou_NGC - mean_NG.unsqueeze(2)) * present_NGC
    return mean_NG, (deviation_NGC.square().sum(dim=2) / (count_NG - 1).clamp(min=1)).sqrt()


def _highest_iou_wins(index_NGC: Tensor, iou_NGC: Tensor, positive_NGC: Tensor, num_anchors: int) -> Tensor:
    """Each anchor's ground truth of highest IoU, then lowest index, (N, num_anchors) int64.

    One maximum over keys: the high bits are those of the IoU (non-negative floats have the order of their
    bits), the low bits G - g. High bits of 0 with G + 1 mean no ground truth.
    """
    num_images, num_gts, _ = iou_NGC.shape
    shift = (num_gts + 1).bit_length()
    low_G1 = torch.arange(num_gts, 0, -1, device=iou_NGC.device)[:, None]
    key_NGC = (iou_NGC.view(torch.int32).long() << shift) + low_G1
    key_NGC = key_NGC.where(positive_NGC, num_gts + 1)
    best_NA = torch.full((num_images, num_anchors), num_gts + 1, device=iou_NGC.device)
    best_NA.scatter_reduce_(1, index_NGC.flatten(1), key_NGC.flatten(1), "amax")
    return best_NA.bitwise_and_((1 << shift) - 1).neg_().add_(num_gts)


@lru_cache(maxsize=256)
def _level_table(levels: tuple[Level, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Stride (L, 1, 1) float64, (width, height) (L, 2, 1) float64 and first anchor (L, 1) int64."""
    stride = torch.tensor([level.stride for level in levels], dtype=torch.float64, device=device)
    size = torch.tensor([(lv.width, lv.height) for lv in levels], dtype=torch.float64, device=device)
    start = torch.tensor([level.start for level in levels], device=device)
    return stride[:, None, None], size[..., None], start[:, None]


@lru_cache(maxsize=64)
def _slots(topk: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks (i, j), from 0, of column and row of the cells that can be among the nearest, (M,) each."""
    slots = [(i, j) for i in range(topk) for j in range(topk // (i + 1))]
    column_M, row_M = torch.tensor(slots, device=device).unbind(1)
    return column_M, row_M
