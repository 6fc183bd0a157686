"""Normalisation that does not depend on the batch: frozen batch norm, and group norm.

Neither uses other images of the batch (only the padding depends on them), so results do not depend on the
number of GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PAPER_GROUPS = 32
PAPER_CHANNELS = 256
CHANNELS_PER_GROUP = 16

_BF16_LANES = 16
"""Channels per group that torch's CPU kernel for bfloat16 channels-last processes at once."""
_WORTHWHILE = 1 << 17
"""Elements of a map below which torch's slow kernel is faster than several calls."""
_CACHED = 1 << 18
"""Elements that fit in a core's cache."""


def num_groups(channels: int) -> int:
    """Number of groups of a group norm: the paper's 32 from 256 channels on, else groups of 16 channels.

    16 channels per group is the other choice that Wu & He (2018, Table 3) found equally good; 32 groups of
    one channel would be instance norm. CPU kernels also vectorise it: in bfloat16 channels-last, the backward
    pass of 32 channels in 8 groups takes ten times as long as in 2.

    Args:
        channels: number of channels; where 16 does not divide it, groups are a little wider.
    """
    limit = PAPER_GROUPS if channels >= PAPER_CHANNELS else max(1, channels // CHANNELS_PER_GROUP)
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm over `channels` with the project's number of groups and eps 1e-5."""
    return GroupNorm(num_groups(channels), channels)


class GroupNorm(nn.GroupNorm):
    """torch's group norm, with another backward pass where torch's is slow.

    That is the case in bfloat16 channels-last on a CPU, with groups smaller than a vector, such as the
    paper's 8 channels. The gradients are the same, in a third of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` (N, C, H, W); keeps its dtype and memory format."""
        if not (self._is_slow(x) and torch.is_grad_enabled()):
            return super().forward(x)
        out: Tensor = _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return out

    def _is_slow(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and (x.dtype, self.weight.dtype) == (torch.bfloat16, torch.float32)
            and x.numel() >= _WORTHWHILE
            and self.num_channels // self.num_groups % _BF16_LANES != 0
            and x.is_contiguous(memory_format=torch.channels_last)
        )


class _GroupNorm(torch.autograd.Function):
    """Group norm whose backward pass consists of batch norms with given statistics, image by image.

    With x' = (x - mean) * rstd and, over the elements of a group, M of them,
    dx = rstd * (weight * dy - sum(weight * dy) / M - x' * sum(weight * dy * x') / M).
    A batch norm that learns nothing has sum(dy) and sum(dy * x') as gradients of its bias and weight, in
    float32; two others are the terms with dy and with x'.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, c, h, w = x.shape
        out, mean_NG, rstd_NG = torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean_NG, rstd_NG)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean_NG, rstd_NG = ctx.saved_tensors
        dy = grad.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        dweight, dbias = torch.zeros_like(weight), torch.zeros_like(weight)
        width = len(weight) // mean_NG.shape[1]
        for i in range(len(x)):
            mean_C, rstd_C = (v[i].float().repeat_interleave(width) for v in (mean_NG, rstd_NG))
            sums = _backward_image(dx[i : i + 1], dy[i : i + 1], x[i : i + 1], weight, mean_C, rstd_C, width)
            dweight += sums[0]
            dbias += sums[1]
        return dx, dweight, dbias, None, None


def _backward_image(
    dx: Tensor, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of an image (1, C, H, W) into `dx`; returns those of weight and bias, both (C,)."""
    var, zero, pixels = rstd**-2, torch.zeros_like(mean), x[0, 0].numel()
    _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        dy, x, weight, mean, var, None, None, False, 0.0, [False, True, True]
    )
    by_group_2G = (torch.stack([dweight, dbias]) * weight).view(2, -1, width).sum(dim=2)
    from_x, from_mean = by_group_2G.repeat_interleave(width, dim=1) * -rstd / (width * pixels)
    rows = max(1, _CACHED // x[0, :, 0].numel())
    for part_dx, part_dy, part_x in zip(*(torch.split(t, rows, dim=2) for t in (dx, dy, x)), strict=True):
        own = torch.native_batch_norm(part_dy, weight, None, zero, var, False, 0.0, 0.0)[0]
        others = torch.native_batch_norm(part_x, from_x, from_mean, mean, var, False, 0.0, 0.0)[0]
        torch.add(own, others, out=part_dx)
    return dweight, dbias


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine are constants: y = (x - mean) / sqrt(var) * weight + bias.

    There is no eps, as in the authors' code (Caffe2 weights carry folded affines: mean 0, variance 1).
    Code that loads weights which were trained with an eps adds it to `running_var`.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, both (channels,), with y = x * scale + shift."""
        scale = self.weight * self.running_var.rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` (N, C, H, W); keeps its dtype and memory format."""
        # One pass over x. Unlike F.batch_norm, it does not keep x for the backward pass.
        scale, shift = (v.to(x.dtype).view(-1, 1, 1) for v in self.affine())
        return torch.addcmul(shift, x, scale)
