"""Multiply-adds of detectors on VGG, counted from their configs. Imports no torch."""

from __future__ import annotations

from detector.config import VGG, Extra, FasterRCNN, SingleShot


def multiply_adds(detector: SingleShot) -> int:
    """Of all convolutions, for one image."""
    return sum(
        (
            _vgg(detector.backbone, detector.input_size),
            _extras(detector),
            _transfer(detector),
            _heads(detector),
        )
    )


def two_stage_multiply_adds(detector: FasterRCNN, pixels: float, regions: int) -> float:
    """Of an image with that many pixels and regions that are judged; the map counts as whole cells."""
    side = round(pixels**0.5)
    channels, head = detector.backbone.widths[4], detector.head_channels
    rpn = channels * (9 * channels + 5 * detector.num_per_location) * pixels / detector.stride**2
    judged = (_POOLED**2 * channels + head + 5 * (detector.num_classes + 1)) * head
    return _vgg(detector.backbone, side) + rpn + regions * judged


_POOLED = 7
"""Cells per side of a region."""


def _vgg(vgg: VGG, side: int) -> int:
    """Blocks, fc6 and fc7."""
    total, channels, of = 0, 3, vgg.sides(side)
    for block, (depth, width) in enumerate(zip(vgg.depths, vgg.widths, strict=True)):
        side = side if block < 3 else of[f"conv{block + 1}"]
        for _ in range(depth):
            total += 9 * channels * width * side**2
            channels = width
        side = -(-side // 2) if depth else side
    return total + (9 * channels + vgg.fc_channels) * vgg.fc_channels * of["fc7"] ** 2


def _extras(detector: SingleShot) -> int:
    total = 0
    channels, sides = (0, *detector.channels), (0, *detector.sides)
    for before, level in enumerate(detector.levels):
        if isinstance(extra := level.source, Extra):
            total += channels[before] * extra.squeeze * sides[before] ** 2
            total += extra.kernel**2 * extra.squeeze * extra.channels * sides[before + 1] ** 2
    return total


def _transfer(detector: SingleShot) -> int:
    """Three 3x3 a level; and the deconvolution, which is a 1x1 at each cell of the finer level."""
    if detector.transfer is None:
        return 0
    out, sides = detector.transfer.channels, detector.sides
    convolutions = sum(9 * (c + 2 * out) * out * s**2 for c, s in zip(detector.channels, sides, strict=True))
    return convolutions + sum(out * out * side**2 for side in sides[:-1])


def _heads(detector: SingleShot) -> int:
    total = 0
    for level, channels, side in zip(detector.levels, detector.channels, detector.sides, strict=True):
        read = detector.transfer.channels if detector.transfer else channels
        total += 9 * read * level.num_per_location * (detector.num_classes + 1 + 4) * side**2
        if detector.refinement:
            total += 9 * channels * level.num_per_location * (2 + 4) * side**2
    return total
