"""A data set made ready for a profile: found, checked, decoded once, and named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ablation.errors import UserError
from ablation.study import Overrides
from detector.config import Data, Precision
from detector.data.coco import CheckedSplit, DataPaths, Split, fingerprint, read_data, read_test
from detector.data.dataset import open_split
from detector.errors import DataError
from detector.inspect_data import inspect

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class Context:
    """Where a trial finds what it needs and how often it reports: nothing that changes its result.

    Attributes:
        report_every, checkpoint_every, validate_every: in iterations.
        loaders: threads of each worker that prepare batches ahead.
        weights: file of pretrained weights, or torchvision's name for them, by their hash.
    """

    paths: DataPaths
    cache: Path
    report_every: int
    checkpoint_every: int
    validate_every: int | None = None
    loaders: int = 0
    weights: Mapping[str, Path | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that can be trained on.

    Attributes:
        name: what people call it.
        test: images whose annotations an evaluation server has, where there are any.
        test_fingerprint: hash of those.
        data: what a trial's key holds of it, for the 1x schedule.
    """

    name: str
    paths: DataPaths
    train: CheckedSplit
    val: CheckedSplit
    test: CheckedSplit | None
    test_fingerprint: str | None
    data: Data

    @property
    def repairs(self) -> list[str]:
        """What was repaired, with counts."""
        splits = {"train": self.train, "val": self.val}
        return [f"{n}: {count} {what}" for n, s in splits.items() for what, count in s.repairs.items()]

    @property
    def folder_name(self) -> str:
        """The name as part of a path, and what is in the data set: two of one name have two folders."""
        return f"{_plain(self.name)[:40] or 'data'}-{self.data.fingerprint[:6]}"

    @property
    def summary(self) -> str:
        """How many images of what, for captions."""
        return (
            f"{len(self.train.images)} training and {len(self.val.images)} validation images of {self.name}"
        )


def named_paths(data: Mapping[str, Path]) -> DataPaths:
    """What the user named: {"directory": path} in the standard layout, or the four paths.

    Raises:
        DataError: a directory without that layout.
    """
    if "directory" in data:
        return DataPaths.from_directory(data["directory"])
    return DataPaths(
        Split(data["train_annotations"], data["train_images"]),
        Split(data["val_annotations"], data["val_images"]),
    )


def open_data(
    find: Callable[[], DataPaths], describe: Callable[[str], Data], cache: Path, name: str | None = None
) -> DataSet:
    """Read and check a data set, and decode every image of it once, as every later run will find it.

    Args:
        find: says where it lies.
        describe: from its fingerprint to what trials see of it.
        cache: holds decoded images.
        name: of the data set; its folder's when None.

    Raises:
        UserError: the data set cannot be used; lists what is wrong with it.
    """
    try:
        paths = find()
        train, val = read_data(paths)
        test = read_test(paths.test, train) if paths.test else None
        data = describe(fingerprint(train, val))
        for split_name, split in (("train", train), ("val", val), ("test", test)):
            if split:
                open_split(split, split_name, data, cache)
    except DataError as error:
        raise UserError(str(error)) from error
    return DataSet(
        name=name or _name(paths),
        paths=paths,
        train=train,
        val=val,
        test=test,
        test_fingerprint=fingerprint(test) if test else None,
        data=data,
    )


def check_data(data: Mapping[str, Path], folder: Path) -> str:
    """A report on a data set before anything trains on it; pictures of it go into `folder`.

    Raises:
        UserError: it cannot be used; lists what is wrong with it.
    """
    try:
        return inspect(named_paths(data), folder)
    except DataError as error:
        raise UserError(str(error)) from error


def _name(paths: DataPaths) -> str:
    """The folder's name, or the file's where no folder has one."""
    annotations = paths.train.annotations.resolve()
    return annotations.parent.parent.name or annotations.stem


def effective(
    overrides: Overrides, iterations: int, short_side: int, weights: str, precision: str
) -> Overrides:
    """The overrides without those that ask for what a profile does anyway.

    Args:
        iterations: of the profile's longest training.
        short_side, weights, precision: the profile's own.

    Raises:
        UserError: there is no such precision.
    """
    if overrides.precision not in (None, *PRECISIONS):
        raise UserError(f"--precision is one of {', '.join(PRECISIONS)}, got {overrides.precision!r}.")
    fewer = overrides.max_iterations is not None and overrides.max_iterations < iterations
    return Overrides(
        max_iterations=overrides.max_iterations if fewer else None,
        short_side=None if overrides.short_side == short_side else overrides.short_side,
        weights=None if overrides.weights == weights else overrides.weights,
        precision=None if overrides.precision == precision else overrides.precision,
    )


def precision_of(overrides: Overrides, own: Precision) -> Precision:
    """The one asked for, else the profile's own."""
    return next((p for p in PRECISIONS if p == overrides.precision), own)


def changed_name(profile: str, overrides: Overrides, weights: str = "") -> str:
    """A profile's name with what the user changed of it, as folders and tables show it.

    Args:
        weights: names the user's own weights by what is in them; empty for none of those.
    """
    parts = [profile]
    if overrides.max_iterations:
        parts.append(f"{overrides.max_iterations}its")
    if overrides.short_side:
        parts.append(f"{overrides.short_side}px")
    if overrides.precision:
        parts.append(overrides.precision)
    if overrides.weights == "none":
        parts.append("scratch")
    if weights:
        parts.append(f"weights-{weights}")
    return "-".join(parts)


def combined_digest(digests: Iterable[str]) -> str:
    """Six hex digits that several hashes have together."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:6]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
