"""The detectors of the paper's rows, as values of one `Detector`, and how each one trains.

Where the paper leaves a setting open, the decision stands beside the setting.
"""

from __future__ import annotations

from dataclasses import replace

from detector.config import (
    ATSS,
    Anchors,
    Assigner,
    BoxRegression,
    Detector,
    Evaluation,
    GIoU,
    Head,
    MaxIoU,
    MultiScale,
    PointRegression,
    Regression,
    ResNet,
    ScalePass,
    SpatialScale,
)
from experiments.detection.recipe import Recipe

# --- backbones ---------------------------------------------------------------------------------------

RESNET_50 = ResNet(stride_in_1x1=True)
RESNET_101 = replace(RESNET_50, depths=(3, 4, 23, 3))
RESNEXT_101_32X8D = ResNet(depths=(3, 4, 23, 3), groups=32, width_per_group=8)
RESNEXT_101_64X4D = ResNet(depths=(3, 4, 23, 3), groups=64, width_per_group=4)

# Modulated deformable convolutions replace the 3x3 of C3..C5 in ResNet and of C4..C5 in ResNeXt, as in
# the authors' configs.
RESNET_101_DCN = replace(RESNET_101, deformable=(False, True, True, True))
RESNEXT_101_32X8D_DCN = replace(RESNEXT_101_32X8D, deformable=(False, False, True, True))
RESNEXT_101_64X4D_DCN = replace(RESNEXT_101_64X4D, deformable=(False, False, True, True))

# --- RetinaNet and the five improvements ---------------------------------------------------------------

# #sc = 3 spans an octave up from 4 strides, as in RetinaNet and as the authors set it for Table 7;
# #sc = 1 is one anchor of 8 strides.
ONE_ANCHOR = Anchors(scale=8.0)
NINE_ANCHORS = Anchors(scale=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))


INSIDE_GT = MaxIoU(inside_gt=True)
BOXES, POINTS = BoxRegression(), PointRegression()


def retinanet(anchors: Anchors = ONE_ANCHOR) -> Detector:
    """RetinaNet without any improvement.

    P6 comes from P5 in every row, so that a row differs from the one before by its named switch alone.
    (FCOS's own table lists its RetinaNet #A=1 with C5.) Every row divides the focal loss by the number
    of positives and tests with an NMS threshold of 0.6, for the same reason.
    """
    return Detector(backbone=RESNET_50, anchors=anchors)


def with_group_norm(detector: Detector) -> Detector:
    """GroupNorm in the towers ("GroupNorm")."""
    return replace(detector, head=replace(detector.head, group_norm=True))


def with_giou(detector: Detector) -> Detector:
    """GIoU loss on decoded boxes ("GIoU Loss"); divided by the positives until there is centerness."""
    return replace(detector, box_loss=GIoU())


def with_inside_gt(detector: Detector) -> Detector:
    """Positives must have their centre in the box ("In GT Box"); the others become ignored."""
    return replace(detector, assigner=INSIDE_GT)


def with_centerness(detector: Detector) -> Detector:
    """A centerness branch on the box tower, in the loss and in the score ("Centerness")."""
    return replace(detector, head=replace(detector.head, centerness=True))


def with_level_scale(detector: Detector) -> Detector:
    """A learnable scalar per level ("Scalar")."""
    return replace(detector, head=replace(detector.head, level_scale=True))


IMPROVEMENTS = {
    "GroupNorm": with_group_norm,
    "GIoU Loss": with_giou,
    "In GT Box": with_inside_gt,
    "Centerness": with_centerness,
    "Scalar": with_level_scale,
}
"""Table 1's switches in its order."""


def improved(
    assigner: Assigner = INSIDE_GT,
    regression: Regression = BOXES,
    anchors: Anchors = ONE_ANCHOR,
) -> Detector:
    """The head that all five improvements give, with a choice of positives and of regression."""
    head = Head(group_norm=True, centerness=True, level_scale=True)
    return Detector(
        backbone=RESNET_50,
        head=head,
        anchors=anchors,
        assigner=assigner,
        regression=regression,
        box_loss=GIoU(),
    )


def fcos(center_radius: float | None = None) -> Detector:
    """FCOS with the same head as the improved RetinaNet, as Tables 1-3 compare them.

    This is the authors' head with spatial and scale constraint and points. Their separate FCOS code
    smooths IoU by one pixel and weighs the box loss by 1; then Table 2 would change more than it says.
    Center sampling is FCOS's radius of 1.5 strides.
    """
    return improved(SpatialScale(center_radius), POINTS)


def atss(topk: int = 9, anchors: Anchors = ONE_ANCHOR) -> Detector:
    """RetinaNet (#A=1 unless told) with all improvements and ATSS."""
    return improved(ATSS(topk), anchors=anchors)


def fcos_atss() -> Detector:
    """FCOS with ATSS: points regressed from the centres of the anchors that ATSS picks."""
    return improved(ATSS(), POINTS)


def large(backbone: ResNet) -> Recipe:
    """Table 8: ATSS on a larger backbone, trained twice as long at several scales."""
    deformable = any(backbone.deformable)
    detector = atss()
    head = replace(detector.head, deformable=deformable)
    return Recipe(replace(detector, backbone=backbone, head=head), "2x")


# --- testing -----------------------------------------------------------------------------------------

SINGLE_SCALE = Evaluation()


def _scale_pass(short: int, low: int | None = None, high: int | None = None, *, limit: int) -> ScalePass:
    """A pass by the authors' numbers: short side and area range in pixels where training has 800."""
    return ScalePass(
        short / 800,
        limit / 800,
        None if low is None else low / 800,
        None if high is None else high / 800,
    )


MULTI_SCALE = Evaluation(
    scales=MultiScale(
        passes=(
            _scale_pass(800, limit=1333),
            _scale_pass(400, 96, 10_000, limit=1333),
            _scale_pass(500, 96, 10_000, limit=1333),
            _scale_pass(600, 64, 10_000, limit=1333),
            _scale_pass(640, 64, 10_000, limit=1333),
            _scale_pass(700, 64, 10_000, limit=1333),
            _scale_pass(900, 0, 10_000, limit=3000),
            _scale_pass(1000, 0, 10_000, limit=3000),
            _scale_pass(1100, 0, 256, limit=3000),
            _scale_pass(1200, 0, 256, limit=3000),
            _scale_pass(1300, 0, 192, limit=3000),
            _scale_pass(1400, 0, 192, limit=3000),
            _scale_pass(1800, 0, 96, limit=3000),
        )
    )
)
"""The authors' 13 sizes, each plain and flipped, with the area range each one answers for."""
