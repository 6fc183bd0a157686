"""What a user may change of a detection study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ablation.errors import UserError
from ablation.options import declared, named, option, without
from detector.config import Precision
from detector.data.coco import DataPaths, Split
from detector.data.formats.boxes import BoxForm
from detector.data.formats.convert import Converted, Reading, convert, convert_paths
from detector.errors import DataError

DATA = "the data set"
PARTS = "the data set by its files and folders instead of --data, all four together"
CHANGES = "changes to the profile; its numbers then go to tables of their own"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOptions:
    """The options of every detection study; None leaves the profile as it is.

    All of it is part of a trial's identity, because it ends up in the trial's config.

    Raises:
        ValueError: a data set that is named twice or in part; a split that is no share.
    """

    data: Path | None = option(
        "folder of a data set to use instead of the profile's, or the annotation file in it: COCO JSON, "
        "Pascal VOC, YOLO, LabelMe, VIA or CVAT XML",
        metavar="DIR",
        names_data=True,
        group=DATA,
    )
    split: float | None = option(
        "share of the images for validation, of a data set without a split: 0.2",
        metavar="SHARE",
        least=0,
        names_data=True,
        group=DATA,
    )
    split_seed: int | None = option(
        "another split than that of seed 0", metavar="N", least=0, names_data=True, group=DATA
    )
    split_group: str | None = option(
        "regular expression: images whose file names agree in what it finds stay on one side of the split",
        metavar="REGEX",
        names_data=True,
        group=DATA,
    )
    boxes: BoxForm | None = option(
        "what the numbers of COCO boxes are, where they look like something else than x, y, width, height",
        names_data=True,
        group=DATA,
    )
    train_annotations: Path | None = option(
        "JSON file of the training split", metavar="PATH", names_data=True, group=PARTS
    )
    train_images: Path | None = option(
        "folder of training images", metavar="PATH", names_data=True, group=PARTS
    )
    val_annotations: Path | None = option(
        "JSON file of the validation split", metavar="PATH", names_data=True, group=PARTS
    )
    val_images: Path | None = option(
        "folder of validation images", metavar="PATH", names_data=True, group=PARTS
    )
    max_iterations: int | None = option(
        "train at most N iterations", metavar="N", least=1, label="{}its", group=CHANGES
    )
    short_side: int | None = option(
        "resize images to this short side, in pixels", metavar="N", least=1, label="{}px", group=CHANGES
    )
    precision: Precision | None = option("arithmetic of the networks", label="{}", group=CHANGES)
    weights: Path | Literal["none", "torchvision"] | None = option(
        'what backbones start from: a file, a folder, "torchvision" for its weights, "none" for random ones',
        metavar="SOURCE",
        label="{}",
        group=CHANGES,
    )

    def __post_init__(self) -> None:
        parts = {one.flag: getattr(self, one.name) for one in declared(type(self)) if one.group == PARTS}
        missing = [flag for flag, value in parts.items() if value is None]
        if self.data and len(missing) < len(parts):
            raise ValueError(f"Give --data, or the four of {', '.join(parts)}; not both.")
        if 0 < len(missing) < len(parts):
            raise ValueError(f"A data set named by its files takes all four; missing: {', '.join(missing)}.")
        splits = (self.split, self.split_seed, self.split_group)
        if self.data is None and any(value is not None for value in splits):
            raise ValueError("--split, --split-seed and --split-group need --data DIR.")
        if self.boxes and not self.names_data:
            raise ValueError("--boxes needs a data set: --data DIR, or its four files and folders.")
        if self.split is not None and not 0 < self.split < 1:
            raise ValueError(f"--split must be between 0 and 1, got {self.split:g}.")

    @property
    def names_data(self) -> bool:
        """Whether the user named a data set, instead of the profile's own."""
        return self.data is not None or self.train_annotations is not None

    def data_set(self, cache: Path) -> Converted | None:
        """The user's data set as COCO's; None for the profile's own.

        Args:
            cache: keeps what is made of other layouts.

        Raises:
            UserError: it is in no layout that is read, or cannot be used; says what is wrong with it.
        """
        reading = Reading(self.split, self.split_seed or 0, self.split_group, self.boxes)
        try:
            if self.data:
                return convert(self.data, cache, reading)
            if self.train_annotations and self.train_images and self.val_annotations and self.val_images:
                train = Split(self.train_annotations, self.train_images)
                val = Split(self.val_annotations, self.val_images)
                return convert_paths(DataPaths(train, val), cache, reading)
        except DataError as error:
            raise UserError(str(error)) from error
        return None

    def name(self, profile: str, start: str | None) -> str:
        """A profile's name with these options; the weights by `start`, which says what is in them."""
        own = named(profile, replace(self, weights=None))
        return f"{own}-{start}" if start else own

    def changes(
        self, *, iterations: int, short_side: int, precision: Precision, weights: str
    ) -> DetectionOptions:
        """The options without those that ask for what a profile does anyway.

        Args:
            iterations: of the profile's longest training.
            short_side, precision, weights: the profile's own.
        """
        fewer = replace(self, max_iterations=min(self.max_iterations or iterations, iterations))
        own = {"short_side": short_side, "precision": precision, "weights": weights}
        changed: DetectionOptions = without(fewer, max_iterations=iterations, **own)
        return changed
