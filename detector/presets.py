"""SSD and RefineDet as their authors trained them on VOC, and smaller ones. Imports no torch.

SSD300* and SSD512* differ from the paper's first ones in data augmentation alone. Anchors of SSD are those of
the authors' scripts for VOC; those for COCO are smaller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from detector.config import (
    VGG,
    AnchorRefinement,
    AnyDetector,
    Evaluation,
    Extra,
    FasterRCNN,
    Level,
    Proposals,
    SingleShot,
    Source,
    TransferConnection,
    VOCEvaluation,
)

VOC_CLASSES = 20

_STRIDES = {300: (8.0, 16.0, 32.0, 64.0, 100.0, 300.0), 512: (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)}
_PERCENT = {300: (10, 20, 37, 54, 71, 88, 105), 512: (7, 15, 30, 45, 60, 75, 90, 105)}
"""Sides of SSD's square anchors in percent of the input; a level has its own and the mean with the next."""
_EXTRAS = {
    300: (Extra(256, 512), Extra(128, 256), *[Extra(128, 256, stride=1, padding=0)] * 2),
    512: (Extra(256, 512), *[Extra(128, 256)] * 3, Extra(128, 256, kernel=4, stride=1)),
}


def _ssd_levels(side: Literal[300, 512]) -> tuple[Level, ...]:
    """Three shapes at the second to the last but two, two at the others."""
    strides, percent = _STRIDES[side], _PERCENT[side]
    sizes = [side * p / 100 for p in percent]
    sources: tuple[Source, ...] = ("conv4", "fc7", *_EXTRAS[side])
    last = len(sources) - 1
    return tuple(
        Level(
            source=source,
            stride=strides[i],
            size=sizes[i],
            next_size=sizes[i + 1],
            ratios=(2.0, 3.0) if 0 < i < last - 1 else (2.0,),
            l2_scale=20.0 if i == 0 else None,
        )
        for i, source in enumerate(sources)
    )


SSD300 = SingleShot(VOC_CLASSES, VGG(), 300, _ssd_levels(300))
SSD512 = SingleShot(VOC_CLASSES, VGG(), 512, _ssd_levels(512))
SSD_TEST = VOCEvaluation(score_threshold=0.01, pre_nms_topk=400, nms_iou=0.45, max_detections=200)

REFINEDET_VGG = VGG(fc6_dilation=3, pool5_stride=2)
REFINEDET_LEVELS = (
    Level("conv4", 8.0, 32.0, l2_scale=10.0),
    Level("conv5", 16.0, 64.0, l2_scale=8.0),
    Level("fc7", 32.0, 128.0),
    Level(Extra(256, 512), 64.0, 256.0),
)
REFINEDET320 = SingleShot(
    VOC_CLASSES, REFINEDET_VGG, 320, REFINEDET_LEVELS, AnchorRefinement(), TransferConnection()
)
REFINEDET512 = replace(REFINEDET320, input_size=512)
REFINEDET_TEST = VOCEvaluation(score_threshold=0.01, pre_nms_topk=1000, nms_iou=0.45, max_detections=500)

FASTER_RCNN = FasterRCNN(VOC_CLASSES)
FASTER_RCNN_TEST = VOCEvaluation(score_threshold=0.05, nms_iou=0.3, max_detections=100)
"""NMS as in the authors' code. Its threshold of 0 on scores would only lengthen the lists."""


def usual_test(detector: AnyDetector) -> Evaluation:
    """The test that the paper of a detector uses, at one size."""
    match detector:
        case SingleShot(refinement=None):
            return SSD_TEST
        case SingleShot():
            return REFINEDET_TEST
        case FasterRCNN():
            return FASTER_RCNN_TEST
        case _:
            return Evaluation()


def shrunk(detector: SingleShot, halvings: int, thinner: int) -> SingleShot:
    """The detector for smaller images, from scratch, with the same cells, levels and number of anchors.

    Args:
        detector: of the paper's size.
        halvings: 0 to 2: how often the input, strides and anchors are halved. As many of VGG's first blocks
            are absent.
        thinner: divisor of all numbers of channels. Blocks have one convolution each, and group norms.

    Raises:
        ValueError: the input's side or the channels are no whole numbers then.
    """
    factor = 2**halvings
    transfer = detector.transfer
    return replace(
        detector,
        backbone=_shrunk_vgg(detector.backbone, halvings, thinner),
        input_size=_divided(detector.input_size, factor),
        levels=tuple(_shrunk_level(level, factor, thinner) for level in detector.levels),
        transfer=transfer and TransferConnection(_divided(transfer.channels, thinner)),
    )


def shrunk_two_stage(detector: FasterRCNN, halvings: int, thinner: int) -> FasterRCNN:
    """Faster R-CNN for smaller images, from scratch, with as many anchors in a cell; see `shrunk`.

    It has a sixth of the proposals before suppression, whose time grows with their square: with the paper's
    12,000 it took two thirds of a step on a CPU.
    """
    return replace(
        detector,
        backbone=_shrunk_vgg(detector.backbone, halvings, thinner),
        anchor_sides=tuple(side / 2**halvings for side in detector.anchor_sides),
        head_channels=_divided(detector.head_channels, thinner),
        training=Proposals(2000, 500),
        testing=Proposals(1000, 300),
    )


def _shrunk_vgg(vgg: VGG, halvings: int, thinner: int) -> VGG:
    w1, w2, w3, w4, w5 = (_divided(width, thinner) for width in vgg.widths)
    return replace(
        vgg,
        depths=(int(halvings < 1), int(halvings < 2), 1, 1, 1),
        widths=(w1, w2, w3, w4, w5),
        fc_channels=_divided(vgg.fc_channels, thinner),
        norm="group_norm",
    )


def _shrunk_level(level: Level, factor: int, thinner: int) -> Level:
    source = level.source
    if isinstance(source, Extra):
        squeeze, channels = _divided(source.squeeze, thinner), _divided(source.channels, thinner)
        source = replace(source, squeeze=squeeze, channels=channels)
    return replace(
        level,
        source=source,
        stride=level.stride / factor,
        size=level.size / factor,
        next_size=level.next_size and level.next_size / factor,
    )


def _divided(number: int, divisor: int) -> int:
    if number % divisor:
        raise ValueError(f"{number} is not divisible by {divisor}")
    return number // divisor
