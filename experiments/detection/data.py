"""A data set made ready for a profile: found, checked, decoded once, and named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import detector.data
from ablation.errors import UserError
from detector.config import Data, SquareData
from detector.data.coco import CheckedSplit, DataPaths, fingerprint, read_data, read_test
from detector.data.image_files import image_digest
from detector.errors import DataError
from experiments.detection.remembered import remembered

_CODE = sorted(Path(detector.data.__file__).parent.glob("*.py"))
"""Decides what is found in a data set."""


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


D = TypeVar("D", Data, SquareData)


@dataclass(frozen=True, slots=True)
class DataSet(Generic[D]):
    """What is known of a data set that can be trained on.

    Attributes:
        name: what people call it.
        class_names: of labels 0, 1, ...
        images: how many each split has, "train", "val" and perhaps "test": images whose annotations an
            evaluation server has.
        repairs: what was repaired in training and validation split, with counts.
        test_fingerprint: hash of the test split.
        data: what a trial's key holds of it, for the 1x schedule, or but for each detector's square.
    """

    name: str
    paths: DataPaths
    class_names: tuple[str, ...]
    images: Mapping[str, int]
    repairs: tuple[str, ...]
    test_fingerprint: str | None
    data: D

    @property
    def folder_name(self) -> str:
        """The name as part of a path, and what is in the data set: two of one name have two folders."""
        return f"{_plain(self.name)[:40] or 'data'}-{self.data.fingerprint[:6]}"

    @property
    def summary(self) -> str:
        """How many images of what, for captions."""
        train, val = self.images["train"], self.images["val"]
        return f"{train} training and {val} validation images of {self.name}"


def open_data(paths: DataPaths, size: D, cache: Path, name: str, *, drawn: bool = False) -> DataSet[D]:
    """Read and check a data set, and decode every image of it once, as every later run will find it.

    What was found is remembered in the cache, and nothing is read while the annotation files, every file of
    the image folders and the decoded images have their size and time.

    Args:
        paths: where it lies.
        size: what trials see of it, but for its fingerprint.
        cache: holds decoded images.
        name: of the data set.
        drawn: whether this project drew it: then its annotations tell what its images hold.

    Raises:
        UserError: the data set cannot be used; lists what is wrong with it.
    """
    splits = [split for split in (paths.train, paths.val, paths.test) if split]
    files: list[Path] = [path for split in splits for path in (split.annotations, split.images)]
    identity = f"{[str(file.absolute()) for file in files]} {size}"
    record = cache / "known" / f"data-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"
    try:
        facts = remembered(record, [*files, *_CODE], partial(_read, paths, size, cache, drawn))
    except DataError as error:
        raise UserError(str(error)) from error
    return DataSet(
        name=name,
        paths=paths,
        class_names=tuple(facts["class_names"]),
        images=facts["images"],
        repairs=tuple(facts["repairs"]),
        test_fingerprint=facts["test_fingerprint"],
        data=replace(size, fingerprint=facts["fingerprint"]),
    )


def _read(
    paths: DataPaths, size: Data | SquareData, cache: Path, drawn: bool
) -> tuple[dict[str, Any], list[Path]]:
    """What a `DataSet` is made of, as JSON values, and the files of decoded images; DataError."""
    from detector.data.dataset import open_split  # imports torch

    train, val = read_data(paths)
    test = read_test(paths.test, train) if paths.test else None
    splits = {"train": train, "val": val} | ({"test": test} if test else {})
    whole = _fingerprint([train, val], cache, drawn)
    of_test = _fingerprint([test], cache, drawn) if test else None
    identity = {"train": whole, "val": whole, "test": of_test or ""}
    decoded = [
        open_split(split, name, replace(size, fingerprint=identity[name]), cache).file
        for name, split in splits.items()
    ]
    facts = {
        "class_names": train.class_names,
        "images": {name: len(split.images) for name, split in splits.items()},
        "repairs": [
            f"{name}: {count} {what}"
            for name, split in (("train", train), ("val", val))
            for what, count in split.repairs.items()
        ],
        "fingerprint": whole,
        "test_fingerprint": of_test,
    }
    return facts, decoded


def _fingerprint(splits: Sequence[CheckedSplit], cache: Path, drawn: bool) -> str:
    """12 hex digits of a hash of annotations and image files; of the annotations alone where it was drawn."""
    annotations = fingerprint(*splits)
    if drawn:
        return annotations
    digest = hashlib.sha256(annotations.encode())
    for split in splits:
        place = f"{split.source.annotations.absolute()} {split.source.images.absolute()}"
        record = f"images-{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}.json"
        digest.update(image_digest(split, cache / "known" / record).encode())
    return digest.hexdigest()[:12]


def combined_digest(digests: Iterable[str]) -> str:
    """Six hex digits that several hashes have together."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:6]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
