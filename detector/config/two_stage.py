"""Config of Faster R-CNN (Ren et al., NeurIPS 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from detector.config.checks import require
from detector.config.single_shot import VGG

_VGG = VGG(fc_channels=0)


@dataclass(frozen=True, slots=True)
class Proposals:
    """Numbers of an image's proposals: the best before NMS, and those that remain after it."""

    before: int
    after: int

    def __post_init__(self) -> None:
        require(1 <= self.after <= self.before, f"need 1 <= after <= before, got {self}")


@dataclass(frozen=True, slots=True)
class FasterRCNN:
    """torchvision's Faster R-CNN on the last map of VGG's fifth block, with the paper's numbers.

    Attributes:
        num_classes: foreground classes; label c of 0..num_classes-1 is channel c + 1, after background.
        backbone: without fc6 and fc7 (`fc_channels` is 0).
        anchor_sides: of the square anchor of each size, input pixels.
        ratios: height / width of each anchor's shape.
        head_channels: of the two fully connected layers that judge a proposal.
        training, testing: numbers of proposals.
        rpn_samples, roi_samples: anchors and proposals of an image that are learned from, drawn at random: at
            most half of the anchors, and a quarter of the proposals, are positive.
        pixel_mean, pixel_std: per channel (RGB), on the 0-255 scale.
    """

    num_classes: int = 20
    backbone: VGG = _VGG
    anchor_sides: tuple[float, ...] = (128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    head_channels: int = 4096
    training: Proposals = Proposals(12_000, 2000)
    testing: Proposals = Proposals(6000, 300)
    rpn_samples: int = 256
    roi_samples: int = 128
    pixel_mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        require(self.num_classes >= 1, f"num_classes must be >= 1, got {self.num_classes}")
        require(self.backbone.fc_channels == 0, "the backbone must have no fc6 and fc7: fc_channels=0")
        require(min(self.rpn_samples, self.roi_samples) >= 4, "samples must be at least 4")

    @property
    def stride(self) -> int:
        """Input pixels per cell of the map."""
        return self.backbone.stride

    @property
    def num_per_location(self) -> int:
        """Anchors of one cell."""
        return len(self.anchor_sides) * len(self.ratios)
