"""VGG "reduced": five blocks of 3x3 convolutions, fc6 and fc7 as convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from detector import config as cfg
from detector.model.convolution import Conv2d
from detector.model.norms import group_norm


class VGG(nn.Module):
    """The last map of each block, as "conv5", and "fc7"; those of absent parts are absent.

    Poolings round up, as in the authors' code. There is no dropout. Weights are Kaiming-normal, unless others
    are loaded.
    """

    def __init__(self, config: cfg.VGG) -> None:
        super().__init__()
        self.config = config
        ends = [3, *(width for depth, width in zip(config.depths, config.widths, strict=True) if depth)]
        inputs = iter(pairwise(ends))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_block(*next(inputs), depth, config.norm) if depth else ()))
            for depth in config.depths
        )
        if config.fc_channels:
            dilation = config.fc6_dilation
            fc6 = nn.Conv2d(ends[-1], config.fc_channels, 3, padding=dilation, dilation=dilation)
            fc7 = Conv2d(config.fc_channels, config.fc_channels, 1, bias=True)
            self.fc6 = nn.Sequential(*_activated(fc6, config.norm))
            self.fc7 = nn.Sequential(*_activated(fc7, config.norm))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.pool5 = nn.MaxPool2d(3, 1, padding=1) if config.pool5_stride == 1 else self.pool
        self.apply(_initialise)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps of normalised images (N, 3, H, W), each (N, C, h, w)."""
        maps: dict[str, Tensor] = {}
        for number, (depth, block) in enumerate(zip(self.config.depths, self.blocks, strict=True), start=1):
            if depth:
                x = maps[f"conv{number}"] = block(x)
                x = self.pool(x) if number < 5 else x
        if self.config.fc_channels:
            maps["fc7"] = self.fc7(self.fc6(self.pool5(x)))
        return maps

    def convolutions(self) -> Iterator[tuple[str, nn.Conv2d]]:
        """Every convolution with its name in `state_dict`, from the input to fc7."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                yield name, module


def _block(in_channels: int, channels: int, depth: int, norm: str) -> Iterator[nn.Module]:
    for index in range(depth):
        yield from _activated(Conv2d(channels if index else in_channels, channels, 3, bias=True), norm)


def _activated(conv: nn.Conv2d, norm: str) -> Iterator[nn.Module]:
    yield conv
    if norm == "group_norm":
        yield group_norm(conv.out_channels)
    yield nn.ReLU(inplace=True)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
