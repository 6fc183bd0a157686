"""The dense head: a classification tower and a box tower, shared by all levels.

Axes: N images, A anchors over all levels (level-major; then y, x, anchor of the location), K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detector.config import Head as HeadConfig
from detector.dcn import DeformConv2d
from detector.norms import group_norm

PRIOR = 0.01
"""Foreground probability that the classifier starts from (focal loss, Lin et al. 2017, Sec. 4.1)."""


class HeadOutputs(NamedTuple):
    """Raw predictions of all anchors, float32: logits, box values, centerness logits or None."""

    cls_NAK: Tensor
    reg_NA4: Tensor
    ctr_NA: Tensor | None


class Head(nn.Module):
    """Predicts classes, boxes and (optionally) centerness from each level of the pyramid.

    Centerness is read from the box tower, as in the authors' code. With `level_scale` the box output
    of each level is multiplied by a learned scalar, before the box coder's activation.

    Args:
        config: which parts the head has.
        channels: channels of the pyramid and of the towers.
        num_anchors: anchors of one location.
        num_classes: foreground classes.
        box_bias: initial bias of the box output.
        num_levels: levels of the pyramid.
    """

    def __init__(
        self,
        config: HeadConfig,
        *,
        channels: int,
        num_anchors: int,
        num_classes: int,
        box_bias: float,
        num_levels: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_tower = _tower(config, channels)
        self.box_tower = _tower(config, channels)
        self.cls_logits = _output(channels, num_anchors * num_classes, -math.log((1 - PRIOR) / PRIOR))
        self.box_values = _output(channels, num_anchors * 4, box_bias)
        self.centerness = _output(channels, num_anchors, 0.0) if config.centerness else None
        self.scales = nn.Parameter(torch.ones(num_levels)) if config.level_scale else None

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Predictions from P3..P7, each (N, channels, H_l, W_l)."""
        cls, reg, ctr = [], [], []
        for level, feature in enumerate(features):
            cls.append(_per_anchor(self.cls_logits(self.cls_tower(feature)), self.num_classes))
            boxes = self.box_tower(feature)
            values = _per_anchor(self.box_values(boxes), 4).float()
            reg.append(values if self.scales is None else values * self.scales[level])
            if self.centerness is not None:
                ctr.append(_per_anchor(self.centerness(boxes), 1))
        return HeadOutputs(
            torch.cat(cls, dim=1).float(),
            torch.cat(reg, dim=1),
            torch.cat(ctr, dim=1).float().squeeze(-1) if ctr else None,
        )


def _tower(config: HeadConfig, channels: int) -> nn.Sequential:
    return nn.Sequential(*(layer for i in range(config.num_convs) for layer in _layers(config, channels, i)))


def _layers(config: HeadConfig, channels: int, index: int) -> Iterable[nn.Module]:
    """One step of a tower: convolution, norm if any, ReLU; only the last convolution is deformable."""
    if config.deformable and index == config.num_convs - 1:
        # Its main weight keeps torch's default initialisation, as in the authors' code.
        yield DeformConv2d(channels, channels, offset_init="normal")
    else:
        yield _output(channels, channels, 0.0)
    if config.group_norm:
        yield group_norm(channels)
    yield nn.ReLU(inplace=True)


def _output(in_channels: int, out_channels: int, bias: float) -> nn.Conv2d:
    """A 3x3 convolution with normal weights of std 0.01 and a constant bias."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv


def _per_anchor(maps: Tensor, width: int) -> Tensor:
    """(N, a * width, H, W) to (N, H * W * a, width); no copy where `maps` is channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, width)
