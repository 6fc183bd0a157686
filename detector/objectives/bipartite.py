"""Matching of SSD and RefineDet: each object's best anchor, and all anchors above a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.geometry.boxes import pairwise_iou
from detector.objectives.assigners import NEGATIVE

_LEAST = 1e-6
"""IoU above which two boxes overlap at all (the authors' code)."""


@torch.no_grad()
def match_boxes(boxes_NA4: Tensor, truth_NG4: Tensor, valid_NG: Tensor, threshold: float) -> Tensor:
    """Matches every box of a batch with an object or none.

    First each object gets a box of its own, greedily: the pair of the highest IoU of all, then that of the
    remaining boxes and objects, and so on while they overlap. Of equal pairs the first box, then the first
    object is chosen. Then each other box is matched with the object that it overlaps most, of equal ones the
    first, if the IoU reaches the threshold. So the IoU of a negative is always below it. No operation
    synchronises with the device.

    Args:
        boxes_NA4: (N, A, 4) float32, xyxy.
        truth_NG4: (N, G, 4) float32, xyxy; any values where not valid. G may be 0.
        valid_NG: (N, G) bool, False for padding.
        threshold: on the IoU.

    Returns:
        (N, A) int64: index of the object in its image, or NEGATIVE.
    """
    num_images, num_objects = valid_NG.shape
    if num_objects == 0:
        return truth_NG4.new_full((num_images, boxes_NA4.shape[1]), NEGATIVE, dtype=torch.int64)
    # Padding becomes a box without area at the origin, which overlaps nothing.
    iou_NGA = pairwise_iou(torch.where(valid_NG[..., None], truth_NG4, 0.0), boxes_NA4)
    iou_NA, object_NA = iou_NGA.max(dim=1)
    match_NA = torch.where(iou_NA >= threshold, object_NA, NEGATIVE)
    for _ in range(num_objects):
        box_N1, object_N1, overlap_N1 = _best_pair(iou_NGA)
        before_N1 = match_NA.gather(1, box_N1)
        match_NA.scatter_(1, box_N1, object_N1.where(overlap_N1 > _LEAST, before_N1))
        iou_NGA.scatter_(1, object_N1[..., None].expand(-1, 1, iou_NGA.shape[2]), 0.0)
        iou_NGA.scatter_(2, box_N1[..., None].expand(-1, num_objects, 1), 0.0)
    return match_NA


def _best_pair(iou_NGA: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Box and object of the highest IoU of each image, and the IoU, (N, 1) each."""
    # On a CPU a maximum with indices takes ten times as long where it is not along the last axis.
    iou_N1, box_N1 = iou_NGA.amax(dim=1).max(dim=1, keepdim=True)
    of_box_NG = iou_NGA.gather(2, box_N1[..., None].expand(-1, iou_NGA.shape[1], 1)).squeeze(2)
    return box_N1, of_box_NG.max(dim=1, keepdim=True).indices, iou_N1
