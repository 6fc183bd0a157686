"""Profiles: the scales at which the study runs, and how each maps the paper's rows to its own.

A profile keeps the paper's geometry (five levels, anchors in strides, k, thresholds) and every switch
that a row turns; it shrinks images, widths and iterations. `shapes` draws its own COCO-format data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ablation.errors import UserError
from ablation.study import Profile
from detector.coco import CheckedSplit, DataPaths, Split, fingerprint, read_data
from detector.config import (
    FPN,
    AdamW,
    Data,
    Detector,
    Evaluation,
    MultiScale,
    OneCycle,
    ResNet,
    ScalePass,
    Schedule,
    SingleScale,
    Trial,
)
from detector.dataset import open_packed
from detector.errors import DataError
from detector.shapes import ShapesSpec, draw_dataset
from experiments.atss.presets import Recipe

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Scale:
    """A profile's numbers.

    Attributes:
        shapes: the data set to draw when the user names none.
        own_short_side, own_max_long_side: what the user's own images are resized to, in pixels.
            Photographs hold smaller things than the drawings do: on blood cells RetinaNet (#A=1) with
            the five improvements has AP50 74.6 at 128 and 86.7 at 192 (seed 100).
        widths, stem_channels, stem_stride, stage_strides: of the small backbone.
        channels: of the FPN and the head.
        num_convs: of each tower of the head.
        report_every, checkpoint_every: in iterations.
        seed_noise: see `ablation.study.Setting`; from the spread of FCOS minus improved RetinaNet (1.05)
            over training seeds 101 to 103 on drawings of seed 7, divided by the root of 2.
    """

    name: str
    summary: str
    seeds: int
    shapes: ShapesSpec
    own_short_side: int
    own_max_long_side: int
    schedule: Schedule
    widths: tuple[int, int, int, int]
    stem_channels: int
    stem_stride: int
    channels: int
    num_convs: int
    report_every: int
    checkpoint_every: int
    seed_noise: float | None


SHAPES = Scale(
    name="shapes",
    summary="drawn shapes, the whole grid in 20 minutes on 2 cores (default)",
    seeds=1,
    shapes=ShapesSpec(seed=2020, image_size=128, num_train=3000, num_val=300, max_objects=6, min_size=16),
    own_short_side=192,
    own_max_long_side=320,
    schedule=Schedule(iterations=750, total_batch=16, optimizer=AdamW(lr=3e-3), decay=OneCycle()),
    widths=(16, 32, 64, 96),
    stem_channels=16,
    stem_stride=4,
    channels=32,
    num_convs=2,
    report_every=20,
    checkpoint_every=250,
    seed_noise=0.75,
)

SHAPES_LONG = replace(
    SHAPES,
    name="shapes-long",
    summary="the same shapes, trained longer with three seeds: about 2 hours on 2 cores",
    seeds=3,
    schedule=replace(SHAPES.schedule, iterations=2000),
)

SMOKE = replace(
    SHAPES,
    name="smoke",
    summary="every row for a few seconds, to see that everything works: a minute and a half on 2 cores",
    shapes=ShapesSpec(seed=2020, image_size=64, num_train=64, num_val=16, max_objects=6, min_size=8),
    own_short_side=64,
    own_max_long_side=107,
    schedule=replace(SHAPES.schedule, iterations=10, total_batch=4),
    widths=(16, 16, 16, 16),
    stem_channels=16,
    stem_stride=2,
    channels=16,
    num_convs=1,
    report_every=5,
    checkpoint_every=5,
    seed_noise=None,
)

SCALES = (SHAPES, SHAPES_LONG, SMOKE)


@dataclass(frozen=True, slots=True)
class Context:
    """Where a trial finds its data and how often it reports: nothing that changes its result."""

    paths: DataPaths
    cache: Path
    report_every: int
    checkpoint_every: int


@dataclass(frozen=True, slots=True)
class ScaledSetting:
    """A scale with its data set at hand: an `ablation.study.Setting`."""

    scale: Scale
    data: Data
    data_name: str
    own_data: str | None
    num_classes: int
    precision: Precision
    caption: str
    notices: Sequence[str]
    context: Context

    @property
    def profile(self) -> str:
        """The profile's name."""
        return self.scale.name

    @property
    def seed_noise(self) -> float | None:
        """See `ablation.study.Setting`. What drawings showed is taken for the user's images too."""
        return self.scale.seed_noise

    def trial(self, training: Recipe, seed: int) -> Trial:
        """The row at this scale. The paper's 1x and 2x schedules are one here."""
        detector = shrink(training.detector, self.scale, self.num_classes)
        schedule = replace(self.scale.schedule, precision=self.precision)
        return Trial(detector, schedule, self.data, seed)

    def evaluation(self, evaluation: Evaluation) -> Evaluation:
        """The paper's test; its 13 sizes become five, each with its own range of areas."""
        match evaluation.scales:
            case SingleScale():
                return evaluation
            case MultiScale():
                return replace(evaluation, scales=replace(evaluation.scales, passes=SMALL_PASSES))


SMALL_PASSES = (
    ScalePass(1.0),
    ScalePass(0.5, min_side=0.12),
    ScalePass(0.75, min_side=0.08),
    ScalePass(1.25, max_scale=3.75),
    ScalePass(1.5, max_scale=3.75, max_side=0.32),
)
"""Multi-scale testing of small images: large objects from small images, small objects from large."""


def shrink(detector: Detector, scale: Scale, num_classes: int) -> Detector:
    """The same detector with a small backbone, few channels and the data set's classes."""
    return replace(
        detector,
        num_classes=num_classes,
        backbone=small_backbone(detector.backbone, scale),
        fpn=FPN(scale.channels, detector.fpn.p6_from),
        head=replace(detector.head, num_convs=scale.num_convs, deformable=False),
    )


def small_backbone(paper: ResNet, scale: Scale) -> ResNet:
    """A small analogue, from scratch: deeper where the paper's is, grouped and deformable likewise.

    ResNet-50 becomes one block in each of C3 to C5, and the 101-layer networks two in C3 and C4; 32 and 64
    groups become 4 and 8. Deformable convolutions stay in C5 alone, and out of the head: on a CPU one
    of them at C5 costs as much as the rest of the step, and at P3 ten times that.
    """
    deep = sum(paper.depths) > sum((3, 4, 6, 3))
    return ResNet(
        block="basic",
        depths=(0, 2, 2, 1) if deep else (0, 1, 1, 1),
        widths=scale.widths,
        stem="patch",
        stem_channels=scale.stem_channels,
        stem_stride=scale.stem_stride,
        stage_strides=(1, 1, 2, 2),
        groups={1: 1, 32: 4, 64: 8}[paper.groups],
        deformable=(False, False, False, paper.deformable[3]),
        norm="group_norm",
        frozen_stages=0,
    )


# --- preparing a setting -----------------------------------------------------------------------------


def prepare(scale: Scale, workspace: Path, data: Mapping[str, Path] | None) -> ScaledSetting:
    """The scale bound to a data set: drawn on first use, or the user's own, checked and decoded once.

    Args:
        workspace: holds drawn data sets and decoded images.
        data: None for drawn shapes; {"directory": path} for the standard layout; or the four paths
            "train_annotations", "train_images", "val_annotations", "val_images".

    Raises:
        UserError: the data set cannot be used; lists what is wrong with it.
    """
    cache = workspace / "cache"
    try:
        paths = _paths(scale, cache, data)
        train, val = read_data(paths)
        described = describe(scale, fingerprint(train, val), own=bool(data))
        for name, split in (("train", train), ("val", val)):
            open_packed(split, name, described, cache)
    except DataError as error:
        raise UserError(str(error)) from error
    name = _name(paths) if data else "shapes"
    precision, fallback = supported_precision()
    notices = [*_repairs("train", train), *_repairs("val", val), *fallback]
    return ScaledSetting(
        scale=scale,
        data=described,
        data_name=name,
        own_data=_folder_name(name, described) if data else None,
        num_classes=len(train.class_names),
        precision=precision,
        caption=_caption(scale, name, described, train, val, precision),
        notices=notices,
        context=Context(paths, cache, scale.report_every, scale.checkpoint_every),
    )


def supported_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[Precision, list[str]]:
    """bf16 where the processor multiplies it natively or a GPU is there, else fp32 and why."""
    if Path("/dev/nvidiactl").exists():
        return "bf16", []
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        return "bf16", []
    return "fp32", ["this processor has no bf16 arithmetic: training in fp32, about twice as long"]


def _paths(scale: Scale, cache: Path, data: Mapping[str, Path] | None) -> DataPaths:
    if not data:
        return draw_dataset(scale.shapes, cache)
    if "directory" in data:
        return DataPaths.from_directory(data["directory"])
    return DataPaths(
        Split(data["train_annotations"], data["train_images"]),
        Split(data["val_annotations"], data["val_images"]),
    )


def describe(scale: Scale, fingerprint: str, *, own: bool) -> Data:
    """What a trial's key holds of a data set: the user's own, or the scale's drawings."""
    if own:
        return Data(fingerprint, scale.own_short_side, scale.own_max_long_side)
    # COCO's limits of 32 and 96 px are 0.83 and 2.5 sides of the finest anchor at the paper's size.
    finest = 8.0 * scale.stem_stride
    return Data(
        fingerprint,
        short_side=scale.shapes.image_size,
        max_long_side=scale.shapes.image_size,
        small_side=finest * 32 * 800 / 480 / 64,
        medium_side=finest * 96 * 800 / 480 / 64,
    )


def _name(paths: DataPaths) -> str:
    """What people call their data set: its folder's name, or the file's where no folder has one."""
    annotations = paths.train.annotations.resolve()
    return annotations.parent.parent.name or annotations.stem


def _folder_name(name: str, data: Data) -> str:
    """The name as part of a path, and what is in the data set: two of one name have two folders."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40].strip("-")
    return f"{plain or 'data'}-{data.fingerprint[:6]}"


def _repairs(split: str, checked: CheckedSplit) -> list[str]:
    return [f"{split}: {count} {what}" for what, count in checked.repairs.items() if count]


def _caption(
    scale: Scale, name: str, data: Data, train: CheckedSplit, val: CheckedSplit, precision: Precision
) -> str:
    schedule = scale.schedule
    return (
        f"{len(train.images)} training and {len(val.images)} validation images of {name}, "
        f"short side {data.short_side}, {schedule.iterations} iterations of {schedule.total_batch}, "
        f"{precision}, from scratch."
    )


def _profile(scale: Scale) -> Profile:
    def bound(workspace: Path, data: Mapping[str, Path] | None) -> ScaledSetting:
        return prepare(scale, workspace, data)

    return Profile(scale.name, scale.summary, scale.seeds, bound)


PROFILES = {scale.name: _profile(scale) for scale in SCALES}
