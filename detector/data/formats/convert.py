"""A data set in any layout to COCO JSON that the rest of the project reads, made once per cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.data.coco import DataPaths, Split
from detector.data.formats.boxes import BOX_FORMS, BoxForm
from detector.data.formats.contents import ALL, TEST, TRAIN, VAL, Content, Recognised
from detector.data.formats.folder import list_folder, stamp_of
from detector.data.formats.layouts import open_folder, recognise
from detector.data.formats.normalise import normalise
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import read_json
from detector.data.formats.similar import similar_groups, thumbnails
from detector.data.formats.splitting import groups_by_name, split
from detector.errors import DataError
from detector.files import write_and_rename

VERSION = 2
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

    @property
    def report(self) -> tuple[str, ...]:
        """Lines for the user: the layout, then the notes."""
        return f"read as {self.layout}, recognised by {self.evidence}", *self.notes


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
    folder = open_folder(path, without=cache.parent)
    known = sorted(folder.stamps.items())
    return _remembered(folder.root, known, cache, reading or Reading(), lambda: recognise(folder))


def convert_paths(paths: DataPaths, cache: Path, reading: Reading | None = None) -> Converted:
    """As `convert`, of COCO files and folders that are named one by one.

    Raises:
        DataError: a file cannot be read.
    """
    named = {TRAIN: paths.train, VAL: paths.val}
    folders = {name: list_folder(split.images, without=cache.parent) for name, split in named.items()}

    def read() -> Recognised:
        contents = {
            name: Content(read_json(split.annotations), folders[name], "", split.annotations)
            for name, split in named.items()
        }
        return Recognised("COCO JSON", paths.train.annotations.name, contents, Notes())

    files = [stamp_of(split.annotations) for split in named.values()]
    known = [[str(folder.root.absolute()), sorted(folder.stamps.items())] for folder in folders.values()]
    root = paths.train.annotations.absolute().parent.parent
    return _remembered(root, [files, known], cache, reading or Reading(), read)


def _remembered(
    root: Path, known: object, cache: Path, reading: Reading, read: Callable[[], Recognised]
) -> Converted:
    """What `read` gives, from the cache where it was read with all of `known` as it is now."""
    identity = json.dumps([VERSION, dataclasses.asdict(reading), known])
    target = cache / f"converted-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    try:
        record = json.loads((target / "found.json").read_bytes())
    except (OSError, ValueError):
        record = _convert(root, target, reading, read())
        write_and_rename(target / "found.json", json.dumps(record, indent=1).encode())
    return _as_found(root, target, record)


def _convert(root: Path, target: Path, reading: Reading, found: Recognised) -> dict[str, Any]:
    """Write the COCO files that are needed; returns what is remembered of the data set."""
    splits = normalise(found.splits, found.notes, reading.boxes)
    splits = _with_split(root, splits, found, reading)
    for name, content in splits.items():
        if content.source is None:
            write_and_rename(target / f"{_FILES[name]}.json", _as_json(content.coco))
    places = {
        name: {
            "source": content.source and _place(content.source, root),
            "images": _place(content.images_path, root),
        }
        for name, content in splits.items()
    }
    return {
        "layout": found.layout,
        "evidence": found.evidence,
        "notes": found.notes.lines(),
        "splits": places,
    }


def _place(path: Path, root: Path) -> str:
    """Relative to the data set's folder, so that it can be moved; absolute where it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute())


def _as_json(coco: Mapping[str, Any]) -> bytes:
    kept = {
        section: [{key: item[key] for key in keys if key in item} for item in coco[section]]
        for section, keys in _KEYS.items()
    }
    return json.dumps(kept).encode()


def _with_split(
    root: Path, splits: dict[str, Content], found: Recognised, reading: Reading
) -> dict[str, Content]:
    """Training and validation images, parted here where they are not yet."""
    if {TRAIN, VAL} <= splits.keys():
        if reading.split is None:
            return splits
        raise DataError(f"{root}: has a training and a validation split; --split is for data without")
    if set(splits) != {ALL}:
        raise DataError(
            f"{root}: {found.layout} with {' and '.join(sorted(splits)) or 'no'} images, without a training "
            "split. Name the four paths of the annotations and images that are meant."
        )
    if reading.split is None:
        raise DataError(
            f"{root}: {found.layout} with one set of {len(splits[ALL].coco['images']):,} images, not split "
            "into training and validation. --split 0.2 puts a fifth of the images into validation."
        )
    return _split(splits[ALL], reading.split, reading, found.notes)


def _split(content: Content, share: float, reading: Reading, notes: Notes) -> dict[str, Content]:
    images = content.coco["images"]
    similar = similar_groups(thumbnails([content.images_path / image["file_name"] for image in images]))
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
    return {name: Content(part, content.folder, content.images) for name, part in parts.items()}


def _as_found(root: Path, target: Path, record: Mapping[str, Any]) -> Converted:
    splits = {
        name: Split(
            root / place["source"] if place["source"] else target / f"{_FILES[name]}.json",
            root / place["images"],
        )
        for name, place in record["splits"].items()
    }
    return Converted(
        name=root.resolve().name or Path(record["evidence"]).stem,
        paths=DataPaths(splits[TRAIN], splits[VAL], splits.get(TEST)),
        layout=record["layout"],
        evidence=record["evidence"],
        notes=tuple(record["notes"]),
    )
