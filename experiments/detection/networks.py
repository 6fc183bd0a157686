"""A detector made small: few channels and layers, from scratch, with every switch that a row turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from detector.config import FPN, AnyDetector, Detector, FasterRCNN, ResNet, SingleShot
from detector.presets import shrunk, shrunk_two_stage


@dataclass(frozen=True, slots=True)
class SmallNetworks:
    """The small networks of a scale, one for each family of detectors."""

    dense: SmallDense
    single_shot: SmallSingleShot

    def small(self, detector: AnyDetector, num_classes: int) -> AnyDetector:
        """The same detector made small, with the data set's classes."""
        match detector:
            case Detector():
                return self.dense.small(detector, num_classes)
            case SingleShot():
                return self.single_shot.small(detector, num_classes)
            case FasterRCNN():
                return self.single_shot.small_two_stage(detector, num_classes)
            case _:
                assert_never(detector)


@dataclass(frozen=True, slots=True)
class SmallSingleShot:
    """Numbers of the small network of a single-shot detector.

    Attributes:
        halvings, thinner: see `detector.presets.shrunk`. Cells and anchors are as many as in the paper, so
            that input sizes keep their ratio and boxes their number.
    """

    halvings: int
    thinner: int

    def small(self, detector: SingleShot, num_classes: int) -> SingleShot:
        """The same detector for smaller images, with few channels and the data set's classes."""
        return replace(shrunk(detector, self.halvings, self.thinner), num_classes=num_classes)

    def small_two_stage(self, detector: FasterRCNN, num_classes: int) -> FasterRCNN:
        """Faster R-CNN on the same small VGG."""
        small = shrunk_two_stage(detector, self.halvings, self.thinner)
        return replace(small, num_classes=num_classes)


@dataclass(frozen=True, slots=True)
class SmallDense:
    """Numbers of the small network of a dense detector.

    Attributes:
        widths, stem_channels, stem_stride: of the backbone.
        channels: of the FPN and the head.
        num_convs: of each tower of the head.
    """

    widths: tuple[int, int, int, int]
    stem_channels: int
    stem_stride: int
    channels: int
    num_convs: int

    def small(self, detector: Detector, num_classes: int) -> Detector:
        """The same detector with a small backbone, few channels and the data set's classes."""
        return replace(
            detector,
            num_classes=num_classes,
            backbone=self.backbone(detector.backbone),
            fpn=FPN(self.channels, detector.fpn.p6_from),
            head=replace(detector.head, num_convs=self.num_convs, deformable=False),
        )

    def backbone(self, paper: ResNet) -> ResNet:
        """A small analogue, from scratch: deeper where the paper's is, grouped and deformable likewise.

        ResNet-50 becomes one block in each of C3 to C5, and the 101-layer networks two in C3 and C4; 32 and
        64 groups become 4 and 8. Deformable convolutions stay in C5 alone, and out of the head: on a CPU one
        of them at C5 costs as much as the rest of the step, and at P3 ten times that.
        """
        deep = sum(paper.depths) > sum((3, 4, 6, 3))
        return ResNet(
            block="basic",
            depths=(0, 2, 2, 1) if deep else (0, 1, 1, 1),
            widths=self.widths,
            stem="patch",
            stem_channels=self.stem_channels,
            stem_stride=self.stem_stride,
            stage_strides=(1, 1, 2, 2),
            groups={1: 1, 32: 4, 64: 8}[paper.groups],
            deformable=(False, False, False, paper.deformable[3]),
            norm="group_norm",
            frozen_stages=0,
        )
