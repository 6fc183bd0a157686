"""Normalisation that does not depend on the batch: frozen batch norm, and group norm.

Neither looks at other images (only at the padding that a batch gives each), so a result is the same on
one GPU and on eight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PAPER_GROUPS = 32
PAPER_CHANNELS = 256
CHANNELS_PER_GROUP = 16


def num_groups(channels: int) -> int:
    """Number of groups of a group norm: the paper's 32 from 256 channels on, else groups of 16 channels.

    Small networks keep the other size that Wu & He (2018, Table 3) found as good, since 32 groups of one
    channel would be instance norm. It is also what the CPU kernels vectorise: in bfloat16 channels-last,
    32 channels in 8 groups cost ten times the backward pass of 32 channels in 2.

    Args:
        channels: to divide; where 16 does not divide it, groups get a little wider.
    """
    limit = PAPER_GROUPS if channels >= PAPER_CHANNELS else max(1, channels // CHANNELS_PER_GROUP)
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm over `channels` with the project's number of groups and eps 1e-5."""
    return nn.GroupNorm(num_groups(channels), channels)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine are constants: y = (x - mean) / sqrt(var) * weight + bias.

    There is no eps, as in the authors' code (Caffe2 weights carry folded affines: mean 0, variance 1).
    Whoever loads weights that were trained with an eps adds it to `running_var`.
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
        """The same map as y = x * scale + shift; both (channels,)."""
        scale = self.weight * self.running_var.rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (N, C, H, W); keeps its dtype and memory format."""
        # One pass over x, and x itself is not kept for the backward pass, as F.batch_norm would.
        scale, shift = (v.to(x.dtype).view(-1, 1, 1) for v in self.affine())
        return torch.addcmul(shift, x, scale)
