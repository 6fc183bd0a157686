"""The three losses of a training step: classification, box regression and centerness.

Axes: N images; A anchors over all levels (level-major); G ground-truth boxes padded per image; K classes;
M = N * A or any number of rows; `...` any leading axes. Boxes are xyxy float32, pixels of the padded input.

All shapes depend on the batch's shape alone: negatives are masked and not removed, so that no operation
synchronises with the device to count positives. A negative's target is its own anchor box, for which every
loss is finite, with weight 0. All losses are computed in float32, independent of the head's precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detector.config import Detector, GIoU, SmoothL1
from detector.geometry.anchors import AnchorGrid
from detector.geometry.box_coders import Coder
from detector.outputs import Outputs

IGNORED = -2
"""Class of an ignored anchor: equal to `assigners.IGNORED`."""

_GIOU_EPS = 1e-7
"""Square pixels added to union and enclosure, as in the authors' code, against 0 / 0."""

_MIN_CENTERNESS_SUM = 1e-6
"""Divisor for a batch without positives; smaller than any positive's centerness (0.01 px inside)."""

# --- per element -----------------------------------------------------------------------------------


def focal_loss_sum(logits_MK: Tensor, classes_M: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum over all rows and classes of the sigmoid focal loss (Lin et al. 2017, equation 5).

    Gradients are explicit, without autograd: a dense pass treats every logit as a negative, then one logit
    per row is corrected. Exact for all finite logits. A NaN logit makes the sum NaN, except in an ignored
    row, which adds exactly 0.

    Args:
        logits_MK: (M, K) float; bfloat16 and float16 are computed in float32.
        classes_M: (M,) int64, 0..K-1 the class of a positive, -1 background, -2 ignored.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing power, >= 0.

    Returns:
        () float32 (float64 for float64 logits), differentiable once.
    """
    total: Tensor = _FocalLossSum.apply(logits_MK, classes_M, alpha, gamma)
    return total


class _FocalLossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MK: Tensor, classes_M: Tensor, alpha: float, gamma: float) -> Tensor:
        x_MK = logits_MK.to(torch.promote_types(logits_MK.dtype, torch.float32))
        # sigmoid(-inf) = 0: neither loss nor gradient.
        x_MK = x_MK.masked_fill((classes_M == IGNORED).unsqueeze(1), -torch.inf)
        loss_MK, grad_MK = _focal_of_negatives(x_MK, 1 - alpha, gamma)
        index_M1 = classes_M.clamp(min=0).unsqueeze(1)
        positive_M1 = (classes_M >= 0).unsqueeze(1)
        # The loss of a positive is that of a negative with -x.
        loss_M1, grad_M1 = _focal_of_negatives(-x_MK.gather(1, index_M1), alpha, gamma)
        for dense_MK, sparse_M1 in ((loss_MK, loss_M1), (grad_MK, -grad_M1)):
            dense_MK.scatter_(1, index_M1, sparse_M1.where(positive_M1, dense_MK.gather(1, index_M1)))
        ctx.dtype = logits_MK.dtype
        ctx.save_for_backward(grad_MK)
        return loss_MK.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_MK,) = ctx.saved_tensors
        return (grad_MK * grad).to(ctx.dtype), None, None, None


def _focal_of_negatives(x: Tensor, weight: float, gamma: float) -> tuple[Tensor, Tensor]:
    """weight * p^gamma * -log(1 - p) with p = sigmoid(x), and its derivative in x."""
    p = x.sigmoid()
    cross_entropy = F.softplus(x, threshold=40)  # above 40, log(1 + e^x) is x in float64 too
    modulator = p.pow(gamma).mul_(weight)
    # d/dx p^gamma = gamma p^gamma (1 - p); d/dx softplus = p.
    slope = (1 - p).mul_(cross_entropy)
    slope = torch.add(p, slope, alpha=gamma, out=slope).mul_(modulator)
    return cross_entropy.mul_(modulator), slope


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of pairs of boxes (Rezatofighi et al. 2019), in [0, 2].

    As in the authors' code, a prediction whose second corner is before its first has no width (or height),
    and 1e-7 is added to union and enclosure.

    Args:
        pred: (..., 4) float, xyxy.
        target: (..., 4) float, xyxy.

    Returns:
        (...) float; finite with finite gradients for all finite boxes, touching or not.
    """
    x1, y1, x2, y2 = pred.unbind(-1)
    tx1, ty1, tx2, ty2 = target.unbind(-1)
    width, target_width, inter_width, enclosing_width = _overlap(x1, x2, tx1, tx2)
    height, target_height, inter_height, enclosing_height = _overlap(y1, y2, ty1, ty2)
    inter = inter_width * inter_height
    union = width * height + target_width * target_height - inter + _GIOU_EPS
    enclosure = enclosing_width * enclosing_height + _GIOU_EPS
    return 2 - inter / union - union / enclosure


def _overlap(low: Tensor, high: Tensor, target_low: Tensor, target_high: Tensor) -> tuple[Tensor, ...]:
    """Lengths of a predicted and a target interval, of their intersection and of their enclosure.

    Minimum and maximum are computed with absolute values: the same values and gradients (half to each of two
    equal arguments), in a third of the time on a CPU.
    """
    length = high - low
    length = (length + length.abs()) / 2
    target = target_high - target_low
    before = low - target_low
    both, apart = length + target, before.abs() + (before + length - target).abs()
    return length, target, F.relu(both - apart) / 2, (both + apart) / 2


def centerness_target(ltrb: Tensor) -> Tensor:
    """Centerness of a point in its box: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    Args:
        ltrb: (..., 4) float, distances of the point to the four sides, in any unit.

    Returns:
        (...) float in [0, 1]; 0 for a point on the border or outside (MaxIoU without `inside_gt` has such
        positives; the authors' code has none).
    """
    left, top, right, bottom = ltrb.clamp(min=0).unbind(-1)
    shorter = torch.minimum(left, right) * torch.minimum(top, bottom)
    longer = torch.maximum(left, right) * torch.maximum(top, bottom)
    return (shorter / longer.clamp(min=torch.finfo(ltrb.dtype).tiny)).sqrt()


# --- a batch ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """Targets of every anchor of a batch.

    Attributes:
        classes_NA: (N, A) int64, 0..K-1, -1 background, -2 ignored.
        positive_NA: (N, A) bool.
        boxes_NA4: (N, A, 4) float32, xyxy pixels: the matched ground truth, or the anchor itself.
        centerness_NA: (N, A) float32, 0 for all but positives.
    """

    classes_NA: Tensor
    positive_NA: Tensor
    boxes_NA4: Tensor
    centerness_NA: Tensor

    def counts(self) -> Tensor:
        """(2,) float32: number of positives and sum of their centerness, the divisors of the losses."""
        return torch.stack((self.positive_NA.sum().float(), self.centerness_NA.sum()))

    def __getitem__(self, part: slice) -> Targets:
        """The targets of some of the images."""
        return Targets(
            self.classes_NA[part], self.positive_NA[part], self.boxes_NA4[part], self.centerness_NA[part]
        )


def targets_of(match_NA: Tensor, boxes_NG4: Tensor, labels_NG: Tensor, grid: AnchorGrid) -> Targets:
    """Targets of all anchors from their matches.

    Args:
        match_NA: (N, A) int64, index of the ground truth in its image, -1 negative, -2 ignored.
        boxes_NG4: (N, G, 4) float32, xyxy pixels of the padded input; G may be 0.
        labels_NG: (N, G) int64, 0..K-1.
        grid: the anchors.

    Returns:
        The targets, on the device of the matches.
    """
    positive_NA = match_NA >= 0
    # One more box, which anchors of an image without boxes refer to.
    index_NA = match_NA.where(positive_NA, labels_NG.shape[1])
    labels_NA = F.pad(labels_NG, (0, 1)).gather(1, index_NA)
    padded_NG4 = F.pad(boxes_NG4.float(), (0, 0, 0, 1))
    matched_NA4 = padded_NG4.gather(1, index_NA.unsqueeze(-1).expand(-1, -1, 4))
    boxes_NA4 = matched_NA4.where(positive_NA.unsqueeze(-1), grid.boxes_A4)
    (x_A, y_A), (x1, y1, x2, y2) = grid.centers_A2.unbind(-1), boxes_NA4.unbind(-1)
    ltrb_NA4 = torch.stack((x_A - x1, y_A - y1, x2 - x_A, y2 - y_A), dim=-1)
    return Targets(
        classes_NA=labels_NA.where(positive_NA, match_NA),
        positive_NA=positive_NA,
        boxes_NA4=boxes_NA4,
        centerness_NA=centerness_target(ltrb_NA4) * positive_NA,
    )


class DetectionLoss:
    """The losses of some images, divided by the counts of the whole batch over all parts and ranks.

    The sum of a loss over parts and ranks is then the loss of the whole batch, however it is divided. Box and
    centerness losses and their gradients are exactly 0 without positives.

    Args:
        config: `box_loss`, `focal` and whether the head has a centerness branch.
        coder: decodes the head's box output.
    """

    def __init__(self, config: Detector, coder: Coder) -> None:
        self._focal = config.focal
        self._box_loss = config.box_loss
        self._coder = coder
        self._weight_by_centerness = config.head.centerness

    def __call__(self, outputs: Outputs, targets: Targets, counts_2: Tensor) -> dict[str, Tensor]:
        """Losses of these images.

        Args:
            outputs: of the head.
            targets: of the same images.
            counts_2: (2,) float32, `Targets.counts` summed over the whole batch.

        Returns:
            () float32 each: "cls", "box" and, of a head with the branch, "centerness".
        """
        num_positives, centerness_sum = counts_2.unbind()
        num_positives = num_positives.clamp(min=1)

        losses = {"cls": self._classification(outputs.cls_NAK, targets) / num_positives}
        losses["box"] = self._box(outputs, targets, num_positives, centerness_sum)
        if outputs.ctr_NA is not None:
            losses["centerness"] = _centerness_loss_sum(outputs.ctr_NA, targets) / num_positives
        return losses

    def _classification(self, cls_NAK: Tensor, targets: Targets) -> Tensor:
        classes_M = targets.classes_NA.flatten()
        return focal_loss_sum(cls_NAK.flatten(0, 1), classes_M, self._focal.alpha, self._focal.gamma)

    def _box(
        self, outputs: Outputs, targets: Targets, num_positives: Tensor, centerness_sum: Tensor
    ) -> Tensor:
        """SmoothL1 of deltas over 4 x positives, or GIoU of boxes weighted by centerness (config)."""
        grid, deltas_NA4 = outputs.grid, outputs.reg_NA4.float()
        match self._box_loss:
            case SmoothL1(beta=beta):
                wanted_NA4 = self._coder.encode(targets.boxes_NA4, grid.boxes_A4, grid.strides_A)
                loss_NA4 = F.smooth_l1_loss(deltas_NA4, wanted_NA4, beta=beta, reduction="none")
                return (loss_NA4 * targets.positive_NA.unsqueeze(-1)).sum() / (4 * num_positives)
            case GIoU(weight=weight):
                boxes_NA4 = self._coder.decode(deltas_NA4, grid.boxes_A4, grid.strides_A)
                loss_NA = weight * giou_loss(boxes_NA4, targets.boxes_NA4)
                if self._weight_by_centerness:
                    total = centerness_sum.clamp(min=_MIN_CENTERNESS_SUM)
                    return (loss_NA * targets.centerness_NA).sum() / total
                return (loss_NA * targets.positive_NA).sum() / num_positives
            case other:
                assert_never(other)


def _centerness_loss_sum(ctr_NA: Tensor, targets: Targets) -> Tensor:
    """Sum over the positives of the binary cross-entropy with the centerness targets, () float32."""
    return F.binary_cross_entropy_with_logits(
        ctr_NA.float(), targets.centerness_NA, weight=targets.positive_NA.float(), reduction="sum"
    )
