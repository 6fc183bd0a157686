"""Targets and losses of SSD and of RefineDet's two modules, with hard negative mining.

Axes: N images, A anchors, G ground-truth boxes padded per image, K classes. Class 0 is background, label c is
class c + 1. All shapes depend on the batch's shape alone, so that no operation synchronises with the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config import SingleShot
from detector.geometry.box_coders import BoxCoder
from detector.objectives.bipartite import match_boxes
from detector.outputs import MultiBox, SingleShotOutputs

BACKGROUND = 0


@dataclass(frozen=True)
class BoxTargets:
    """Targets of every anchor, for one classifier and box regressor.

    Attributes:
        classes_NA: (N, A) int64, 0 background, 1..K.
        deltas_NA4: (N, A, 4) float32, the encoded object; 0 for background.
    """

    classes_NA: Tensor
    deltas_NA4: Tensor

    @property
    def positive_NA(self) -> Tensor:
        """(N, A) bool."""
        return self.classes_NA > BACKGROUND

    def __getitem__(self, part: slice) -> BoxTargets:
        return BoxTargets(self.classes_NA[part], self.deltas_NA4[part])


@dataclass(frozen=True)
class SingleShotTargets:
    """Targets of a batch: of the detection head, and of the ARM where there is one."""

    odm: BoxTargets
    arm: BoxTargets | None

    def counts(self) -> Tensor:
        """(n,) float32: positives of the detection head, and of the ARM."""
        modules = [self.odm] if self.arm is None else [self.odm, self.arm]
        return torch.stack([targets.positive_NA.sum() for targets in modules]).float()

    def __getitem__(self, part: slice) -> SingleShotTargets:
        """The targets of some of the images."""
        return SingleShotTargets(self.odm[part], None if self.arm is None else self.arm[part])


def box_targets(
    boxes_NA4: Tensor,
    truth_NG4: Tensor,
    labels_NG: Tensor,
    valid_NG: Tensor,
    coder: BoxCoder,
    match_iou: float,
) -> BoxTargets:
    """Matches boxes with objects, and encodes each object relative to its boxes.

    Args:
        boxes_NA4: (N, A, 4) float32, xyxy: anchors, or the boxes that an ARM made of them.
        truth_NG4: (N, G, 4) float32, xyxy pixels; G may be 0.
        labels_NG: (N, G) int64, 0..K-1.
        valid_NG: (N, G) bool, False for padding.
        coder: encodes.
        match_iou: see `detector.objectives.bipartite.match_boxes`.

    Returns:
        The targets.
    """
    match_NA = match_boxes(boxes_NA4, truth_NG4, valid_NG, match_iou)
    positive_NA = match_NA >= 0
    # One more object, which the boxes of an image without objects refer to.
    index_NA = match_NA.where(positive_NA, labels_NG.shape[1])
    classes_NA = F.pad(labels_NG + 1, (0, 1)).gather(1, index_NA)
    padded_NG4 = F.pad(truth_NG4, (0, 0, 0, 1))
    matched_NA4 = padded_NG4.gather(1, index_NA.unsqueeze(-1).expand(-1, -1, 4))
    matched_NA4 = matched_NA4.where(positive_NA.unsqueeze(-1), boxes_NA4)
    strides_NA = torch.ones_like(classes_NA)
    return BoxTargets(
        classes_NA.where(positive_NA, BACKGROUND), coder.encode(matched_NA4, boxes_NA4, strides_NA)
    )


def hard_negatives(loss_NA: Tensor, negative_NA: Tensor, limit_N: Tensor) -> Tensor:
    """The negatives of each image that are mined: those of the highest losses, of equal ones the first.

    Args:
        loss_NA: (N, A) float, of the classifier.
        negative_NA: (N, A) bool, which may be mined.
        limit_N: (N,) int64, how many of each image at most.

    Returns:
        (N, A) bool.
    """
    hardest_NA = loss_NA.where(negative_NA, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_A = torch.arange(loss_NA.shape[1], device=loss_NA.device)
    hard_NA = torch.empty_like(negative_NA).scatter_(1, hardest_NA, rank_A < limit_N.unsqueeze(1))
    return negative_NA & hard_NA


class SingleShotLoss:
    """Softmax and smooth L1 losses, divided by the positives of the whole batch over all parts and ranks.

    Negatives are mined in each image, for its own positives (as in the authors' code), so that an image's
    loss does not depend on the others. An image without positives has no loss. The authors' code divides by
    the positives of one GPU; here the result does not depend on their number.
    """

    def __init__(self, config: SingleShot) -> None:
        self._config = config

    def __call__(
        self, outputs: SingleShotOutputs, targets: SingleShotTargets, counts: Tensor
    ) -> dict[str, Tensor]:
        """Losses of these images.

        Args:
            outputs: of the detector.
            targets: of the same images.
            counts: (n,) float32, `SingleShotTargets.counts` summed over the whole batch.

        Returns:
            () float32 each: "cls", "box" and, with an ARM, "arm_cls" and "arm_box".
        """
        odm_count, *arm_counts = counts.clamp(min=1).unbind()
        minable_NA = self._passing_filter(outputs)
        cls, box = self._of_module(outputs.odm, targets.odm, minable_NA)
        losses = {"cls": cls / odm_count, "box": box / odm_count}
        if outputs.arm is not None and targets.arm is not None:
            cls, box = self._of_module(outputs.arm, targets.arm, None)
            losses |= {"arm_cls": cls / arm_counts[0], "arm_box": box / arm_counts[0]}
        return losses

    def _passing_filter(self, outputs: SingleShotOutputs) -> Tensor | None:
        """(N, A) bool: P(object) reaches the ARM's threshold. None for no filter."""
        refinement = self._config.refinement
        if refinement is None or outputs.arm is None:
            return None
        return objectness(outputs.arm) >= refinement.objectness

    def _of_module(
        self, predicted: MultiBox, targets: BoxTargets, minable_NA: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sums of the softmax loss over positives and mined negatives, and of smooth L1 over positives."""
        classes_NA, positive_NA = targets.classes_NA, targets.positive_NA
        loss_NA = F.cross_entropy(predicted.cls_NAK.float().transpose(1, 2), classes_NA, reduction="none")
        negative_NA = ~positive_NA if minable_NA is None else ~positive_NA & minable_NA
        limit_N = (positive_NA.sum(dim=1) * self._config.negatives_per_positive).long()
        mined_NA = hard_negatives(loss_NA.detach(), negative_NA, limit_N)
        cls = loss_NA.where(positive_NA | mined_NA, 0.0).sum()
        box_NA4 = F.smooth_l1_loss(predicted.reg_NA4.float(), targets.deltas_NA4, reduction="none")
        return cls, (box_NA4 * positive_NA.unsqueeze(-1)).sum()


def objectness(arm: MultiBox) -> Tensor:
    """(N, A) float32: P(object) by the ARM, without gradient."""
    return arm.cls_NAK.detach().float().softmax(dim=-1)[..., 1]
