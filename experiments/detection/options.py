"""What a user may change of a detection study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ablation.errors import UserError
from ablation.options import declared, option, without
from detector.config import Precision
from detector.data.coco import DataPaths, Split
from detector.errors import DataError

PARTS = "the data set by its files and folders instead of --data, all four together"
CHANGES = "changes to the profile; its numbers then go to tables of their own"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOptions:
    """The options of every detection study; None leaves the profile as it is.

    All of it is part of a trial's identity, because it ends up in the trial's config.

    Raises:
        ValueError: a data set that is named twice or in part.
    """

    data: Path | None = option(
        "folder of a COCO-format data set to use instead of the profile's",
        metavar="DIR",
        names_data=True,
        group="the data set",
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
    weights: str | None = option(
        'what backbones start from: a file, a folder, or "none" for random weights',
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

    @property
    def paths(self) -> DataPaths | None:
        """Where the user's data set lies; None for the profile's own.

        Raises:
            UserError: the folder is no COCO-format data set; says what is missing.
        """
        if self.train_annotations and self.train_images and self.val_annotations and self.val_images:
            return DataPaths(
                Split(self.train_annotations, self.train_images), Split(self.val_annotations, self.val_images)
            )
        try:
            return DataPaths.from_directory(self.data) if self.data else None
        except DataError as error:
            raise UserError(str(error)) from error

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
