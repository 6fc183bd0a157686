"""Configs of detectors with one pass over a square image. SSD and RefineDet are values of `SingleShot`.

SSD is Liu et al., ECCV 2016; RefineDet is Zhang et al., CVPR 2018. Where paper and code differ, it is
the code that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from detector.config.checks import require


@dataclass(frozen=True, slots=True)
class VGG:
    """VGG "reduced": fc6 and fc7 are a dilated 3x3 and a 1x1 convolution (Chen et al., ICLR 2015).

    Attributes:
        depths: number of 3x3 convolutions of each block. A block of depth 0 is absent, with its pooling.
        widths: channels of each block.
        fc_channels: of fc6 and fc7; 0 for none of them.
        fc6_dilation: 6 in SSD, 3 in RefineDet.
        pool5_stride: 1 is SSD's 3x3 pooling, which keeps the size; 2 is VGG's own 2x2.
        norm: "none" (pretrained), or "group_norm" after each convolution of blocks and fcs (from scratch).
    """

    depths: tuple[int, int, int, int, int] = (2, 2, 3, 3, 3)
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    fc_channels: int = 1024
    fc6_dilation: int = 6
    pool5_stride: Literal[1, 2] = 1
    norm: Literal["none", "group_norm"] = "none"

    def __post_init__(self) -> None:
        require(min(self.depths[2:]) >= 1, f"blocks 3, 4 and 5 need a convolution, got {self.depths}")
        require(self.fc6_dilation >= 1, f"fc6_dilation must be >= 1, got {self.fc6_dilation}")

    @property
    def stride(self) -> int:
        """Input pixels per cell of the fifth block's map."""
        return 1 << sum(depth > 0 for depth in self.depths[:4])

    def channels(self, source: str) -> int:
        """Channels of the map "conv4", "conv5" or "fc7"."""
        return {"conv4": self.widths[3], "conv5": self.widths[4], "fc7": self.fc_channels}[source]

    def sides(self, side: int) -> dict[str, int]:
        """Cells per side of the maps "conv4", "conv5" and "fc7" of a square input; poolings round up."""
        for depth in self.depths[:3]:
            side = -(-side // 2) if depth else side
        conv5 = -(-side // 2)
        return {"conv4": side, "conv5": conv5, "fc7": -(-conv5 // self.pool5_stride)}


@dataclass(frozen=True, slots=True)
class Extra:
    """A 1x1 convolution to `squeeze` channels and a larger one to `channels`, both with ReLU.

    They continue from the map of the level before.
    """

    squeeze: int
    channels: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1

    def side(self, before: int) -> int:
        """Cells per side of its map, from those of the map before."""
        return (before + 2 * self.padding - self.kernel) // self.stride + 1


Source = Literal["conv4", "conv5", "fc7"] | Extra
"""Where a map comes from: "conv4" and "conv5" are the last ones of these blocks (conv4_3, conv5_3)."""


@dataclass(frozen=True, slots=True)
class Level:
    """A map that predicts, and the anchors of its cells.

    Attributes:
        source: of the map.
        stride: input pixels from one cell's centre to the next; that of the first is at half of it.
        size: side of the square anchor, input pixels.
        next_size: another square has the side sqrt(size * next_size); None for no other.
        ratios: each r gives two anchors of the square's area, with width / height of r and of 1 / r.
        l2_scale: initial scale of the L2 normalisation of the map; None for no normalisation.
    """

    source: Source
    stride: float
    size: float
    next_size: float | None = None
    ratios: tuple[float, ...] = (2.0,)
    l2_scale: float | None = None

    def __post_init__(self) -> None:
        require(self.stride > 0, f"stride must be > 0, got {self.stride}")
        require(self.size > 0, f"size must be > 0, got {self.size}")
        require(all(r > 1 for r in self.ratios), f"ratios must be > 1, got {self.ratios}")

    @property
    def num_per_location(self) -> int:
        """Anchors of one cell."""
        return 1 + (self.next_size is not None) + 2 * len(self.ratios)


@dataclass(frozen=True, slots=True)
class AnchorRefinement:
    """RefineDet's anchor refinement module (ARM): object or not, and a box, for each anchor.

    Attributes:
        objectness: negatives whose P(object) is below are not mined, and anchors below detect nothing. 0 is
            "no negative anchor filtering"; the paper's threshold of 0.99 on P(background) is 0.01.
        cascade: the second step starts from the ARM's boxes ("two-step cascaded regression"), in matching,
            targets and tests; without, from the anchors. The ARM's loss stays in both.
    """

    objectness: float = 0.01
    cascade: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.objectness < 1, f"objectness must be in [0, 1), got {self.objectness}")


@dataclass(frozen=True, slots=True)
class TransferConnection:
    """RefineDet's transfer connection blocks (TCB): features for the detection head, from the top down.

    Attributes:
        channels: of every convolution.
    """

    channels: int = 256


@dataclass(frozen=True, slots=True)
class SingleShot:
    """A detector with one pass over a square image. SSD and RefineDet are values of this class.

    The detection head reads the maps of the levels, or of the TCBs, and has one classifier and one box
    regressor per level, 3x3 convolutions. Without ARM and TCB it is SSD.

    Attributes:
        num_classes: foreground classes; label c of 0..num_classes-1 is channel c + 1, after background.
        input_size: side of the square that every image is warped to, pixels.
        levels: from the finest to the coarsest.
        match_iou: IoU from which an anchor is positive; each object has its best anchor besides.
        negatives_per_positive: hard negatives of an image, for each of its positives.
        variances: divisors of the offsets of centre and of the log ratios of sides.
        pixel_mean, pixel_std: per channel (RGB), on the 0-255 scale.
    """

    num_classes: int
    backbone: VGG
    input_size: int
    levels: tuple[Level, ...]
    refinement: AnchorRefinement | None = None
    transfer: TransferConnection | None = None
    match_iou: float = 0.5
    negatives_per_positive: float = 3.0
    variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    pixel_mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        require(self.num_classes >= 1, f"num_classes must be >= 1, got {self.num_classes}")
        require(len(self.levels) >= 1, "levels must have at least one, got none")
        require(0 < self.match_iou <= 1, f"match_iou must be in (0, 1], got {self.match_iou}")
        extra = [isinstance(level.source, Extra) for level in self.levels]
        in_order = not extra[0] and extra == sorted(extra)
        require(in_order, "levels of the backbone must stand before extra ones")
        sides = self.sides
        require(min(sides) >= 1, f"input_size {self.input_size} is too small: cells per side are {sides}")
        doubled = all(fine == 2 * coarse for fine, coarse in pairwise(sides))
        require(
            self.transfer is None or doubled,
            f"a TCB needs levels of half the size of the one before, got {sides} cells per side",
        )

    @property
    def sides(self) -> tuple[int, ...]:
        """Cells per side of each level."""
        of_backbone = self.backbone.sides(self.input_size)
        sides: list[int] = []
        for level in self.levels:
            source = level.source
            sides.append(source.side(sides[-1]) if isinstance(source, Extra) else of_backbone[source])
        return tuple(sides)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the map of each level."""
        sources = [level.source for level in self.levels]
        return tuple(s.channels if isinstance(s, Extra) else self.backbone.channels(s) for s in sources)

    @property
    def num_anchors(self) -> int:
        """Anchors of an image ("number of boxes")."""
        return sum(
            side**2 * level.num_per_location for side, level in zip(self.sides, self.levels, strict=True)
        )
