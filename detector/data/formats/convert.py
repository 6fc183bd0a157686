"""A data set in any layout to COCO JSON that the rest of the project reads, made once per cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.data.coco import DataPaths, Split
from detector.data.formats.boxes import BOX_FORMS, BoxForm
from detector.data.formats.contents import ALL, TEST, TRAIN, VAL, Content, Recognised
from detector.data.formats.folder import Folder
from detector.data.formats.layouts import open_folder, recognise
from detector.data.formats.normalise import normalise
from detector.data.formats.notes import Notes
from detector.data.formats.similar import image_hashes, similar_groups
from detector.data.formats.splitting import groups_by_name, split
from detector.errors import DataError
from detector.files import write_and_rename

VERSION = 1
"""Of what readers make of files, part of the names in the cache. To be raised when that changes."""

_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult"),
    "categories": ("id", "name"),
}
_FILES = {TRAIN: "instances_train2017", VAL: "instances_val2017", TEST: "image_info_test-dev2017"}


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a data set, where that is not clear from its files.

    Attributes:
        split: share of the images that go to validation, of a data set without a split.
        seed: of that split.
        group: regular expression; images whose file names agree in what it finds are not parted.
        boxes: what boxes are; None finds it out and refuses what is not COCO's.
    """

    split: float | None = None
    seed: int = 0
    group: str | None = None
    boxes: BoxForm | None = None

    def __post_init__(self) -> None:
        if self.split is not None and not 0 < self.split < 1:
            raise ValueError(f"split must be between 0 and 1, got {self.split}")
        if self.boxes not in (None, *BOX_FORMS):
            raise ValueError(f"boxes must be one of {', '.join(BOX_FORMS)}, got {self.boxes!r}")


@dataclass(frozen=True, slots=True)
class Converted:
    """A data set that can be read as COCO's.

    Attributes:
        name: of the data set: its folder's.
        paths: of its splits: its own COCO files where those can be read as they are, else files in the cache.
        layout: in which it was found.
        evidence: the file that the layout was recognised by.
        notes: what was changed, counted and left out, as lines.
    """

    name: str
    paths: DataPaths
    layout: str
    evidence: str
    notes: tuple[str, ...]


def convert(path: Path, cache: Path, reading: Reading | None = None) -> Converted:
    """Recognise and read a data set, or find what an earlier call made of the same files.

    The same files are those of the same names, sizes and modification times. Only `cache` is written to.

    Args:
        path: the data set's folder; or a JSON, YAML or XML file in it.
        cache: made if absent.
        reading: what the user says of it.

    Raises:
        DataError: no layout fits, a file cannot be read, or the data set has no split and none is asked for.
    """
    reading = reading or Reading()
    folder = open_folder(path, without=cache.parent)
    target = cache / f"converted-{_digest(folder, reading)}"
    try:
        record = json.loads((target / "found.json").read_bytes())
    except (OSError, ValueError):
        record = _convert(folder, target, reading)
        content = json.dumps(record, indent=1).encode()
        write_and_rename(target / "found.json", content)
    return _as_found(folder, target, record)


def _digest(folder: Folder, reading: Reading) -> str:
    """12 hex digits over names, sizes and times of the files, and how they are read."""
    known = [VERSION, dataclasses.asdict(reading), sorted(folder.stamps.items())]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]


def _convert(folder: Folder, target: Path, reading: Reading) -> dict[str, Any]:
    """Write the COCO files that are needed; returns what is remembered of the data set."""
    found = recognise(folder)
    splits = normalise(found.splits, folder, found.notes, reading.boxes)
    splits = _with_split(splits, folder, found, reading)
    for name, content in splits.items():
        if content.source is None:
            write_and_rename(target / f"{_FILES[name]}.json", _as_json(content.coco))
    return {
        "layout": found.layout,
        "evidence": found.evidence,
        "notes": found.notes.lines(),
        "splits": {name: {"source": c.source, "images": c.images} for name, c in splits.items()},
    }


def _as_json(coco: Mapping[str, Any]) -> bytes:
    kept = {
        section: [{key: item[key] for key in keys if key in item} for item in coco[section]]
        for section, keys in _KEYS.items()
    }
    return json.dumps(kept).encode()


def _with_split(
    splits: dict[str, Content], folder: Folder, found: Recognised, reading: Reading
) -> dict[str, Content]:
    """Training and validation images, parted here where they are not yet."""
    if {TRAIN, VAL} <= splits.keys():
        if reading.split is None:
            return splits
        raise DataError(f"{folder.root}: has a training and a validation split; --split is for data without")
    if set(splits) != {ALL}:
        raise DataError(
            f"{folder.root}: {found.layout} with {' and '.join(sorted(splits)) or 'no'} images, without a "
            "training split. Name the four paths of the annotations and images that are meant."
        )
    if reading.split is None:
        raise DataError(
            f"{folder.root}: {found.layout} with one set of {len(splits[ALL].coco['images']):,} images, not "
            "split into training and validation. --split 0.2 puts a fifth of the images into validation."
        )
    return _split(splits[ALL], folder, reading.split, reading, found.notes)


def _split(
    content: Content, folder: Folder, share: float, reading: Reading, notes: Notes
) -> dict[str, Content]:
    images = content.coco["images"]
    similar = similar_groups(
        image_hashes([folder.root / content.images / image["file_name"] for image in images])
    )
    together = [[images[i]["id"] for i in group] for group in similar]
    if similar:
        count = sum(map(len, similar))
        notes.say(f"{count:,} images nearly look like another: {len(similar):,} groups that are not parted")
    if reading.group is not None:
        by_name = groups_by_name(images, reading.group)
        notes.say(f"{len(by_name):,} groups by file name ({reading.group}) are not parted")
        together += by_name
    parts = split(content.coco, share, reading.seed, together)
    counts = ", ".join(f"{len(part['images']):,} {name}" for name, part in parts.items())
    notes.say(f"split by image, seed {reading.seed}: {counts}")
    return {name: Content(part, content.images) for name, part in parts.items()}


def _as_found(folder: Folder, target: Path, record: Mapping[str, Any]) -> Converted:
    splits = {
        name: Split(
            folder.root / place["source"] if place["source"] else target / f"{_FILES[name]}.json",
            folder.root / place["images"],
        )
        for name, place in record["splits"].items()
    }
    return Converted(
        name=folder.root.resolve().name,
        paths=DataPaths(splits[TRAIN], splits[VAL], splits.get(TEST)),
        layout=record["layout"],
        evidence=record["evidence"],
        notes=tuple(record["notes"]),
    )
