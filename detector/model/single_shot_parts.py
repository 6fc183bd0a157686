"""Parts of SSD and RefineDet on top of the backbone: L2 normalisation, extra layers, TCBs and heads.

Axes: N images; C channels, H and W of a level; A anchors over all levels; K + 1 classes with background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detector import config as cfg
from detector.model.convolution import Conv2d
from detector.model.head import per_anchor

_EPS = 1e-10
"""Added to the squared norm (the authors' code)."""


class L2Norm(nn.Module):
    """Each pixel's vector of channels at length 1, times a learned factor per channel (ParseNet)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` (N, C, H, W), in float32; keeps its dtype."""
        wide = x.float()
        norm = (wide.square().sum(dim=1, keepdim=True) + _EPS).rsqrt()
        return (wide * norm * self.weight.view(-1, 1, 1)).to(x.dtype)


class ExtraLayers(nn.Module):
    """The maps of levels that go on from the level before, each by a 1x1 and a larger convolution."""

    def __init__(self, extras: Sequence[cfg.Extra], in_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for extra in extras:
            squeeze = Conv2d(in_channels, extra.squeeze, 1, bias=True)
            larger = nn.Conv2d(extra.squeeze, extra.channels, extra.kernel, extra.stride, extra.padding)
            self.layers.append(nn.Sequential(squeeze, nn.ReLU(inplace=True), larger, nn.ReLU(inplace=True)))
            in_channels = extra.channels
        self.apply(xavier)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map after the other, from the last of the backbone."""
        maps: list[Tensor] = []
        for layer in self.layers:
            maps.append(layer(maps[-1] if maps else x))
        return maps


class TransferConnections(nn.Module):
    """RefineDet's transfer connection blocks (Sec. 3, Figure 2), which give the detection head its features.

    A level is 3x3, ReLU, 3x3, plus the block above by a deconvolution, ReLU, 3x3, ReLU; the coarsest has
    no block above. The deconvolution is 2x2 with stride 2, as in all of the authors' scripts; the figure
    says 4x4.
    """

    def __init__(self, channels: int, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.ModuleList(Conv2d(c, channels, 3, bias=True) for c in in_channels)
        self.second = nn.ModuleList(Conv2d(channels, channels, 3, bias=True) for _ in in_channels)
        self.third = nn.ModuleList(Conv2d(channels, channels, 3, bias=True) for _ in in_channels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 2, 2) for _ in in_channels[1:])
        self.apply(xavier)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, C, H, W), each of half the size of the one before, to maps (N, channels, H, W)."""
        found: list[Tensor] = []
        for level in reversed(range(len(maps))):
            x = self.second[level](F.relu(self.first[level](maps[level])))
            if found:
                x = x + self.up[level](found[-1])
            found.append(F.relu(self.third[level](F.relu(x))))
        return found[::-1]


class MultiBoxHead(nn.Module):
    """A classifier and a box regressor per level, 3x3 convolutions each.

    Args:
        in_channels: of each level.
        num_anchors: of a cell of each level.
        num_outputs: classes, with background.
    """

    def __init__(self, in_channels: Sequence[int], num_anchors: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        levels = list(zip(in_channels, num_anchors, strict=True))
        self.cls = nn.ModuleList(Conv2d(c, a * num_outputs, 3, bias=True) for c, a in levels)
        self.box = nn.ModuleList(Conv2d(c, a * 4, 3, bias=True) for c, a in levels)
        self.apply(xavier)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, A, K + 1) and offsets (N, A, 4), float32, from maps (N, C, H, W)."""
        cls = [per_anchor(conv(x), self.num_outputs) for conv, x in zip(self.cls, maps, strict=True)]
        box = [per_anchor(conv(x), 4) for conv, x in zip(self.box, maps, strict=True)]
        return torch.cat(cls, dim=1).float(), torch.cat(box, dim=1).float()


def xavier(module: nn.Module) -> None:
    """Caffe's "xavier": uniform with variance 1 / fan in; biases are 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
