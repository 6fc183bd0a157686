"""Feature pyramid P3..P7 from C3..C5 (the authors' variant for RetinaNet, FCOS and ATSS)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detector import config as cfg
from detector.model.convolution import Conv2d


class FPN(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions with bias, no norm and no activation.

    P6 is a stride-2 convolution of C5 or P5, P7 one of ReLU(P6).

    Args:
        config: output channels and the source of P6.
        in_channels: channels of C3, C4 and C5.
    """

    def __init__(self, config: cfg.FPN, in_channels: tuple[int, int, int]) -> None:
        super().__init__()
        out = config.channels
        self.p6_from = config.p6_from
        self.lateral = nn.ModuleList(Conv2d(channels, out, 1, bias=True) for channels in in_channels)
        self.output = nn.ModuleList(Conv2d(out, out, 3, bias=True) for _ in in_channels)
        self.p6 = Conv2d(in_channels[-1] if config.p6_from == "C5" else out, out, 3, 2, bias=True)
        self.p7 = Conv2d(out, out, 3, 2, bias=True)
        self.apply(_initialise)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps C3..C5, each (N, C_l, H_l, W_l), to P3..P7, each (N, channels, H_l, W_l)."""
        merged: list[Tensor] = []
        for feature, lateral in zip(reversed(features), reversed(self.lateral), strict=True):
            inner = lateral(feature)
            if merged:
                inner.add_(F.interpolate(merged[-1], size=inner.shape[-2:], mode="nearest"))
            merged.append(inner)
        p3, p4, p5 = (conv(inner) for conv, inner in zip(self.output, reversed(merged), strict=True))
        p6 = self.p6(features[-1] if self.p6_from == "C5" else p5)
        return p3, p4, p5, p6, self.p7(F.relu(p6))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, a=1)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
