"""SSD and RefineDet: a detector with one pass over a square image, by config.

Axes: N images, A anchors over all levels, G ground-truth boxes padded per image, K classes. Boxes are xyxy
float32, pixels of the input image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.config import Evaluation, Extra, SingleShot
from detector.geometry.box_coders import BoxCoder
from detector.geometry.default_boxes import default_boxes
from detector.model.candidates import single_shot_candidates
from detector.model.detector import Detector
from detector.model.single_shot_parts import ExtraLayers, L2Norm, MultiBoxHead, TransferConnections
from detector.model.vgg import VGG
from detector.objectives.multibox import SingleShotLoss, SingleShotTargets, box_targets
from detector.outputs import Candidates, MultiBox, SingleShotOutputs


class SingleShotDetector(Detector[SingleShotOutputs, SingleShotTargets]):
    """Predicts classes and boxes at every anchor of the levels, in one step or, with an ARM, in two.

    Built by `detector.model.build.build_detector`. Works in any memory format; channels-last is the fastest.

    Attributes:
        coder: decodes the box outputs of both steps.
        anchors_A4: (A, 4) float32, xyxy.
    """

    config: SingleShot
    backbone: VGG
    pixel_mean: Tensor
    pixel_inverse_std: Tensor
    anchors_A4: Tensor

    def __init__(self, config: SingleShot) -> None:
        super().__init__()
        self.config = config
        self.coder = BoxCoder([1 / variance for variance in config.variances])
        self.loss = SingleShotLoss(config)
        refinement, transfer, channels = config.refinement, config.transfer, config.channels
        self.targets_need_outputs = refinement is not None and refinement.cascade
        num_anchors = [level.num_per_location for level in config.levels]

        self.backbone = VGG(config.backbone)
        extras = [level.source for level in config.levels if isinstance(level.source, Extra)]
        self.extra = ExtraLayers(extras, channels[len(channels) - len(extras) - 1])
        self.norms = nn.ModuleList(
            nn.Identity() if level.l2_scale is None else L2Norm(width, level.l2_scale)
            for level, width in zip(config.levels, channels, strict=True)
        )
        self.arm = MultiBoxHead(channels, num_anchors, 2) if refinement else None
        self.tcb = TransferConnections(transfer.channels, channels) if transfer else None
        read = [transfer.channels] * len(channels) if transfer else channels
        self.odm = MultiBoxHead(read, num_anchors, config.num_classes + 1)

        mean = torch.tensor(config.pixel_mean).view(3, 1, 1)
        std = torch.tensor(config.pixel_std).view(3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_inverse_std", 1 / std, persistent=False)
        self.register_buffer("anchors_A4", default_boxes(config), persistent=False)

    def forward(self, images_N3HW: Tensor, sizes_N2: Tensor | None = None) -> SingleShotOutputs:
        """Predictions for a batch of square images.

        Args:
            images_N3HW: (N, 3, S, S) uint8 or float, RGB, 0-255; S is the config's `input_size`.
            sizes_N2: not used: every image fills the tensor.

        Returns:
            The outputs, float32 also under autocast.

        Raises:
            ValueError: the images have another size.
        """
        side = self.config.input_size
        if images_N3HW.shape[-2:] != (side, side):
            height, width = images_N3HW.shape[-2:]
            raise ValueError(f"images must be {side} x {side} pixels, got {height} x {width}: warp them")
        maps = self._maps((images_N3HW - self.pixel_mean) * self.pixel_inverse_std)
        anchors_NA4 = self.anchors_A4.expand(len(images_N3HW), -1, -1)
        arm = None if self.arm is None else _predicted(self.arm, maps, anchors_NA4)
        boxes_NA4 = self._refined(arm) if arm is not None and self.targets_need_outputs else anchors_NA4
        features = maps if self.tcb is None else self.tcb(maps)
        return SingleShotOutputs(_predicted(self.odm, features, boxes_NA4), arm)

    def _maps(self, x: Tensor) -> list[Tensor]:
        """The levels' maps. The extra layers read the last one before it is normalised."""
        of_backbone = self.backbone(x)
        sources = [level.source for level in self.config.levels]
        maps = [of_backbone[source] for source in sources if not isinstance(source, Extra)]
        maps += self.extra(maps[-1])
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]

    def _refined(self, arm: MultiBox) -> Tensor:
        """The ARM's boxes, (N, A, 4), without gradient."""
        with torch.no_grad():
            return self.coder.decode(arm.reg_NA4, arm.boxes_NA4, arm.reg_NA4[..., 0])

    @torch.no_grad()
    def targets(
        self,
        canvas: tuple[int, int],
        boxes_NG4: Tensor,
        labels_NG: Tensor,
        valid_NG: Tensor,
        outputs: SingleShotOutputs | None = None,
        seeds: Sequence[int] | None = None,
    ) -> SingleShotTargets:
        """The targets of every anchor; see `Detector.targets`.

        The ARM's are of the anchors and of one class; those of the detection head are of the boxes that its
        offsets start from. With a cascade these are the ARM's.
        """
        anchors_NA4 = self.anchors_A4.expand(len(boxes_NG4), -1, -1)
        if self.targets_need_outputs:
            assert outputs is not None
            starts_NA4 = outputs.odm.boxes_NA4
        else:
            starts_NA4 = anchors_NA4
        iou = self.config.match_iou
        with torch.autocast(boxes_NG4.device.type, enabled=False):
            odm = box_targets(starts_NA4, boxes_NG4, labels_NG, valid_NG, self.coder, iou)
            if self.arm is None:
                return SingleShotTargets(odm, None)
            any_object_NG = torch.zeros_like(labels_NG)
            arm = box_targets(anchors_NA4, boxes_NG4, any_object_NG, valid_NG, self.coder, iou)
            return SingleShotTargets(odm, arm)

    def losses(
        self, outputs: SingleShotOutputs, targets: SingleShotTargets, counts: Tensor
    ) -> dict[str, Tensor]:
        """See `Detector.losses`: "cls", "box" and, with an ARM, "arm_cls" and "arm_box"."""
        with torch.autocast(counts.device.type, enabled=False):
            return self.loss(outputs, targets, counts)

    def candidates(self, outputs: SingleShotOutputs, evaluation: Evaluation) -> Candidates:
        """See `detector.model.candidates.single_shot_candidates`."""
        refinement = self.config.refinement
        least = refinement.objectness if refinement else 0.0
        return single_shot_candidates(outputs, evaluation, self.coder, least)


def _predicted(head: MultiBoxHead, maps: list[Tensor], boxes_NA4: Tensor) -> MultiBox:
    cls_NAK, reg_NA4 = head(maps)
    return MultiBox(cls_NAK, reg_NA4, boxes_NA4)
