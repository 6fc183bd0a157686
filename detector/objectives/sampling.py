"""Targets of Faster R-CNN: anchors and proposals that are drawn to be learned from.

Axes: N images, A anchors, R regions of an image (proposals and objects).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RegionTargets:
    """Targets of a batch.

    Attributes:
        objects: per image (A,) float32: 1 object, 0 background, -1 neither.
        anchors: per image (A,) bool: the anchors that are learned from.
        anchor_deltas: per image (A, 4) float32, the encoded object.
        regions: per image (R, 4) float32, xyxy: the regions that are learned from.
        classes: per image (R,) int64, 0 background, 1..K.
        region_deltas: per image (R, 4) float32, the encoded object.
    """

    objects: Sequence[Tensor]
    anchors: Sequence[Tensor]
    anchor_deltas: Sequence[Tensor]
    regions: Sequence[Tensor]
    classes: Sequence[Tensor]
    region_deltas: Sequence[Tensor]

    def counts(self) -> Tensor:
        """(2,) float32: anchors and regions that are learned from."""
        regions = sum(len(own) for own in self.regions)
        anchors = torch.stack([own.sum() for own in self.anchors]).sum()
        return torch.stack((anchors, torch.full_like(anchors, regions))).float()

    def __getitem__(self, part: slice) -> RegionTargets:
        """The targets of some of the images."""
        return RegionTargets(
            self.objects[part],
            self.anchors[part],
            self.anchor_deltas[part],
            self.regions[part],
            self.classes[part],
            self.region_deltas[part],
        )


def drawn(labels_R: Tensor, count: int, positives: int, seed: int) -> Tensor:
    """Draws what is learned from.

    Args:
        labels_R: (R,) 0 background, above 0 positive, below 0 neither.
        count: drawn in all, at most.
        positives: drawn of the positives, at most; background fills the rest.
        seed: of the draw, which depends on nothing else.

    Returns:
        (R,) bool.
    """
    order = torch.randperm(len(labels_R), generator=torch.Generator().manual_seed(seed)).to(labels_R.device)
    positive = labels_R[order] > 0
    chosen = positive & (positive.cumsum(0) <= positives)
    background = labels_R[order] == 0
    chosen = chosen | (background & (background.cumsum(0) <= count - chosen.sum()))
    return torch.zeros_like(chosen).scatter_(0, order, chosen)
