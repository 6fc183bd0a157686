"""How much work a trial is, counted from its config: the longest starts first, and estimates go by it.

Counts multiply-adds of convolutions, weighted where they take longer than others. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt

from detector.config import (
    AnyData,
    Detector,
    Evaluation,
    FasterRCNN,
    MultiScale,
    ResNet,
    SingleScale,
    SingleShot,
    SquareData,
    Trial,
)
from experiments.detection.cost_single_shot import multiply_adds, two_stage_multiply_adds

TRAINING = 3.0
"""Multiply-adds of a training step for each of its forward pass; frozen stages have no backward pass."""

DEFORMABLE = 4.0
"""Time of a deformable convolution over that of a plain one, offsets included (`benchmarks`, training steps
of grouped and deformable convolutions: 4.4 in the head, 3.3 in the backbone)."""

PHOTOGRAPH = 4 / 3
"""Sides of an ordinary photograph."""

FLIPPED = 2
"""Multi-scale testing sees every size plain and flipped."""


def trial_cost(trial: Trial, evaluations: Sequence[Evaluation], images: Mapping[str, int]) -> float:
    """Work of a training and its evaluations, in 10^12 multiply-adds.

    Args:
        images: in each split that is tested on.
    """
    schedule, detector, data = trial.schedule, trial.detector, trial.data
    seen = schedule.iterations * schedule.total_batch
    if isinstance(detector, SingleShot):
        tested = sum(images[e.split] for e in evaluations)
        return multiply_adds(detector) * (TRAINING * seen + tested) / 1e12
    if isinstance(detector, FasterRCNN):
        trained = two_stage_multiply_adds(detector, _training_pixels(data), detector.roi_samples)
        of_test = partial(two_stage_multiply_adds, detector, regions=detector.testing.after)
        tested_work = sum(images[e.split] * of_test(_tested_pixels(e, data)) for e in evaluations)
        return (TRAINING * seen * trained + tested_work) / 1e12
    forward = _forward(detector)
    seen_pixels = seen * _training_pixels(data)
    tested_pixels = sum(images[e.split] * _tested_pixels(e, data) for e in evaluations)
    return (
        seen_pixels * (TRAINING * forward.trained + forward.frozen) + tested_pixels * forward.total
    ) / 1e12


# --- pixels ------------------------------------------------------------------------------------------


def _pixels(short: float, longest: float) -> float:
    return short * min(longest, max(1.0, PHOTOGRAPH * short))


def _training_pixels(data: AnyData) -> float:
    """Of an image; the mean where the short side is drawn from a range."""
    if isinstance(data, SquareData):
        return float(data.side**2)
    low, high = data.min_short_side or data.short_side, data.short_side
    mean_square = (low * low + low * high + high * high) / 3
    return _pixels(high, data.max_long_side) * mean_square / high**2


def _tested_pixels(evaluation: Evaluation, data: AnyData) -> float:
    """Of an image in all passes."""
    match evaluation.scales:
        case SingleScale():
            return _test_pixels(data)
        case MultiScale(passes=passes):
            side = data.side if isinstance(data, SquareData) else data.short_side
            return FLIPPED * sum(_pixels(p.scale * side, p.max_scale * side) for p in passes)


def _test_pixels(data: AnyData) -> float:
    if isinstance(data, SquareData):
        return float(data.side**2)
    return _pixels(data.short_side, data.max_long_side)


# --- multiply-adds of an input pixel -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Forward:
    """The parts of the network that learn, and those that do not."""

    trained: float
    frozen: float

    @property
    def total(self) -> float:
        return self.trained + self.frozen


def _forward(detector: Detector) -> _Forward:
    stages = [_stem(detector.backbone), *_stages(detector.backbone)]
    frozen = sum(stages[: detector.backbone.frozen_stages])
    return _Forward(sum(stages) - frozen + _pyramid(detector) + _head(detector), frozen)


def _stem(resnet: ResNet) -> float:
    channels, stride = resnet.stem_channels, resnet.stem_stride
    if resnet.stem == "imagenet":
        return 3 * channels * 7 * 7 / 2**2
    return 3 * channels + channels * channels * 9 / stride**2


def _expansion(resnet: ResNet) -> int:
    return 4 if resnet.block == "bottleneck" else 1


def _stages(resnet: ResNet) -> Iterator[float]:
    """Of C2 to C5. A first block counts as if it had its stride in its first convolution."""
    channels, stride = resnet.stem_channels, resnet.stem_stride
    for index, depth in enumerate(resnet.depths):
        stride *= resnet.stage_strides[index]
        work = 0.0
        for _ in range(depth):
            work += _block(resnet, index, channels)
            channels = resnet.widths[index] * _expansion(resnet)
        yield work / stride**2


def _block(resnet: ResNet, index: int, channels: int) -> float:
    """At each of its locations. Of g groups: 1/g of the multiply-adds, about 1/sqrt(g) of the time."""
    out = resnet.widths[index] * _expansion(resnet)
    shortcut = 0 if channels == out else channels * out
    times = DEFORMABLE if resnet.deformable[index] else 1.0
    if resnet.block == "basic":
        return (channels + times * out) * out * 9 / sqrt(resnet.groups) + shortcut
    width = resnet.widths[index] * resnet.width_per_group // 64 * resnet.groups
    return (channels + out) * width + times * width * width * 9 / sqrt(resnet.groups) + shortcut


def _pyramid(detector: Detector) -> float:
    """P3 to P5; the two levels above are a hundredth."""
    resnet, out = detector.backbone, detector.fpn.channels
    sides = zip(resnet.widths[1:], detector.strides, strict=False)
    return sum((_expansion(resnet) * width + 9 * out) * out / stride**2 for width, stride in sides)


def _head(detector: Detector) -> float:
    head, channels = detector.head, detector.fpn.channels
    convs = head.num_convs - 1 + (DEFORMABLE if head.deformable else 1.0) if head.num_convs else 0.0
    outputs = detector.anchors.num_per_location * (detector.num_classes + 4 + head.centerness)
    locations = sum(1 / stride**2 for stride in detector.strides)
    return 9 * channels * (2 * convs * channels + outputs) * locations
