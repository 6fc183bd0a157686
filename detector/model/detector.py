"""What training, testing and prediction need of a detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from detector.config import AnyDetector, Evaluation
from detector.outputs import Candidates


class Targets(Protocol):
    """Targets of the images of a batch."""

    def counts(self) -> Tensor:
        """(n,) float32 sums over these images, by which the losses are divided when all parts are added."""

    def __getitem__(self, part: slice) -> Targets:
        """The targets of some of the images."""


OutputsT = TypeVar("OutputsT")
TargetsT = TypeVar("TargetsT", bound=Targets)


class Detector(nn.Module, ABC, Generic[OutputsT, TargetsT]):
    """A detector of any family. `detector.model.build.build_detector` makes one of a config.

    Losses are sums over images, divided by counts of the whole batch. So the losses of parts of a batch (of
    micro-batches and ranks) add up to those of the batch.

    Axes: N images, G ground-truth boxes padded per image, C candidates. Boxes are xyxy float32, pixels of the
    input image.

    Attributes:
        config: the detector's config.
        backbone: takes pretrained weights.
        targets_need_outputs: whether targets depend on predictions. A batch in parts is then predicted twice:
            counted, then learned from.
    """

    config: AnyDetector
    backbone: nn.Module
    targets_need_outputs: bool = False

    @abstractmethod
    def forward(self, images_N3HW: Tensor, sizes_N2: Tensor | None = None) -> OutputsT:
        """Predictions for a batch of images.

        Args:
            images_N3HW: (N, 3, H, W) uint8 or float, RGB, 0-255; smaller images are at the top left.
            sizes_N2: (N, 2) int, height and width of each image without padding; None where every image
                fills the tensor.

        Returns:
            The outputs, float32 also under autocast.
        """

    @abstractmethod
    def targets(
        self,
        canvas: tuple[int, int],
        boxes_NG4: Tensor,
        labels_NG: Tensor,
        valid_NG: Tensor,
        outputs: OutputsT | None = None,
        seeds: Sequence[int] | None = None,
    ) -> TargetsT:
        """The targets of a batch.

        Args:
            canvas: (height, width) of the batch's images, as `forward` gets them.
            boxes_NG4: (N, G, 4) float32, xyxy; G may be 0.
            labels_NG: (N, G) int64, 0..K-1.
            valid_NG: (N, G) bool, False for padding.
            outputs: of the same images; required where `targets_need_outputs`.
            seeds: one per image, for targets that are drawn at random.

        Returns:
            The targets, without gradient, float32 also under autocast.
        """

    @abstractmethod
    def losses(self, outputs: OutputsT, targets: TargetsT, counts: Tensor) -> dict[str, Tensor]:
        """The part of the batch's losses from these images, in float32 also under autocast.

        Args:
            outputs: of `forward`.
            targets: of the same images.
            counts: `Targets.counts` summed over all parts of the batch.

        Returns:
            () float32 each, by name. Their sum over all parts is the loss of the whole batch.
        """

    @abstractmethod
    def candidates(self, outputs: OutputsT, evaluation: Evaluation) -> Candidates:
        """What suppression chooses from: the best (box, class) pairs above the score threshold."""


AnyModel = Detector[Any, Any]
