"""Convolutions with the norm after them folded in, by whichever CPU library is quick."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detector.norms import FrozenBatchNorm2d


class Conv2d(nn.Conv2d):
    """A convolution of an odd kernel that keeps the size, but for its stride.

    On one thread torch prefers its own kernel for a plain 1x1 convolution of float32, which takes twice as
    long as oneDNN's where the matrix library does not favour the processor. Dilation means nothing to a
    kernel of one point, but a dilated convolution goes to oneDNN, forward and backward.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)

    def forward(self, x: Tensor, norm: FrozenBatchNorm2d | None = None) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride).

        Args:
            x: the input.
            norm: taken of the result, by scaled weights: that saves passes over what they give.
        """
        weight, bias = self.weight, self.bias
        if norm is not None:
            scale, bias = norm.affine()
            weight = weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self._dilation(x), self.groups)

    def _dilation(self, x: Tensor) -> int:
        float32_on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return 2 if self.kernel_size == (1, 1) and float32_on_cpu else 1
