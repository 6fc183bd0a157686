"""torchvision's RetinaNet and FCOS on ResNet-50, with frozen batch norm, stem and C2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.common import Batch, Stopwatch

TRAINABLE_LAYERS = 3
"""C3, C4 and C5."""


def build(name: str, num_classes: int = 80) -> Any:
    """torchvision's "RetinaNet" or "FCOS" in training mode, fresh weights."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=TRAINABLE_LAYERS,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    kind = {"RetinaNet": RetinaNet, "FCOS": FCOS}[name]
    return kind(backbone, num_classes).train()


class TorchvisionPeer:
    """One of the two in training, given images of their final size.

    Attributes:
        parameters: those that learn.

    Args:
        name: as in `build`.
        batch: what it trains on.
    """

    def __init__(self, name: str, batch: Batch) -> None:
        self._model = build(name)
        self._images_N3HW = batch.normalised
        self._targets = [
            {"boxes": boxes, "labels": labels}
            for boxes, labels in zip(batch.boxes_NG4, batch.labels_NG, strict=True)
        ]
        self.parameters = [p for p in self._model.parameters() if p.requires_grad]

    def loss(self, watch: Stopwatch) -> Tensor:
        """Sum of the batch's losses; marks its parts."""
        model = self._model
        features = list(model.backbone(self._images_N3HW).values())
        watch.mark("backbone + FPN")
        outputs = model.head(features)
        watch.mark("head")
        sizes = [tuple(self._images_N3HW.shape[-2:])] * len(self._images_N3HW)
        anchors = model.anchor_generator(ImageList(self._images_N3HW, sizes), features)
        cells = [[f.shape[-2] * f.shape[-1] for f in features]] if isinstance(model, FCOS) else []
        losses = model.compute_loss(self._targets, outputs, anchors, *cells)
        watch.mark("losses")
        return torch.stack(list(losses.values())).sum()
