"""1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, whose float32 product on one CPU thread oneDNN computes.

    On one thread torch prefers its own kernel for a plain 1x1 convolution of float32, which takes twice as
    long where the matrix library does not favour the processor. Dilation means nothing to a kernel of one
    point, but a dilated convolution goes to oneDNN, forward and backward.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        float32_on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return F.conv2d(x, self.weight, self.bias, self.stride, dilation=2 if float32_on_cpu else 1)
