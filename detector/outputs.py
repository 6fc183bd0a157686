"""Raw outputs of a detector for a batch.

Axes: N images; A anchors over all levels (level-major, then y, x, then anchor); K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from detector.geometry.anchors import AnchorGrid


@dataclass
class Outputs:
    """Raw outputs of the head for every anchor of a batch.

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
