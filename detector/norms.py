"""Normalisation that does not depend on the batch: frozen batch norm, and group norm.

Neither looks at other images, so a result is the same on one GPU and on eight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_GROUPS = 32
MIN_CHANNELS_PER_GROUP = 4


def num_groups(channels: int) -> int:
    """Number of groups of a group norm: the most that leave each at least four channels, 32 at most.

    At the paper's 256 channels this is its GN(32); a 32-channel layer gets 8 groups, because groups of
    one channel would erase the difference between channels' strengths (instance norm).
    """
    limit = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP))
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
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.0)
