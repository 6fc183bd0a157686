"""Faster R-CNN of torchvision's parts on VGG, with losses that are the same on any number of workers.

torchvision's own losses are means over the anchors and proposals of one process, which it draws from torch's
global generator. Here they are sums over all parts of a batch, divided by their counts, and a draw is a
function of trial, step and image.

Axes: N images, A anchors, R regions of an image, K classes. Boxes are xyxy float32, pixels of the input
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.faster_rcnn import (
    AnchorGenerator,
    FastRCNNPredictor,
    RoIHeads,
    RPNHead,
    TwoMLPHead,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import roi_align

from detector.config import Evaluation, FasterRCNN
from detector.model.detector import Detector
from detector.model.normalise import normalised
from detector.model.vgg import VGG
from detector.objectives.sampling import RegionTargets, drawn
from detector.outputs import Candidates

_POOLED = 7
_BETA = 1 / 9
"""Of smooth L1, as in torchvision."""


@dataclass
class RegionOutputs:
    """Outputs of the first stage.

    Attributes:
        features: (N, C, h, w), in autocast's precision.
        objects_NA: (N, A) float32 logits.
        deltas_NA4: (N, A, 4) float32.
        anchors_A4: (A, 4) float32.
        proposals: per image (R, 4) float32, without gradient.
        sizes: (height, width) of each image without padding.
    """

    features: Tensor
    objects_NA: Tensor
    deltas_NA4: Tensor
    anchors_A4: Tensor
    proposals: list[Tensor]
    sizes: list[tuple[int, int]]


class FasterRCNNDetector(Detector[RegionOutputs, RegionTargets]):
    """Proposes regions from one map, then classifies and corrects each.

    Built by `detector.model.build.build_detector`.
    """

    config: FasterRCNN
    backbone: VGG
    pixel_mean: Tensor
    pixel_inverse_std: Tensor
    targets_need_outputs = True
    rpn: Any
    roi: Any

    def __init__(self, config: FasterRCNN) -> None:
        super().__init__()
        self.config = config
        self.backbone = VGG(config.backbone)
        channels = config.backbone.widths[4]
        self.rpn = _region_proposals(config, channels)
        self.roi = _region_heads(config, channels)
        mean = torch.tensor(config.pixel_mean).view(3, 1, 1)
        std = torch.tensor(config.pixel_std).view(3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_inverse_std", 1 / std, persistent=False)

    def forward(self, images_N3HW: Tensor, sizes_N2: Tensor | None = None) -> RegionOutputs:
        """Proposals for a batch of images of any size; see `Detector.forward`."""
        mean, inverse_std = self.pixel_mean, self.pixel_inverse_std
        x = normalised(images_N3HW, sizes_N2, mean, inverse_std, self.config.stride)
        height, width = images_N3HW.shape[-2:]
        sizes = [(height, width)] * len(x) if sizes_N2 is None else [(h, w) for h, w in sizes_N2.tolist()]
        features = self.backbone(x)["conv5"]
        logits, deltas = self.rpn.head([features])
        anchors = self.rpn.anchor_generator(ImageList(x, sizes), [features])[0]
        objects, offsets = concat_box_prediction_layers(logits, deltas)
        objects_NA = objects.view(len(x), -1).float()
        deltas_NA4 = offsets.view(len(x), -1, 4).float()
        with torch.no_grad():
            boxes = self.rpn.box_coder.decode(deltas_NA4.flatten(0, 1), [anchors] * len(x))
            boxes = boxes.view(len(x), -1, 4)
            proposals, _ = self.rpn.filter_proposals(boxes, objects_NA, sizes, [len(anchors)])
        return RegionOutputs(features, objects_NA, deltas_NA4, anchors, proposals, sizes)

    @torch.no_grad()
    def targets(
        self,
        canvas: tuple[int, int],
        boxes_NG4: Tensor,
        labels_NG: Tensor,
        valid_NG: Tensor,
        outputs: RegionOutputs | None = None,
        seeds: Sequence[int] | None = None,
    ) -> RegionTargets:
        """The anchors and proposals that are learned from; see `Detector.targets`.

        An object's own box is among its image's regions, as in torchvision.
        """
        assert outputs is not None
        seeds = range(len(boxes_NG4)) if seeds is None else seeds
        boxes = [own[valid] for own, valid in zip(boxes_NG4, valid_NG, strict=True)]
        labels = [own[valid] + 1 for own, valid in zip(labels_NG, valid_NG, strict=True)]
        with torch.autocast(boxes_NG4.device.type, enabled=False):
            anchors = [outputs.anchors_A4] * len(boxes)
            objects, wanted = self.rpn.assign_targets_to_anchors(anchors, [{"boxes": own} for own in boxes])
            count = self.config.rpn_samples
            chosen = [drawn(own, count, count // 2, seed) for own, seed in zip(objects, seeds, strict=True)]
            deltas = self.rpn.box_coder.encode(wanted, anchors)
            return RegionTargets(
                objects, chosen, list(deltas), *self._drawn_regions(outputs.proposals, boxes, labels, seeds)
            )

    def _drawn_regions(
        self, proposals: list[Tensor], boxes: list[Tensor], labels: list[Tensor], seeds: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Regions, their classes and their deltas, by image."""
        regions = self.roi.add_gt_proposals(proposals, boxes)
        matched, classes = self.roi.assign_targets_to_proposals(regions, boxes, labels)
        count, found = self.config.roi_samples, []
        for own, kinds, objects, match, seed in zip(regions, classes, boxes, matched, seeds, strict=True):
            chosen = drawn(kinds, count, count // 4, seed).nonzero().squeeze(1)
            wanted = objects[match[chosen]] if len(objects) else own[chosen]
            found.append((own[chosen], kinds[chosen], self.roi.box_coder.encode([wanted], [own[chosen]])[0]))
        own_regions, own_classes, own_deltas = (list(column) for column in zip(*found, strict=True))
        return own_regions, own_classes, own_deltas

    def losses(self, outputs: RegionOutputs, targets: RegionTargets, counts: Tensor) -> dict[str, Tensor]:
        """See `Detector.losses`: "rpn_cls", "rpn_box", "cls" and "box". The second stage runs here."""
        num_anchors, num_regions = counts.clamp(min=1).unbind()
        logits, deltas = self._judged(outputs, list(targets.regions))
        with torch.autocast(counts.device.type, enabled=False):
            rpn_cls, rpn_box = _first_stage(outputs, targets)
            classes = torch.cat(list(targets.classes))
            cls = F.cross_entropy(logits, classes, reduction="sum")
            own_RK4 = deltas.view(len(classes), -1, 4)
            own_R4 = own_RK4.gather(1, classes.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
            box = _box_loss(own_R4, torch.cat(list(targets.region_deltas)), classes > 0)
        return {
            "rpn_cls": rpn_cls / num_anchors,
            "rpn_box": rpn_box / num_anchors,
            "cls": cls / num_regions,
            "box": box / num_regions,
        }

    def _judged(self, outputs: RegionOutputs, regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (all R, K + 1) and deltas (all R, (K + 1) * 4), float32, in the precision of `forward`."""
        precision = outputs.features.dtype
        enabled = precision != torch.float32
        with torch.autocast(outputs.features.device.type, precision if enabled else None, enabled=enabled):
            scale = 1 / self.config.stride
            pooled = roi_align(outputs.features.float(), regions, _POOLED, scale, sampling_ratio=2)
            logits, deltas = self.roi.box_predictor(self.roi.box_head(pooled))
        return logits.float(), deltas.float()

    def candidates(self, outputs: RegionOutputs, evaluation: Evaluation) -> Candidates:
        """All (proposal, class) pairs whose softmax probability exceeds `score_threshold`."""
        logits, deltas = self._judged(outputs, outputs.proposals)
        num_classes, numbers = self.config.num_classes, [len(own) for own in outputs.proposals]
        boxes_RK4 = self.roi.box_coder.decode(deltas, outputs.proposals)[:, 1:]
        scores_RK = logits.softmax(dim=-1)[:, 1:]
        scores_RK = scores_RK.where(scores_RK > evaluation.score_threshold, -1.0)
        scores_NRK = pad_sequence(list(torch.split(scores_RK, numbers)), batch_first=True, padding_value=-1.0)
        boxes_NRK4 = pad_sequence(list(torch.split(boxes_RK4, numbers)), batch_first=True)
        labels_K = torch.arange(num_classes, device=logits.device)
        return Candidates(
            boxes_NC4=boxes_NRK4.flatten(1, 2),
            labels_NC=labels_K.expand(scores_NRK.shape).flatten(1),
            scores_NC=scores_NRK.flatten(1),
        )


def _first_stage(outputs: RegionOutputs, targets: RegionTargets) -> tuple[Tensor, Tensor]:
    """Sums of the losses of the anchors that were drawn."""
    drawn_NA, objects_NA = torch.stack(list(targets.anchors)), torch.stack(list(targets.objects))
    cls_NA = F.binary_cross_entropy_with_logits(outputs.objects_NA, objects_NA.clamp(min=0), reduction="none")
    deltas_NA4 = torch.stack(list(targets.anchor_deltas))
    box = _box_loss(outputs.deltas_NA4, deltas_NA4, drawn_NA & (objects_NA > 0))
    return cls_NA.where(drawn_NA, 0.0).sum(), box


def _box_loss(deltas: Tensor, wanted: Tensor, positive: Tensor) -> Tensor:
    """Sum over positives. Others have an infinite target where an image has no object."""
    wanted = wanted.where(positive.unsqueeze(-1), 0.0)
    loss = F.smooth_l1_loss(deltas, wanted, beta=_BETA, reduction="none")
    return (loss * positive.unsqueeze(-1)).sum()


def _region_proposals(config: FasterRCNN, channels: int) -> RegionProposalNetwork:
    before = {"training": config.training.before, "testing": config.testing.before}
    after = {"training": config.training.after, "testing": config.testing.after}
    anchors = AnchorGenerator((config.anchor_sides,), (config.ratios,))
    head = RPNHead(channels, config.num_per_location)
    return RegionProposalNetwork(anchors, head, 0.7, 0.3, config.rpn_samples, 0.5, before, after, 0.7)


def _region_heads(config: FasterRCNN, channels: int) -> RoIHeads:
    return RoIHeads(
        None,
        TwoMLPHead(channels * _POOLED**2, config.head_channels),
        FastRCNNPredictor(config.head_channels, config.num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.roi_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.0,
        nms_thresh=0.5,
        detections_per_img=100,
    )
