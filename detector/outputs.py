"""Raw outputs of detectors for a batch, and the candidates for detections that they become.

Axes: N images; A anchors over all levels (level-major, then y, x, then anchor); K classes; C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from detector.geometry.anchors import AnchorGrid


@dataclass
class Outputs:
    """Raw outputs of the dense head for every anchor of a batch.

    Attributes:
        cls_NAK: (N, A, K) float, class logits.
        reg_NA4: (N, A, 4) float, scaled and activated box regression, which the coder decodes.
        ctr_NA: (N, A) float, centerness logits; None for a head without that branch.
        grid: the anchors of the padded batch.
    """

    cls_NAK: Tensor
    reg_NA4: Tensor
    ctr_NA: Tensor | None
    grid: AnchorGrid


class MultiBox(NamedTuple):
    """Raw outputs of classifiers and box regressors for every anchor.

    Attributes:
        cls_NAK: (N, A, K + 1) float32 logits, background first.
        reg_NA4: (N, A, 4) float32 offsets from `boxes_NA4`, which the coder decodes.
        boxes_NA4: (N, A, 4) float32, xyxy pixels, without gradient: anchors, or what an ARM made of them.
    """

    cls_NAK: Tensor
    reg_NA4: Tensor
    boxes_NA4: Tensor


@dataclass
class SingleShotOutputs:
    """Raw outputs of a single-shot detector.

    Attributes:
        odm: of the detection head (of RefineDet's ODM), K classes.
        arm: of the anchor refinement module, one class, object; None for a detector without.
    """

    odm: MultiBox
    arm: MultiBox | None


@dataclass(frozen=True)
class Candidates:
    """The best (box, class) pairs of each image, in any order.

    Attributes:
        boxes_NC4: (N, C, 4) float32, xyxy, pixels of the input image, not clipped.
        labels_NC: (N, C) int64, 0..K-1.
        scores_NC: (N, C) float32; negative or NaN where there is none.
    """

    boxes_NC4: Tensor
    labels_NC: Tensor
    scores_NC: Tensor
