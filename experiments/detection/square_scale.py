"""The scale of a paper on Pascal VOC: images warped to each detector's square, a pretrained VGG-16.

A study's profile at this scale is a `SquareScale` of its own numbers, `profile(SquareScale(...))`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ablation.errors import UserError
from ablation.metric import SeedNoise
from ablation.resources import Resources
from ablation.study import Profile
from detector.config import (
    AnyData,
    Data,
    Evaluation,
    FasterRCNN,
    Schedule,
    SingleShot,
    SquareData,
    Trial,
    Weights,
)
from detector.errors import WeightsError
from detector.model.pretrained import PUBLISHED, OnVGG, vgg_as_pretrained
from experiments.detection.cost import trial_cost
from experiments.detection.data import Context, DataSet, combined_digest, open_data
from experiments.detection.options import DetectionOptions
from experiments.detection.recipe import Recipe
from experiments.detection.remembered import remembered

TWO_STAGE_SIDES = (600, 1000)
"""Short side, and limit of the long one, of the images that a Faster R-CNN sees; pixels (Ren et al.)."""

SSD_SIDE = 300
"""Pixels of the square at which the images that are tested on are looked at first."""

VGG16 = "vgg16"
"""torchvision's name of the one backbone."""


@dataclass(frozen=True, slots=True)
class SquareScale:
    """A paper's own numbers.

    Attributes:
        schedule: of every row.
        data_set: what --data has to hold, for people.
        train_images: of the paper's training split; another data set is not at the paper's scale.
        worker: what a training holds.
        seed_noise: see `ablation.setting.Setting`.
    """

    name: str
    summary: str
    schedule: Schedule
    data_set: str
    train_images: int
    worker: Resources
    seed_noise: Mapping[str, SeedNoise] = field(default_factory=dict)


def profile(scale: SquareScale) -> Profile:
    """The profile of a scale, with one seed."""
    return Profile(scale.name, scale.summary, 1, partial(prepare, scale))


@dataclass(frozen=True, slots=True)
class SquareSetting:
    """A paper's scale with a data set at hand: an `ablation.setting.Setting`.

    Attributes:
        changes: the options without those that ask for what the profile does anyway.
        weights: what the backbones start from; None for random weights.
    """

    scale: SquareScale
    changes: DetectionOptions
    dataset: DataSet[SquareData]
    weights: Weights | None
    notices: Sequence[str]
    context: Context

    @property
    def profile(self) -> str:
        """The profile's name, and what the user changed of it."""
        return self.changes.name(self.scale.name, self._start)

    @property
    def at_paper_scale(self) -> bool:
        """Whether this is the paper's data set at full length, from any pretrained weights."""
        whole = self.dataset.images["train"] == self.scale.train_images
        return whole and self.weights is not None and not self.changes.max_iterations

    @property
    def seed_noise(self) -> Mapping[str, SeedNoise]:
        """See `ablation.setting.Setting`."""
        return self.scale.seed_noise if self.at_paper_scale else {}

    @property
    def data_name(self) -> str:
        """The data set's name, for people."""
        return self.dataset.name

    @property
    def own_data(self) -> str:
        """Names the data set in folder names."""
        return self.dataset.folder_name

    @property
    def exclusive_gpus(self) -> bool:
        """See `ablation.setting.Setting`."""
        return True

    @property
    def caption(self) -> str:
        """Images, schedule and start, for tables."""
        start = "pretrained weights" if self.weights else "random weights"
        schedule = self._schedule
        return (
            f"{self.dataset.summary}, each detector's own square, {schedule.iterations:,} iterations of "
            f"{schedule.total_batch}, {schedule.precision}, from {start}."
        )

    @property
    def _schedule(self) -> Schedule:
        full, precision = self.scale.schedule, self.changes.precision or "fp32"
        iterations = min(full.iterations, self.changes.max_iterations or full.iterations)
        return replace(full, iterations=iterations, precision=precision)

    @property
    def _start(self) -> str | None:
        """Names what the backbones start from by what is in it; None for torchvision's weights."""
        if self.weights is None:
            return "scratch"
        published = self.weights == Weights("torchvision", PUBLISHED[VGG16].sha256)
        return None if published else f"weights-{self.weights.sha256[:6]}"

    def trial(self, training: Recipe, seed: int) -> Trial:
        """The row as the paper trains it.

        Raises:
            TypeError: a detector without a VGG.
        """
        if not isinstance(training.detector, SingleShot | FasterRCNN):
            raise TypeError(f"{self.scale.name} trains detectors on VGG-16, got {training.detector}")
        detector = starting_from(self.weights, training.detector, len(self.dataset.class_names))
        return Trial(detector, self._schedule, self._seen_by(detector), seed, self.weights)

    def _seen_by(self, detector: SingleShot | FasterRCNN) -> AnyData:
        """A detector's own augmented square; Faster R-CNN keeps the shape of an image and only flips it."""
        data = self.dataset.data
        if isinstance(detector, SingleShot):
            return replace(data, side=detector.input_size)
        return Data(data.fingerprint, *TWO_STAGE_SIDES)

    def evaluation(self, evaluation: Evaluation) -> Evaluation:
        """The paper's test."""
        return evaluation

    def resources(self, trial: Trial) -> Resources:
        """One worker unless the user says otherwise (--resources all=workers:4)."""
        return self.scale.worker

    def cost(self, trial: Trial, evaluations: Sequence[Evaluation]) -> float:
        """See `ablation.setting.Setting`; in 10^12 multiply-adds."""
        return trial_cost(trial, evaluations, self.dataset.images)


def starting_from(weights: Weights | None, detector: OnVGG, num_classes: int) -> OnVGG:
    """The detector with these classes that fits its pretrained weights.

    A random one has group norm, without which it stalls.
    """
    detector = replace(detector, num_classes=num_classes)
    if weights:
        return vgg_as_pretrained(detector, weights.layout)
    return replace(detector, backbone=replace(detector.backbone, norm="group_norm"))


# --- preparing a setting -----------------------------------------------------------------------------


def prepare(scale: SquareScale, workspace: Path, options: DetectionOptions) -> SquareSetting:
    """A paper's scale bound to a data set.

    Raises:
        UserError: no data set is named, or it cannot be used; no weights are where the user said; or a size.
    """
    cache = workspace / "cache"
    if options.short_side:
        raise UserError(f"Under {scale.name} each detector has its own input; leave out --short-side.")
    if (own := options.data_set(cache)) is None:
        raise UserError(f"The profile {scale.name} trains on {scale.data_set}")
    schedule = scale.schedule
    changes = options.changes(
        iterations=schedule.iterations, short_side=0, precision="fp32", weights="torchvision"
    )
    dataset = open_data(own.paths, SquareData("", SSD_SIDE), cache, own.name)
    weights, files, said = pretrained(changes.weights, cache)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = Context(dataset.paths, cache, 20, 1000, 10_000, loaders=min(8, threads), weights=files)
    return SquareSetting(scale, changes, dataset, weights, [*own.report, *dataset.repairs, said], context)


def pretrained(
    source: Path | Literal["none", "torchvision"] | None, cache: Path
) -> tuple[Weights | None, dict[str, Path | str], str]:
    """What the backbones start from.

    Args:
        source: "torchvision" or None for its VGG-16, which is reduced when it is loaded; "none"; or a file.
        cache: remembers what the file is, until its size or time changes.

    Returns:
        The weights; the file or torchvision's name for it, by hash; and what to tell the user.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """
    if source == "none":
        return None, {}, "no pretrained weights: the backbones start from random ones"
    if not isinstance(source, Path):
        published = Weights("torchvision", PUBLISHED[VGG16].sha256)
        return published, {published.sha256: VGG16}, f"{VGG16}: torchvision's ImageNet weights, reduced"
    file = source.absolute()  # the processes of trials have another working folder

    def find() -> tuple[dict[str, Any], list[Path]]:
        from detector.model.weights import describe_vgg  # imports torch

        try:
            return asdict(describe_vgg(file)), []
        except (WeightsError, OSError) as error:
            raise UserError(f"--weights: {error}") from error

    record = cache / "known" / f"vgg-{combined_digest([str(file)])}.json"
    own = Weights(**remembered(record, [file], find))
    return own, {own.sha256: file}, f"{VGG16}: weights of {file}"
