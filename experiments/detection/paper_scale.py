"""The scale of a paper on COCO: its images, its schedules, pretrained backbones.

A study's profile at this scale is a `PaperScale` of its own numbers, `profile(PaperScale(...))`. Each worker
takes its share of the 16 images of a step, so eight of them take two each, as eight GPUs do in most papers;
any other number computes the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ablation.errors import UserError
from ablation.metric import SeedNoise
from ablation.resources import Resources
from ablation.study import Profile
from detector.config import Data, Detector, Evaluation, Precision, Schedule, Trial, Weights
from detector.errors import WeightsError
from detector.model.pretrained import TORCHVISION, as_pretrained, backbone_name, layout_of, sha256_of
from experiments.detection.cost import trial_cost
from experiments.detection.data import Context, DataSet, combined_digest, open_data
from experiments.detection.options import DetectionOptions
from experiments.detection.recipe import SCHEDULES, Recipe, Schedules
from experiments.detection.remembered import remembered


@dataclass(frozen=True, slots=True)
class PaperScale:
    """A paper's own numbers.

    Attributes:
        short_side, max_long_side: what images are resized to, in pixels.
        min_short_side: the smallest short side in trainings of schedule "2x", drawn anew for each image.
        iterations: of 16 images, by the schedule of a `Recipe`.
        train_images: of the paper's training split; another data set is not at the paper's scale.
        large_rows: how people call the rows of schedule "2x" and of test images, in captions and notices.
        worker: what a training holds.
        seed_noise: see `ablation.setting.Setting`.
    """

    name: str
    summary: str
    short_side: int
    max_long_side: int
    min_short_side: int
    iterations: Mapping[Schedules, int]
    train_images: int
    large_rows: str
    worker: Resources
    seed_noise: Mapping[str, SeedNoise]


def profile(scale: PaperScale) -> Profile:
    """The profile of a scale, with one seed."""
    return Profile(scale.name, scale.summary, 1, partial(prepare, scale))


@dataclass(frozen=True, slots=True)
class PaperSetting:
    """A paper's scale with a data set at hand: an `ablation.setting.Setting`.

    Attributes:
        changes: the options without those that ask for what the profile does anyway.
        weights: what each backbone starts from, by torchvision's name of it; nothing for random weights.
    """

    scale: PaperScale
    changes: DetectionOptions
    dataset: DataSet[Data]
    weights: Mapping[str, Weights]
    notices: Sequence[str]
    context: Context

    @property
    def profile(self) -> str:
        """The profile's name, and what the user changed of it."""
        return self.changes.name(self.scale.name, self._start)

    @property
    def at_paper_scale(self) -> bool:
        """Whether this is the paper's data set at full size and length, from any pretrained weights."""
        smaller = self.changes.max_iterations or self.changes.short_side or not self.weights
        return not smaller and self.dataset.images["train"] == self.scale.train_images

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
        """Images, sizes and schedules, for tables."""
        data, large = self.dataset.data, self.scale.large_rows
        start = "pretrained weights" if self.weights else "random weights"
        once, twice = (f"{self._iterations(schedule):,}" for schedule in SCHEDULES)
        return (
            f"{self.dataset.summary}, short side {data.short_side} ({large}: from {self._min_short_side}), "
            f"{once} iterations of 16 ({large}: {twice}), {self._precision}, from {start}."
        )

    def trial(self, training: Recipe, seed: int) -> Trial:
        """The row as the paper trains it."""
        assert isinstance(training.detector, Detector)
        detector = replace(training.detector, num_classes=len(self.dataset.class_names))
        weights = self.weights.get(backbone_name(detector.backbone) or "")
        data = self.dataset.data
        if training.schedule == "2x":
            data = replace(data, min_short_side=self._min_short_side)
        schedule = Schedule(iterations=self._iterations(training.schedule), precision=self._precision)
        return Trial(starting_from(weights, detector), schedule, data, seed, weights)

    def evaluation(self, evaluation: Evaluation) -> Evaluation:
        """The paper's test; on the validation images where there are no test images."""
        if evaluation.split == "val" or "test" not in self.dataset.images:
            return replace(evaluation, split="val")
        return replace(evaluation, test_fingerprint=self.dataset.test_fingerprint)

    def resources(self, trial: Trial) -> Resources:
        """One worker unless the user says otherwise (--resources all=workers:8)."""
        return self.scale.worker

    def cost(self, trial: Trial, evaluations: Sequence[Evaluation]) -> float:
        """See `ablation.setting.Setting`; in 10^12 multiply-adds."""
        return trial_cost(trial, evaluations, self.dataset.images)

    def _iterations(self, schedule: Schedules) -> int:
        full = self.scale.iterations[schedule]
        return min(full, self.changes.max_iterations or full)

    @property
    def _start(self) -> str | None:
        """Names what the backbones start from by what is in it; None for torchvision's weights."""
        if not self.weights:
            return "scratch"
        published = all(w.sha256 == TORCHVISION[name].sha256 for name, w in self.weights.items())
        return None if published else f"weights-{combined_digest(w.sha256 for w in self.weights.values())}"

    @property
    def _precision(self) -> Precision:
        """The paper's, unless the user asks for another."""
        return self.changes.precision or "fp32"

    @property
    def _min_short_side(self) -> int:
        return self.dataset.data.short_side * self.scale.min_short_side // self.scale.short_side


def starting_from(weights: Weights | None, detector: Detector) -> Detector:
    """The detector that fits its pretrained weights.

    Without any nothing is frozen, and group norm replaces the frozen batch norm, which would leave a random
    network without normalisation.
    """
    if weights:
        return as_pretrained(detector, weights.layout)
    scratch = replace(detector.backbone, norm="group_norm", frozen_stages=0, stride_in_1x1=False)
    return replace(detector, backbone=scratch)


# --- preparing a setting -----------------------------------------------------------------------------


def prepare(scale: PaperScale, workspace: Path, options: DetectionOptions) -> PaperSetting:
    """A paper's scale bound to a data set.

    Raises:
        UserError: no data set is named, or it cannot be used, or no weights are where the user said.
    """
    cache = workspace / "cache"
    if (own := options.data_set(cache)) is None:
        raise UserError(
            f"The profile {scale.name} trains on COCO 2017: name its folder with --data DIR (annotations/, "
            "train2017/ and val2017/ in it; with annotations/image_info_test-dev2017.json and test2017/ "
            f"{scale.large_rows} is tested as in the paper)."
        )
    changes = options.changes(
        iterations=max(scale.iterations.values()),
        short_side=scale.short_side,
        precision="fp32",
        weights="torchvision",
    )
    dataset = open_data(own.paths, _size(scale, changes), cache, own.name)
    weights, files, said = pretrained(changes.weights, cache)
    notices = [*own.report, *dataset.repairs, *said]
    if "test" not in dataset.images:
        notices.append(f"no test-dev images: {scale.large_rows} is tested on the validation images")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = Context(dataset.paths, cache, 20, 1000, 10_000, loaders=min(8, threads), weights=files)
    return PaperSetting(scale, changes, dataset, weights, notices, context)


def _size(scale: PaperScale, changes: DetectionOptions) -> Data:
    side = changes.short_side or scale.short_side
    return Data(
        "",
        short_side=side,
        max_long_side=round(side * scale.max_long_side / scale.short_side),
        group_by_aspect=True,
        skip_unannotated=True,
    )


def pretrained(
    source: Path | Literal["none", "torchvision"] | None, cache: Path
) -> tuple[dict[str, Weights], dict[str, Path | str], list[str]]:
    """What backbones start from.

    Args:
        source: "torchvision" or None for its weights, "none", a file of weights, or a folder of them. What a
            file or a folder does not have is torchvision's.
        cache: remembers what a file or folder holds, until its sizes or times change.

    Returns:
        Weights by backbone; files, or torchvision's names for them, by hash; and what to tell the user.

    Raises:
        UserError: nothing is found at the path.
    """
    if source == "none":
        return {}, {}, ["no pretrained weights: the backbones start from random ones"]
    # Absolute, because the processes of trials have another working folder.
    found = _own_files(source.absolute(), cache) if isinstance(source, Path) else {}
    own = {name: Path(path) for name, (path, _) in found.items()}
    digests = {name: digest for name, (_, digest) in found.items()}
    weights = {name: _described_weights(name, own.get(name), digests.get(name, "")) for name in TORCHVISION}
    files = {weights[name].sha256: own.get(name, name) for name in TORCHVISION}
    said = [f"{name}: weights of {path}" for name, path in own.items()]
    others = [name for name in TORCHVISION if name not in own]
    return weights, files, [*said, f"{', '.join(others)}: torchvision's ImageNet weights"] if others else said


def _own_files(place: Path, cache: Path) -> dict[str, tuple[str, str]]:
    """The files at a place, and their SHA-256, by the backbone they are for."""

    def find() -> tuple[dict[str, Any], list[Path]]:
        from detector.model.weights import find_all  # imports torch

        try:
            found = find_all(place)
            facts = {name: (str(path), sha256_of(path)) for name, path in found.items()}
        except WeightsError as error:
            raise UserError(f"--weights: {error}") from error
        return facts, list(found.values())

    record = cache / "known" / f"weights-{combined_digest([str(place)])}.json"
    return {name: (path, digest) for name, (path, digest) in remembered(record, [place], find).items()}


def _described_weights(name: str, path: Path | None, digest: str) -> Weights:
    published = Weights("torchvision", TORCHVISION[name].sha256)
    if path is None:
        return published
    return published if digest.startswith(published.sha256) else Weights(layout_of(path), digest)
