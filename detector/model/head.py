"""The dense head: a classification tower and a box tower, shared by all levels.

Axes: N images, A anchors over all levels (level-major; then y, x, anchor of the location), K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detector import config as cfg
from detector.model.dcn import DeformConv2d
from detector.model.norms import group_norm

PAPER_CHANNELS = 256
PRIOR = 0.01
"""Initial foreground probability of the classifier (Lin et al. 2017, Sec. 4.1)."""


class HeadOutputs(NamedTuple):
    """Raw predictions of all anchors, float32: logits, box values, centerness logits or None."""

    cls_NAK: Tensor
    reg_NA4: Tensor
    ctr_NA: Tensor | None


class Head(nn.Module):
    """Predicts classes, boxes and (optionally) centerness from each level of the pyramid.

    Centerness is read from the box tower, as in the authors' code. With `level_scale` the box output
    of each level is multiplied by a learned scalar, before the box coder's activation. Box and centerness
    share one output convolution, with the channels (4 box values, centerness) per anchor: the same result as
    two convolutions in the time of one.

    Args:
        config: the parts of the head.
        channels: channels of the pyramid and of the towers.
        num_anchors: anchors of one location.
        num_classes: foreground classes.
        box_bias: initial bias of the box output.
        num_levels: levels of the pyramid.
    """

    def __init__(
        self,
        config: cfg.Head,
        *,
        channels: int,
        num_anchors: int,
        num_classes: int,
        box_bias: float,
        num_levels: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box_width = 5 if config.centerness else 4
        self.cls_tower = _tower(config, channels)
        self.box_tower = _tower(config, channels)
        self.cls_output = _conv(channels, num_anchors * num_classes, [-math.log((1 - PRIOR) / PRIOR)])
        self.box_output = _conv(channels, num_anchors * self.box_width, _box_biases(config, box_bias))
        self.scales = nn.Parameter(torch.ones(num_levels)) if config.level_scale else None

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Predictions from P3..P7, each (N, channels, H_l, W_l)."""
        cls, boxes, centerness = [], [], []
        for level, feature in enumerate(features):
            cls.append(per_anchor(self.cls_output(self.cls_tower(feature)), self.num_classes))
            values = per_anchor(self.box_output(self.box_tower(feature)), self.box_width).float()
            box, ctr = values[..., :4], values[..., 4:]
            boxes.append(box if self.scales is None else box * self.scales[level])
            centerness.append(ctr)
        cls_NAK, reg_NA4 = torch.cat(cls, dim=1).float(), torch.cat(boxes, dim=1)
        if self.box_width == 4:
            return HeadOutputs(cls_NAK, reg_NA4, None)
        return HeadOutputs(cls_NAK, reg_NA4, torch.cat(centerness, dim=1).squeeze(-1))


def _tower(config: cfg.Head, channels: int) -> nn.Sequential:
    return nn.Sequential(*(layer for i in range(config.num_convs) for layer in _layers(config, channels, i)))


def _layers(config: cfg.Head, channels: int, index: int) -> Iterable[nn.Module]:
    """One step of a tower: convolution, norm if any, ReLU; only the last convolution is deformable."""
    if config.deformable and index == config.num_convs - 1:
        # The main weight keeps torch's default initialisation, as in the authors' code.
        yield DeformConv2d(channels, channels, offset_init="normal")
    else:
        yield _conv(channels, channels, [0.0])
    if config.group_norm:
        yield group_norm(channels)
    yield nn.ReLU(inplace=True)


def _box_biases(config: cfg.Head, box_bias: float) -> list[float]:
    return [box_bias] * 4 + [0.0] * config.centerness


def _conv(in_channels: int, out_channels: int, biases: Sequence[float]) -> nn.Conv2d:
    """A 3x3 convolution with normal weights and `biases`, repeated for each anchor.

    The standard deviation is the paper's 0.01 at 256 channels. It is larger for fewer channels, so that a
    layer has the same gain: with 0.01 the signal of a narrow tower without norms would vanish.
    """
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01 * math.sqrt(PAPER_CHANNELS / in_channels))
    assert conv.bias is not None
    with torch.no_grad():
        conv.bias.copy_(torch.tensor(biases).repeat(out_channels // len(biases)))
    return conv


def per_anchor(maps: Tensor, width: int) -> Tensor:
    """(N, a * width, H, W) to (N, H * W * a, width); no copy where `maps` is channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, width)
