"""Builds objects from config classes; no other module matches on them."""

from __future__ import annotations

from typing import assert_never, overload

import torch

from detector import config as cfg
from detector.geometry.box_coders import BoxCoder, Coder, PointCoder
from detector.model.dense_detector import DenseDetector, Network
from detector.model.detector import AnyModel
from detector.model.faster_rcnn import FasterRCNNDetector
from detector.model.fpn import FPN
from detector.model.head import Head
from detector.model.resnet import Backbone
from detector.model.single_shot import SingleShotDetector
from detector.objectives.assigners import Assigner, ATSSAssigner, MaxIoUAssigner, SpatialScaleAssigner
from detector.objectives.losses import DetectionLoss


@overload
def build_detector(config: cfg.Detector) -> DenseDetector: ...
@overload
def build_detector(config: cfg.SingleShot) -> SingleShotDetector: ...
@overload
def build_detector(config: cfg.FasterRCNN) -> FasterRCNNDetector: ...
@overload
def build_detector(config: cfg.AnyDetector) -> AnyModel: ...


def build_detector(config: cfg.AnyDetector) -> AnyModel:
    """A detector with random weights from torch's global generator, on torch's default device.

    Args:
        config: what to build.

    Returns:
        The detector, in training mode and in the channels-last memory format, the fastest.
    """
    match config:
        case cfg.Detector():
            detector: AnyModel = _dense_detector(config)
        case cfg.SingleShot():
            detector = SingleShotDetector(config)
        case cfg.FasterRCNN():
            detector = FasterRCNNDetector(config)
        case _:
            assert_never(config)
    return detector.to(memory_format=torch.channels_last)


def _dense_detector(config: cfg.Detector) -> DenseDetector:
    coder = build_coder(config.regression)
    backbone = Backbone(config.backbone)
    head = Head(
        config.head,
        channels=config.fpn.channels,
        num_anchors=config.anchors.num_per_location,
        num_classes=config.num_classes,
        box_bias=coder.initial_bias,
        num_levels=len(config.strides),
    )
    network = Network(backbone, FPN(config.fpn, backbone.out_channels), head)
    assigner = build_assigner(config.assigner)
    return DenseDetector(config, network, coder, assigner, DetectionLoss(config, coder))


def build_assigner(config: cfg.Assigner) -> Assigner:
    """The rule that divides anchors into positives and negatives."""
    match config:
        case cfg.MaxIoU():
            return MaxIoUAssigner(config)
        case cfg.SpatialScale():
            return SpatialScaleAssigner(config)
        case cfg.ATSS():
            return ATSSAssigner(config)
        case _:
            assert_never(config)


def build_coder(config: cfg.Regression) -> Coder:
    """The coder of the head's box output."""
    match config:
        case cfg.BoxRegression(weights=weights):
            return BoxCoder(weights)
        case cfg.PointRegression():
            return PointCoder()
        case _:
            assert_never(config)
