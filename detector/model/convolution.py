"""Convolutions with a folded norm, computed in the fastest way on a CPU.

Shapes: N images, C channels in and O out, H and W of the input and h and w of the output; P = N * h * w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from detector.model.norms import FrozenBatchNorm2d

_FEW = 1024
"""Output pixels below which a matrix product computes a 3x3's weight gradient faster than oneDNN."""


class Conv2d(nn.Conv2d):
    """A convolution with an odd kernel and "same" padding.

    On one thread torch uses its own kernel for a 1x1 convolution in float32, which takes twice as long as
    oneDNN's on some processors. A 1x1 therefore gets a dilation, which does not change it but selects oneDNN,
    forward and backward.

    Under autocast to bfloat16 on a CPU, a matrix product replaces oneDNN's convolution where it is faster:
    for a 1x1, and for the weight gradient of a 3x3 on a small map.
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
            norm: applied to the result, through scaled weights where that is cheaper; for a convolution
                without bias.
        """
        if norm is None:
            return self._mapped(x, self.weight, self.bias)
        if self._outnumbers(x):
            return norm(self._mapped(x, self.weight, None))  # type: ignore[no-any-return]
        scale, shift = norm.affine()
        return self._mapped(x, self.weight * scale.view(-1, 1, 1, 1), shift)

    def _mapped(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.groups == 1 and self.kernel_size[0] <= 3 and _in_bf16_on_cpu(x):
            return _by_products(x.bfloat16(), weight.bfloat16(), bias, self.stride[0])
        return F.conv2d(x, weight, bias, self.stride, self.padding, self._dilation(x), self.groups)

    def _outnumbers(self, x: Tensor) -> bool:
        """Whether the layer has more weights than outputs, which are then cheaper to scale."""
        pixels = x.numel() // x.shape[1] // self.stride[0] ** 2
        return self.weight.numel() > pixels * self.out_channels

    def _dilation(self, x: Tensor) -> int:
        float32_on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return 2 if self.kernel_size == (1, 1) and float32_on_cpu else 1


# --- as matrix products ----------------------------------------------------------------------------------


def _in_bf16_on_cpu(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on_cpu and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _by_products(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The convolution in bfloat16, by a matrix product where that is faster."""
    bias = None if bias is None else bias.bfloat16()
    if weight.shape[-1] == 1:
        out: Tensor = _Pointwise.apply(x, weight, bias, stride)
    elif x.numel() // x.shape[1] <= _FEW * stride**2:
        out = _OnSmallMap.apply(x, weight, bias, stride)
    else:
        out = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)
    return out


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution: one matrix product forward and two backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        seen = x[..., ::stride, ::stride]
        out = _maps(x, len(weight), seen.shape[2:])
        if bias is None:
            torch.mm(_rows(seen), weight.flatten(1).t(), out=_rows(out))
        else:
            torch.addmm(bias, _rows(seen), weight.flatten(1).t(), out=_rows(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dy_PO, stride = _rows(grad), ctx.stride
        dx = None
        if ctx.needs_input_grad[0]:
            dseen = _maps(x, len(weight[0]), grad.shape[2:])
            torch.mm(dy_PO, weight.flatten(1), out=_rows(dseen))
            if stride > 1:
                dx = torch.zeros_like(x)
                dx[..., ::stride, ::stride] = dseen
            else:
                dx = dseen
        dweight = dy_PO.t() @ _rows(x[..., ::stride, ::stride])
        return dx, dweight.view_as(weight), dy_PO.sum(0) if ctx.needs_input_grad[2] else None, None


class _OnSmallMap(torch.autograd.Function):
    """A 3x3 convolution whose weight gradient is a matrix product with the input's patches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        two = [ctx.stride, ctx.stride]
        dx = None
        if ctx.needs_input_grad[0]:
            settings = two, [1, 1], [1, 1], False, [0, 0], 1
            only_x = [True, False, False]
            dx = torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, only_x)[0]
        dy_PO = _rows(grad)
        dweight_OK = dy_PO.t() @ _patches(x, ctx.stride)
        dweight = dweight_OK.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        return dx, dweight, dy_PO.sum(0) if ctx.needs_input_grad[2] else None, None


def _rows(maps: Tensor) -> Tensor:
    """(N, C, h, w) as (P, C), a row per pixel; no copy of a channels-last tensor."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _maps(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An uninitialised tensor (N, `channels`, *size), channels-last."""
    shape = len(like), channels, *size
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _patches(x: Tensor, stride: int) -> Tensor:
    """The 3x3 input patch of each output pixel: (P, 9 * C), by row, column and channel."""
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    seen_NhwC33 = padded.unfold(1, 3, stride).unfold(2, 3, stride)
    return seen_NhwC33.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * x.shape[1])
