"""The dense detector: backbone, pyramid and head; RetinaNet, FCOS and ATSS by config.

Axes: N images, A anchors over all levels, G ground-truth boxes padded per image, K classes. Boxes are xyxy
float32, pixels of the padded input image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detector import config as cfg
from detector.geometry.anchors import anchor_grid, feature_sizes
from detector.geometry.box_coders import Coder
from detector.model.candidates import dense_candidates
from detector.model.detector import Detector
from detector.model.fpn import FPN
from detector.model.head import Head
from detector.model.normalise import normalised
from detector.model.resnet import Backbone
from detector.objectives.assigners import Assigner
from detector.objectives.losses import DetectionLoss, Targets, targets_of
from detector.outputs import Candidates, Outputs


class Network(NamedTuple):
    """The modules that hold weights."""

    backbone: Backbone
    fpn: FPN
    head: Head


class DenseDetector(Detector[Outputs, Targets]):
    """Predicts classes and boxes at every anchor of five levels; computes its targets and losses.

    Built by `detector.model.build.build_detector`. Works in any memory format; channels-last is the fastest.

    Attributes:
        coder: decodes the head's box output.
        assigner: selects the positive anchors.
    """

    config: cfg.Detector
    backbone: Backbone
    pixel_mean: Tensor
    pixel_inverse_std: Tensor

    def __init__(
        self, config: cfg.Detector, network: Network, coder: Coder, assigner: Assigner, loss: DetectionLoss
    ) -> None:
        super().__init__()
        self.config = config
        self.coder = coder
        self.assigner = assigner
        self.loss = loss
        self.backbone, self.fpn, self.head = network
        mean = torch.tensor(config.pixel_mean).view(3, 1, 1)
        std = torch.tensor(config.pixel_std).view(3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_inverse_std", 1 / std, persistent=False)

    def forward(self, images_N3HW: Tensor, sizes_N2: Tensor | None = None) -> Outputs:
        """Predictions for a batch of images of any size.

        Args:
            images_N3HW: (N, 3, H, W) uint8 or float, RGB, 0-255; smaller images are at the top left.
            sizes_N2: (N, 2) int, height and width of each image without padding; None where every image
                fills the tensor.

        Returns:
            The outputs, float32 also under autocast.
        """
        features = self.fpn(self.backbone(self.prepare(images_N3HW, sizes_N2)))
        cls_NAK, raw_NA4, ctr_NA = self.head(features)
        feature_sizes = [(f.shape[-2], f.shape[-1]) for f in features]
        grid = anchor_grid(self.config.anchors, self.config.strides, feature_sizes, images_N3HW.device)
        return Outputs(cls_NAK, self.coder.activate(raw_NA4), ctr_NA, grid)

    def prepare(self, images_N3HW: Tensor, sizes_N2: Tensor | None = None) -> Tensor:
        """Normalises, and pads to a multiple of the C5 stride; see `detector.model.normalise.normalised`."""
        mean, inverse_std, multiple = self.pixel_mean, self.pixel_inverse_std, self.config.strides[2]
        return normalised(images_N3HW, sizes_N2, mean, inverse_std, multiple)

    @torch.no_grad()
    def targets(
        self,
        canvas: tuple[int, int],
        boxes_NG4: Tensor,
        labels_NG: Tensor,
        valid_NG: Tensor,
        outputs: Outputs | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Targets:
        """The targets of every anchor; see `Detector.targets`. They do not depend on predictions."""
        strides = self.config.strides
        sizes = feature_sizes(*canvas, strides)
        grid = anchor_grid(self.config.anchors, strides, sizes, boxes_NG4.device)
        with torch.autocast(boxes_NG4.device.type, enabled=False):
            match_NA = self.assigner(grid, boxes_NG4, valid_NG)
            return targets_of(match_NA, boxes_NG4, labels_NG, grid)

    def losses(self, outputs: Outputs, targets: Targets, counts: Tensor) -> dict[str, Tensor]:
        """See `Detector.losses`: "cls", "box" and, with that branch, "centerness"."""
        with torch.autocast(counts.device.type, enabled=False):
            return self.loss(outputs, targets, counts)

    def candidates(self, outputs: Outputs, evaluation: cfg.Evaluation) -> Candidates:
        """See `detector.model.candidates.dense_candidates`."""
        return dense_candidates(outputs, evaluation, self.coder)
