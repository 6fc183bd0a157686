"""What a config alone says of a detector: how many boxes it predicts, and from how large an image."""

from __future__ import annotations

from math import ceil

from detector.config import (
    AnyData,
    AnyDetector,
    Detector,
    Evaluation,
    FasterRCNN,
    SingleShot,
    SquareData,
    Trial,
)

PHOTOGRAPH = 4 / 3
"""Sides of an ordinary photograph, for detectors that keep the shape of an image."""


def boxes(trial: Trial, evaluation: Evaluation) -> float:
    """Boxes of an image before suppression: anchors of the square input or of a photograph, or proposals."""
    detector = trial.detector
    if isinstance(detector, SingleShot):
        return detector.num_anchors
    if isinstance(detector, FasterRCNN):
        return detector.testing.before
    return detector.anchors.num_per_location * _locations(detector, trial.data)


def _locations(detector: Detector, data: AnyData) -> int:
    short = long = _side(detector, data)
    if not isinstance(data, SquareData):
        long = min(data.max_long_side, round(PHOTOGRAPH * short))
    return sum(ceil(short / stride) * ceil(long / stride) for stride in detector.strides)


def input_side(trial: Trial, evaluation: Evaluation) -> float:
    """The side of the square that every image is warped to, or the short side; pixels."""
    return _side(trial.detector, trial.data)


def _side(detector: AnyDetector, data: AnyData) -> int:
    if isinstance(detector, SingleShot):
        return detector.input_size
    return data.side if isinstance(data, SquareData) else data.short_side
