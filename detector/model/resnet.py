"""Residual backbones: ResNet, ResNeXt, their deformable variants, and small ones for small images.

Shapes: N images, C channels, H and W of a stage. Modules have torchvision's names (`conv1`, `bn1`,
`layer1.0.conv1`, `layer1.0.downsample.0` ...), so that published weights load by name; `bn` is the norm of
any kind.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from detector import config as cfg
from detector.model.convolution import Conv2d
from detector.model.dcn import DeformConv2d
from detector.model.norms import FrozenBatchNorm2d, group_norm

BOTTLENECK_EXPANSION = 4


class Backbone(nn.Module):
    """The stem and the stages C2..C5 of a `config.ResNet`.

    A stage of depth 0 is absent; the next stage has its stride too, so that `c3_stride` is correct.

    Attributes:
        out_channels: channels of C3, C4 and C5.
    """

    def __init__(self, config: cfg.ResNet) -> None:
        super().__init__()
        self.stem = config.stem
        if config.stem == "imagenet":
            self.conv1: nn.Conv2d = Conv2d(3, config.stem_channels, 7, 2)
        else:
            patch = config.stem_stride
            self.conv1 = nn.Conv2d(3, config.stem_channels, patch, patch, bias=False)
            self.conv2 = _conv3x3(config.stem_channels, config.stem_channels)
            self.bn2 = _norm(config, config.stem_channels)
        self.bn1 = _norm(config, config.stem_channels)

        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(config)
        self.out_channels = (
            _out_channels(config, 1),
            _out_channels(config, 2),
            _out_channels(config, 3),
        )
        self.apply(_initialise)
        self._freeze(config.frozen_stages)

    def _freeze(self, stages: int) -> None:
        """Freezes the stem (1) and the stages from C2 (2) up to C5 (5)."""
        stem = [module for name, module in self.named_children() if not name.startswith("layer")]
        layers = [self.layer1, self.layer2, self.layer3, self.layer4]
        for module in [*stem, *layers[: stages - 1]] if stages else []:
            module.requires_grad_(False)

    def _stem(self, x: Tensor) -> Tensor:
        x = F.relu(_normed(self.conv1, self.bn1, x), inplace=True)
        if self.stem == "imagenet":
            return F.max_pool2d(x, 3, 2, padding=1)
        return F.relu(_normed(self.conv2, self.bn2, x), inplace=True)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4 and C5 of normalised `images` (N, 3, H, W), H and W multiples of the C5 stride."""
        c2 = self.layer1(self._stem(images))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


class BasicBlock(nn.Module):
    """3x3, 3x3 and the shortcut."""

    def __init__(self, config: cfg.ResNet, index: int, in_channels: int, stride: int) -> None:
        super().__init__()
        width = config.widths[index]
        # One deformable convolution per block, as in a bottleneck.
        second = _deformable_3x3 if config.deformable[index] else _conv3x3
        self.conv1 = _conv3x3(in_channels, width, stride=stride, groups=config.groups)
        self.bn1 = _norm(config, width)
        self.conv2 = second(width, width, groups=config.groups)
        self.bn2 = _norm(config, width)
        self.downsample = _shortcut(config, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(_normed(self.conv1, self.bn1, x), inplace=True)
        out = _normed(self.conv2, self.bn2, out)
        # In place: allocating a large map takes longer than the sum.
        return F.relu(out.add_(self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the width, and the shortcut."""

    def __init__(self, config: cfg.ResNet, index: int, in_channels: int, stride: int) -> None:
        super().__init__()
        width = config.widths[index] * config.width_per_group // 64 * config.groups
        out_channels = _out_channels(config, index)
        conv = _deformable_3x3 if config.deformable[index] else _conv3x3
        first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
        self.conv1 = Conv2d(in_channels, width, 1, first)
        self.bn1 = _norm(config, width)
        self.conv2 = conv(width, width, stride=second, groups=config.groups)
        self.bn2 = _norm(config, width)
        self.conv3 = Conv2d(width, out_channels, 1)
        self.bn3 = _norm(config, out_channels)
        self.downsample = _shortcut(config, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, 4 * width, H / stride, W / stride)."""
        out = F.relu(_normed(self.conv1, self.bn1, x), inplace=True)
        out = F.relu(_normed(self.conv2, self.bn2, out), inplace=True)
        out = _normed(self.conv3, self.bn3, out)
        return F.relu(out.add_(self.downsample(x)), inplace=True)  # in place as in `BasicBlock`


class Projection(nn.Sequential):
    """A shortcut with another size: a 1x1 convolution and its norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C_out, H / stride, W / stride)."""
        conv, norm = self
        return _normed(conv, norm, x)


def _normed(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)). A frozen norm is folded into an ordinary convolution."""
    folds = isinstance(norm, FrozenBatchNorm2d) and isinstance(conv, Conv2d)
    out: Tensor = conv(x, norm) if folds else norm(conv(x))
    return out


def _stages(config: cfg.ResNet) -> list[nn.Sequential]:
    channels, stride, stages = config.stem_channels, 1, []
    for index, depth in enumerate(config.depths):
        stride *= config.stage_strides[index]
        stages.append(_stage(config, index, channels, stride))
        if depth > 0:
            channels, stride = _out_channels(config, index), 1
    return stages


def _stage(config: cfg.ResNet, index: int, in_channels: int, stride: int) -> nn.Sequential:
    block = Bottleneck if config.block == "bottleneck" else BasicBlock
    first = [(in_channels, stride)][: config.depths[index]]
    others = [(_out_channels(config, index), 1)] * (config.depths[index] - 1)
    return nn.Sequential(*(block(config, index, *arguments) for arguments in first + others))


def _out_channels(config: cfg.ResNet, index: int) -> int:
    return config.widths[index] * (BOTTLENECK_EXPANSION if config.block == "bottleneck" else 1)


def _shortcut(config: cfg.ResNet, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return Projection(Conv2d(in_channels, out_channels, 1, stride), _norm(config, out_channels))


def _norm(config: cfg.ResNet, channels: int) -> nn.Module:
    return FrozenBatchNorm2d(channels) if config.norm == "frozen_bn" else group_norm(channels)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> Conv2d:
    return Conv2d(in_channels, out_channels, 3, stride, groups=groups)


def _deformable_3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> DeformConv2d:
    return DeformConv2d(in_channels, out_channels, stride=stride, groups=groups, bias=False)


def _initialise(module: nn.Module) -> None:
    """He initialisation; a block with a trainable norm starts as its shortcut (last scale 0)."""
    # Offset convolutions have a bias and keep their own initialisation.
    if isinstance(module, nn.Conv2d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, BasicBlock | Bottleneck):
        last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
        if isinstance(last, nn.GroupNorm):
            nn.init.zeros_(last.weight)
