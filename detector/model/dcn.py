"""Modulated deformable 3x3 convolution (Deformable ConvNets v2), one deformable group.

Axes: N images; C, H, W channels, height and width of the input; h, w of the output; P = 9 sampling points
of the kernel, row-major.

Sampling and product run in float32, also under autocast, whose precision is too low for positions. The
offsets are predicted in autocast's precision.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

POINTS = 9
"""Sampling points of a 3x3 kernel; each has an offset (dy, dx) and a mask."""


class DeformConv2d(nn.Conv2d):
    """A 3x3 convolution whose sampling points move by predicted offsets and are masked by a sigmoid.

    The weight has the name of an ordinary convolution's, so pretrained weights load into it. The
    27-channel `offset` convolution beside it holds 18 offsets, then 9 mask logits. A mask starts near
    one half, not near one, as in the authors' code.

    Args:
        offset_init: initialisation of the offset convolution: Kaiming-uniform with a=1 ("kaiming", backbone)
            or normal with std 0.01 ("normal", head); not zero, as in the authors' code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        offset_init: Literal["kaiming", "normal"] = "kaiming",
    ) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)
        self.offset = nn.Conv2d(in_channels, 3 * POINTS, 3, stride, padding=1)
        if offset_init == "kaiming":
            nn.init.kaiming_uniform_(self.offset.weight, a=1)
        else:
            nn.init.normal_(self.offset.weight, std=0.01)
        nn.init.zeros_(_bias(self.offset))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W) of any float dtype; returns float32."""
        offset, mask = self.offset(x).float().split((2 * POINTS, POINTS), dim=1)
        convolve = _sampled_conv2d if x.device.type == "cpu" else _fused_conv2d
        return convolve(x.float(), offset, mask.sigmoid(), self)


def _fused_conv2d(x: Tensor, offset: Tensor, mask: Tensor, conv: nn.Conv2d) -> Tensor:
    """torchvision's kernel, which stores no sampled values."""
    stride = conv.stride[0]
    out: Tensor = deform_conv2d(x, offset, conv.weight, conv.bias, stride, padding=1, mask=mask)
    return out


def _sampled_conv2d(x: Tensor, offset: Tensor, mask: Tensor, conv: nn.Conv2d) -> Tensor:
    """Sampling, then a 1x1 convolution: on a CPU 4 to 9 times as fast as the fused kernel.

    Args:
        x: (N, C, H, W) float32.
        offset: (N, 2 P, h, w) float32, pixels, (dy, dx) of each point in turn.
        mask: (N, P, h, w) float32, factors of the sampled values.
        conv: whose weight, bias, stride and groups apply.

    Returns:
        (N, C_out, h, w) float32.
    """
    images, channels, height, width = x.shape
    rows, columns = offset.shape[-2:]
    grid = _sampling_grid(offset, conv.stride[0], height, width)
    sampled = F.grid_sample(x, grid.flatten(1, 2), align_corners=False)
    sampled = sampled.view(images, channels, POINTS, rows, columns) * mask.unsqueeze(1)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(
            sampled.flatten(1, 2),
            conv.weight.reshape(conv.out_channels, -1, 1, 1),
            conv.bias,
            groups=conv.groups,
        )


def _sampling_grid(offset: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Sampling positions of each output cell, (N, P, h, w, 2) as (x, y) in [-1, 1] of the input."""
    images, _, rows, columns = offset.shape
    dy, dx = offset.view(images, POINTS, 2, rows, columns).unbind(2)
    kernel = torch.arange(POINTS, device=offset.device)
    y = dy + (kernel // 3 - 1).view(-1, 1, 1) + stride * torch.arange(rows, device=offset.device).view(-1, 1)
    x = dx + (kernel % 3 - 1).view(-1, 1, 1) + stride * torch.arange(columns, device=offset.device)
    return torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
