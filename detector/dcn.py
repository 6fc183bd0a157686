"""Modulated deformable 3x3 convolution (Deformable ConvNets v2), one deformable group.

The sampling itself runs in float32: torchvision has no bfloat16 kernel for the CPU, and positions lose
too much in half precision.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

POINTS = 9
"""Sampling points of a 3x3 kernel; each has an offset (dy, dx) and a mask."""


class DeformConv2d(nn.Conv2d):
    """A 3x3 convolution whose sampling points move by predicted offsets and are masked by a sigmoid.

    The weight carries the name an ordinary convolution's would, so pretrained weights load into it; the
    27-channel `offset` convolution beside it holds 18 offsets, then 9 mask logits. A mask starts near
    one half, not near one, as in the authors' code.

    Args:
        offset_init: how the offset convolution starts: Kaiming-uniform with a=1 ("kaiming", backbone) or
            normal with std 0.01 ("normal", head). That it does not start at zero is the authors' choice.
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
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            offset, mask = self.offset(x).split((2 * POINTS, POINTS), dim=1)
            out: Tensor = deform_conv2d(
                x, offset, self.weight, self.bias, self.stride[0], padding=1, mask=mask.sigmoid()
            )
            return out


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
