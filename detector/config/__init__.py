"""Configs of a detector, its training and its evaluation, as frozen dataclasses. Imports no torch.

Each choice of method is a union of small dataclasses, so a method has only its own parameters. Sections of
the paper are those of Zhang et al., CVPR 2020 (ATSS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detector.config.checks import require
from detector.config.data import AnyData as AnyData
from detector.config.data import Augmentation as Augmentation
from detector.config.data import Data as Data
from detector.config.data import SquareData as SquareData
from detector.config.single_shot import VGG as VGG
from detector.config.single_shot import AnchorRefinement as AnchorRefinement
from detector.config.single_shot import Extra as Extra
from detector.config.single_shot import Level as Level
from detector.config.single_shot import SingleShot as SingleShot
from detector.config.single_shot import Source as Source
from detector.config.single_shot import TransferConnection as TransferConnection
from detector.config.two_stage import FasterRCNN as FasterRCNN
from detector.config.two_stage import Proposals as Proposals

RECIPE_VERSION = 1
"""To be raised when the code changes what a config computes; part of every trial's key."""


# --- anchors and positives -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Anchors:
    """Anchors of one location: side `scale * stride`, times each octave step and each ratio.

    Attributes:
        scale: side of the square anchor in strides (Sec. 4.4.2; the paper uses 8).
        scales_per_octave: number of sizes between one level and the next (#sc of Table 7).
        ratios: height / width of each shape (#ar of Table 7).
    """

    scale: float = 8.0
    scales_per_octave: int = 1
    ratios: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        require(self.scale > 0, f"scale must be > 0, got {self.scale}")
        require(self.scales_per_octave >= 1, f"scales_per_octave must be >= 1, got {self.scales_per_octave}")
        require(len(self.ratios) >= 1, "ratios must have at least one aspect ratio, got none")
        require(all(r > 0 for r in self.ratios), f"ratios must be > 0, got {self.ratios}")

    @property
    def num_per_location(self) -> int:
        """Number of anchors at one location (#A)."""
        return self.scales_per_octave * len(self.ratios)


@dataclass(frozen=True, slots=True)
class MaxIoU:
    """RetinaNet's rule: IoU >= `positive` is positive, `negative` <= IoU < `positive` is ignored.

    Every anchor that attains a ground truth's highest IoU is positive too (all exact ties).

    Attributes:
        inside_gt: ignores positives whose centre is not inside their box ("In GT Box", Table 1).
    """

    positive: float = 0.5
    negative: float = 0.4
    inside_gt: bool = False

    def __post_init__(self) -> None:
        require(
            0 < self.negative <= self.positive <= 1,
            f"need 0 < negative <= positive <= 1, got negative={self.negative}, positive={self.positive}",
        )


@dataclass(frozen=True, slots=True)
class SpatialScale:
    """FCOS's rule: centre inside the box, box size in the level's range; the smallest box wins.

    Attributes:
        center_radius: largest distance to the box's centre, in strides (center sampling, 1.5 in FCOS);
            None for the whole box.
    """

    center_radius: float | None = None

    def __post_init__(self) -> None:
        radius = self.center_radius
        require(radius is None or radius > 0, f"center_radius must be > 0 or None, got {radius}")


@dataclass(frozen=True, slots=True)
class ATSS:
    """Adaptive training sample selection (Algorithm 1). `topk` is k, per level and ground truth.

    As in the authors' code, k counts locations: with #A anchors per location, k * #A anchors are candidates.
    """

    topk: int = 9

    def __post_init__(self) -> None:
        require(self.topk >= 1, f"topk must be >= 1, got {self.topk}")


Assigner = MaxIoU | SpatialScale | ATSS


@dataclass(frozen=True, slots=True)
class BoxRegression:
    """Regresses (dx, dy, dw, dh) relative to the anchor box, multiplied by `weights`."""

    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True, slots=True)
class PointRegression:
    """Regresses the distances (l, t, r, b) from the anchor's centre, in strides."""


Regression = BoxRegression | PointRegression


# --- losses ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SmoothL1:
    """RetinaNet's box loss on encoded offsets, divided by 4 x number of positives."""

    beta: float = 0.11

    def __post_init__(self) -> None:
        require(self.beta > 0, f"beta must be > 0, got {self.beta}")


@dataclass(frozen=True, slots=True)
class GIoU:
    """GIoU loss on decoded boxes, times `weight` (2 in the authors' code; the paper does not say).

    With a centerness branch, boxes are weighted by their centerness targets and the sum is divided by the
    sum of these; otherwise it is divided by the number of positives.
    """

    weight: float = 2.0


BoxLoss = SmoothL1 | GIoU


@dataclass(frozen=True, slots=True)
class Focal:
    """Sigmoid focal loss, divided by the number of positives over all ranks (at least 1)."""

    alpha: float = 0.25
    gamma: float = 2.0


# --- network ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResNet:
    """A residual network of four stages, C2 to C5.

    Attributes:
        block: 3x3-3x3 ("basic") or 1x1-3x3-1x1 with four times the width out ("bottleneck").
        depths: number of blocks of C2..C5. A stage of depth 0 is absent.
        widths: channels of the 3x3 convolution of C2..C5 (bottleneck: before groups widen it).
        stem: "imagenet" is 7x7 stride 2 and 3x3 max pooling (stride 4 in all); "patch" is one
            `stem_stride` x `stem_stride` patch embedding followed by a 3x3, for small images.
        stem_channels: channels out of the stem.
        stem_stride: stride of the whole stem (4 for "imagenet").
        stage_strides: stride of the first block of C2..C5.
        groups, width_per_group: ResNeXt (32 and 8 for 32x8d); 1 and 64 for ResNet. A basic block
            uses `groups` in its 3x3 convolutions and does not change the width.
        deformable: modulated deformable 3x3 convolutions in C2..C5.
        norm: "frozen_bn" (pretrained) or "group_norm" (from scratch; equal on any number of GPUs).
        stride_in_1x1: stride in the first 1x1, as in Caffe2's ResNets; torchvision and ResNeXt have it in
            the 3x3.
        frozen_stages: 0 none; 1 stem; 2 stem and C2 (the paper's).
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem: Literal["imagenet", "patch"] = "imagenet"
    stem_channels: int = 64
    stem_stride: int = 4
    stage_strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    groups: int = 1
    width_per_group: int = 64
    deformable: tuple[bool, bool, bool, bool] = (False, False, False, False)
    norm: Literal["frozen_bn", "group_norm"] = "frozen_bn"
    stride_in_1x1: bool = False
    frozen_stages: int = 2

    def __post_init__(self) -> None:
        require(0 <= self.frozen_stages <= 5, f"frozen_stages must be 0..5, got {self.frozen_stages}")
        require(min(self.depths[1:]) >= 1, f"C3, C4 and C5 need at least one block, got {self.depths}")
        require(
            self.stem != "imagenet" or self.stem_stride == 4,
            f"the imagenet stem has stride 4, got stem_stride={self.stem_stride}",
        )

    @property
    def c3_stride(self) -> int:
        """Input pixels per cell of C3 and P3."""
        return self.stem_stride * self.stage_strides[0] * self.stage_strides[1]


@dataclass(frozen=True, slots=True)
class FPN:
    """P3..P5 from C3..C5, then P6 by a stride-2 convolution of `p6_from` and P7 of ReLU(P6)."""

    channels: int = 256
    p6_from: Literal["C5", "P5"] = "P5"


@dataclass(frozen=True, slots=True)
class Head:
    """Two towers of `num_convs` 3x3 convolutions shared by all levels.

    Attributes:
        group_norm: GN(32) after each tower convolution ("GroupNorm", Table 1).
        centerness: a centerness branch on the box tower ("Centerness", Table 1).
        level_scale: a learnable scalar per level on the box output ("Scalar", Table 1).
        deformable: the last convolution of each tower is a modulated deformable one.
    """

    num_convs: int = 4
    group_norm: bool = False
    centerness: bool = False
    level_scale: bool = False
    deformable: bool = False


@dataclass(frozen=True, slots=True)
class Detector:
    """The dense detector. RetinaNet, FCOS and ATSS are three values of this class.

    Attributes:
        num_classes: foreground classes; label c of 0..num_classes-1 is output channel c.
        pixel_mean, pixel_std: per channel (RGB), on the 0-255 scale.
    """

    num_classes: int = 80
    backbone: ResNet = ResNet()
    fpn: FPN = FPN()
    head: Head = Head()
    anchors: Anchors = Anchors()
    assigner: Assigner = MaxIoU()
    regression: Regression = BoxRegression()
    box_loss: BoxLoss = SmoothL1()
    focal: Focal = Focal()
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        require(self.num_classes >= 1, f"num_classes must be >= 1, got {self.num_classes}")
        points = isinstance(self.regression, PointRegression)
        require(
            not points or self.anchors.num_per_location == 1,
            f"PointRegression needs one anchor per location, got {self.anchors.num_per_location}",
        )

    @property
    def strides(self) -> tuple[int, int, int, int, int]:
        """Strides of P3..P7 in input pixels."""
        s = self.backbone.c3_stride
        c4 = s * self.backbone.stage_strides[2]
        c5 = c4 * self.backbone.stage_strides[3]
        return s, c4, c5, 2 * c5, 4 * c5


AnyDetector = Detector | SingleShot | FasterRCNN
"""The config of a detector of any family."""


# --- training --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SGD:
    """The paper's optimiser; biases have `bias_lr_factor` times the learning rate and no weight decay.

    Attributes:
        lr: for 16 images a step; scaled linearly for another total batch (Goyal et al. 2017, Sec. 2.1).
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr_factor: float = 2.0


@dataclass(frozen=True, slots=True)
class AdamW:
    """AdamW, for short trainings from scratch; no weight decay of biases and norms; `lr` is for any batch."""

    lr: float = 2e-3
    beta2: float = 0.99
    weight_decay: float = 0.05


@dataclass(frozen=True, slots=True)
class StepDecay:
    """The rate times 0.1 at each milestone, after `warmup` iterations at `warmup_factor`.

    Attributes:
        milestones: fractions of all iterations (60k and 80k of 90k are 2/3 and 8/9).
    """

    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    warmup: int = 500
    warmup_factor: float = 1 / 3


@dataclass(frozen=True, slots=True)
class OneCycle:
    """Linear warm-up over a fraction of the iterations, then a cosine decay to zero."""

    warmup: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.warmup <= 1, f"warmup must be in 0..1, got {self.warmup}")


Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length, batch, optimiser and arithmetic of a training.

    Attributes:
        total_batch: images a step over all workers.
        precision: "bf16" is autocast to bfloat16 with float32 weights; "fp16" the same to float16, with
            loss scaling; "fp32" is float32 on a CPU, while CUDA's
            convolutions may round to TF32 (torch's default).
    """

    iterations: int = 90_000
    total_batch: int = 16
    optimizer: SGD | AdamW = SGD()
    decay: StepDecay | OneCycle = StepDecay()
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"iterations must be >= 1, got {self.iterations}")
        require(self.total_batch >= 1, f"total_batch must be >= 1, got {self.total_batch}")


@dataclass(frozen=True, slots=True)
class Weights:
    """Identity of the backbone's pretrained weights, independent of their path.

    Attributes:
        layout: whose tensor names, channel order and normalisation the file follows.
        sha256: hex digest of the file, or its first digits (at least 8, as torchvision's names have).
    """

    layout: Literal["torchvision", "detectron", "vgg_reduced"]
    sha256: str

    def __post_init__(self) -> None:
        digits = len(self.sha256)
        require(
            8 <= digits <= 64 and set(self.sha256) <= set("0123456789abcdef"),
            f"sha256 must be 8 to 64 lower-case hex digits, got {self.sha256!r}",
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """Everything that decides a training's result, and nothing else; a trial key is its hash.

    Attributes:
        weights: pretrained weights of the backbone; None for random weights from the seed.
    """

    detector: AnyDetector
    schedule: Schedule
    data: AnyData
    seed: int
    weights: Weights | None = None
    recipe_version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must be >= 0, got {self.seed}")
        if isinstance(self.detector, SingleShot) and isinstance(self.data, SquareData):
            seen, side = self.detector.input_size, self.data.side
            require(seen == side, f"images are warped to a side of {side}, but input_size is {seen}")


# --- testing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScalePass:
    """One size of multi-scale testing.

    Attributes:
        scale: short side in units of the training short side (400 / 800 is 0.5).
        max_scale: limit of the long side in the same unit (1333 / 800).
        min_side, max_side: a detection is kept when min_side^2 < area < max_side^2, in units of the
            training short side and measured in this pass's image; None for no limit.
    """

    scale: float = 1.0
    max_scale: float = 1333 / 800
    min_side: float | None = None
    max_side: float | None = None


@dataclass(frozen=True, slots=True)
class SingleScale:
    """Testing at the training size."""


@dataclass(frozen=True, slots=True)
class MultiScale:
    """Testing at several sizes, each plain and flipped, merged by soft voting.

    Attributes:
        vote_iou: detections of a class that overlap at least this much are averaged.
        max_detections: kept per image after merging (1000 in the authors' code, not 100).
    """

    passes: tuple[ScalePass, ...]
    vote_iou: float = 0.66
    max_detections: int = 1000

    def __post_init__(self) -> None:
        require(len(self.passes) >= 1, "passes must have at least one size, got none")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Settings of the test of a trained detector (Sec. 4.1).

    Attributes:
        split: "val", or "test" for images whose annotations are on an evaluation server only (test-dev).
        test_fingerprint: hash of the test split; `Data.fingerprint` is of the other two.
        score_threshold: on the class probability, before centerness.
        pre_nms_topk: (location, class) pairs kept per level by a dense detector; anchors kept per class by a
            single-shot one. Faster R-CNN has few regions and keeps them all.
        nms_iou: IoU above which the lower-scored box of the same class is removed.
        max_detections: kept per image (single scale).
    """

    split: Literal["val", "test"] = "val"
    test_fingerprint: str | None = None
    scales: SingleScale | MultiScale = SingleScale()
    score_threshold: float = 0.05
    pre_nms_topk: int = 1000
    nms_iou: float = 0.6
    max_detections: int = 100

    def __post_init__(self) -> None:
        require(
            0 <= self.score_threshold < 1, f"score_threshold must be in [0, 1), got {self.score_threshold}"
        )
        require(self.pre_nms_topk >= 1, f"pre_nms_topk must be >= 1, got {self.pre_nms_topk}")


@dataclass(frozen=True, slots=True)
class VOCEvaluation(Evaluation):
    """The same test, judged by Pascal VOC's rules beside COCO's.

    Attributes:
        min_iou: a detection is right where its IoU with an object is above.
    """

    min_iou: float = 0.5

    def __post_init__(self) -> None:
        Evaluation.__post_init__(self)  # super() does not know a class with slots
        require(0 <= self.min_iou < 1, f"min_iou must be in [0, 1), got {self.min_iou}")
