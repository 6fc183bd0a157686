"""Reads and checks a data set in COCO's format.

Repairable errors (a box beyond the image, a box without area) are repaired and counted; others raise a
`DataError` that lists the entries. Images without boxes are kept as background, in training and evaluation;
`Data.skip_unannotated` removes them from training, as the reference does.

Axes: n boxes of one image. Pixels are those of the original image, coordinates continuous.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.data.checks import Finding, Item, findings_of, refuse
from detector.errors import DataError
from detector.geometry.transforms import xywh_to_xyxy

_ROUNDING = 1e-3
"""Pixels by which a box may exceed a border, or below which a side is 0: tolerance for rounding."""


# --- where a data set lies -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """One split: a JSON file in COCO's instances format, and the directory of its images."""

    annotations: Path
    images: Path


@dataclass(frozen=True, slots=True)
class DataPaths:
    """Paths of the splits of a data set.

    Attributes:
        test: images without public annotations, as COCO's test-dev; None where there are none. Only the
            standard layout can have them.
    """

    train: Split
    val: Split
    test: Split | None = None

    @classmethod
    def from_directory(cls, directory: Path) -> DataPaths:
        """The standard layout: annotations/instances_{train,val}2017.json, train2017/ and val2017/.

        With annotations/image_info_test-dev2017.json and test2017/ there is a test split too.

        Raises:
            DataError: a file or folder is missing; the message names it.
        """
        annotations = directory / "annotations"
        splits = [
            Split(annotations / f"instances_{name}2017.json", directory / f"{name}2017")
            for name in ("train", "val")
        ]
        test = Split(annotations / "image_info_test-dev2017.json", directory / "test2017")
        if test.annotations.is_file():
            splits.append(test)
        missing = [f"{s.annotations.relative_to(directory)}" for s in splits if not s.annotations.is_file()]
        missing += [f"{s.images.relative_to(directory)}/" for s in splits if not s.images.is_dir()]
        if missing:
            raise DataError(
                f"{directory} is not a COCO-format data set: {', '.join(missing)} not found. Expected "
                "annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/ "
                "and val2017/; test2017/ only beside annotations/image_info_test-dev2017.json."
            )
        return cls(*splits)


# --- splits ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and its annotations, crowds included, in the file's order.

    Attributes:
        id, file_name, width, height: as in the JSON.
        xywh: (n, 4) float64, COCO's x, y, width, height in original pixels: the file's values, except
            where a box was clipped to the image.
        labels: (n,) int64, 0..K-1 in order of category id.
        areas: (n,) float64, square pixels, from which COCO decides between small, medium and large.
        crowd: (n,) bool; a crowd counts in evaluation (as a region to ignore) and not in training.
        difficult: (n,) bool; VOC's evaluation ignores such an object. Readers of VOC set `crowd` with it, and
            `config.SquareData` decides whether it is trained on.
    """

    id: int
    file_name: str
    width: int
    height: int
    xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(n, 4) float32, xyxy, original pixels."""
        return xywh_to_xyxy(self.xywh).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class CheckedSplit:
    """A split without errors.

    Attributes:
        source: its paths.
        images: in order of image id.
        category_ids: the JSON's ids in ascending order, possibly with gaps; entry c is label c.
        class_names: name of label c.
        repairs: number of repairs of each kind that was made.
    """

    source: Split
    images: tuple[ImageRecord, ...]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    repairs: Mapping[str, int]


def read_data(paths: DataPaths) -> tuple[CheckedSplit, CheckedSplit]:
    """Reads both splits (`read_split`).

    Raises:
        DataError: as `read_split`, or the categories of the splits differ.
    """
    train, val = read_split(paths.train), read_split(paths.val)
    _refuse_other_categories("training and validation", train, val)
    return train, val


def read_test(test: Split, train: CheckedSplit) -> CheckedSplit:
    """Reads a test split (`read_split` without annotations).

    Raises:
        DataError: as `read_split`, or its categories are not those of `train`.
    """
    checked = read_split(test, annotated=False)
    _refuse_other_categories("training and test", train, checked)
    return checked


def _refuse_other_categories(names: str, one: CheckedSplit, two: CheckedSplit) -> None:
    ours = set(zip(one.category_ids, one.class_names, strict=True))
    theirs = set(zip(two.category_ids, two.class_names, strict=True))
    findings = [
        Finding(f"categories (id, name) only in {split.source.annotations.name}", [repr(c) for c in only])
        for split, only in ((one, sorted(ours - theirs)), (two, sorted(theirs - ours)))
    ]
    refuse(f"the {names} splits have different categories", findings)


def read_split(split: Split, annotated: bool = True) -> CheckedSplit:
    """Reads and checks one split, except for pixels, which `dataset.open_split` checks.

    Args:
        split: its JSON file and image directory.
        annotated: False for a file with images and categories only, such as COCO's image_info files;
            annotations are ignored, and no record has a box.

    Returns:
        The repaired split: boxes are clipped to the image; boxes without area, outside the image or with NaN
        or infinite numbers are removed; missing areas are set to the box's.

    Raises:
        DataError: the file is missing, truncated or not JSON; keys are missing or of the wrong type; ids
            occur twice; an annotation has an unknown image or category; image files are missing; the
            split has no images, no categories or, if `annotated`, no usable annotation.
    """
    content = _load(split.annotations)
    if not annotated and isinstance(content, dict):
        content["annotations"] = []
    for findings in findings_of(content, split.images, annotated):
        refuse(split.annotations, findings)
    categories = sorted(content["categories"], key=lambda c: int(c["id"]))
    category_ids = tuple(int(c["id"]) for c in categories)
    repairs: Counter[str] = Counter()
    images = tuple(_records(content, category_ids, repairs))
    if annotated and all(record.crowd.all() for record in images):
        refuse(split.annotations, [Finding("no box is left to train or evaluate on", _counts(repairs))])
    return CheckedSplit(split, images, category_ids, tuple(str(c["name"]) for c in categories), dict(repairs))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        what = "is truncated: it ends in the middle of the JSON" if cut else "is not JSON"
        raise DataError(f"{path}: {what} (line {error.lineno}, column {error.colno}: {error.msg})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not JSON (not text: {error})") from error


def _counts(repairs: Mapping[str, int]) -> list[str]:
    return [f"{what}: {count}" for what, count in repairs.items()] or ["every annotation is a crowd"]


# --- reading and repairing -------------------------------------------------------------------------


class _Columns(NamedTuple):
    """All annotations of a split as columns; row i of each is one annotation."""

    image: NDArray[np.int64]
    xywh: NDArray[np.float64]
    label: NDArray[np.int64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]

    def keep(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> _Columns:
        return _Columns(
            self.image[rows],
            self.xywh[rows],
            self.label[rows],
            self.area[rows],
            self.crowd[rows],
            self.difficult[rows],
        )


def _records(
    content: Mapping[str, Sequence[Item]], category_ids: Sequence[int], repairs: Counter[str]
) -> Iterator[ImageRecord]:
    images = sorted(content["images"], key=lambda image: int(image["id"]))
    columns = _repaired(_columns(content["annotations"], images, category_ids), images, repairs)
    columns = columns.keep(np.argsort(columns.image, kind="stable"))
    starts = np.searchsorted(columns.image, np.arange(len(images) + 1)).tolist()
    for i, image in enumerate(images):
        own = columns.keep(slice(starts[i], starts[i + 1]))
        yield ImageRecord(
            id=image["id"],
            file_name=image["file_name"],
            width=image["width"],
            height=image["height"],
            xywh=own.xywh,
            labels=own.label,
            areas=own.area,
            crowd=own.crowd,
            difficult=own.difficult,
        )


def _columns(annotations: Sequence[Item], images: Sequence[Item], category_ids: Sequence[int]) -> _Columns:
    image_index = {image["id"]: i for i, image in enumerate(images)}
    label = {category: c for c, category in enumerate(category_ids)}
    return _Columns(
        np.array([image_index[a["image_id"]] for a in annotations], dtype=np.int64),
        np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4),
        np.array([label[a["category_id"]] for a in annotations], dtype=np.int64),
        np.array([_area(a) for a in annotations], dtype=np.float64),
        np.array([bool(a.get("iscrowd")) for a in annotations], dtype=np.bool_),
        np.array([a.get("difficult") in (1, "1") for a in annotations], dtype=np.bool_),
    )


def _area(annotation: Item) -> float:
    area = annotation.get("area")
    return float(area) if isinstance(area, int | float) else np.nan


def _repaired(columns: _Columns, images: Sequence[Item], repairs: Counter[str]) -> _Columns:
    """Removes unusable boxes, clips those that exceed the image, and counts both in `repairs`."""
    columns = _drop(columns, _any(~np.isfinite(columns.xywh)), "boxes with NaN or inf dropped", repairs)
    columns = _drop(columns, _any(columns.xywh[:, 2:] < _ROUNDING), "boxes without area dropped", repairs)
    limits = np.array([(i["width"], i["height"]) for i in images], dtype=np.float64)[columns.image]
    clipped = _clipped(columns.xywh, limits)
    moved = _any(np.abs(clipped - columns.xywh) > _ROUNDING)
    outside = _any(clipped[:, 2:] < _ROUNDING)
    box_area = clipped[:, 2] * clipped[:, 3]
    # Clipping removes a part of the object's area; the rest is at most the area of its box.
    area = np.where(moved, np.minimum(columns.area, box_area), columns.area)
    unknown = ~(area > 0) & ~outside
    _count(repairs, "boxes clipped to the image", moved & ~outside)
    _count(repairs, "areas missing or not positive, set to the box's", unknown)
    columns = columns._replace(
        xywh=np.where(moved[:, None], clipped, columns.xywh), area=np.where(unknown, box_area, area)
    )
    return _drop(columns, outside, "boxes outside the image dropped", repairs)


def _clipped(xywh: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.clip(xywh[:, :2], 0, limits)
    high = np.clip(xywh[:, :2] + xywh[:, 2:], 0, limits)
    return np.concatenate((low, high - low), axis=1)


def _any(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(flags.any(axis=1))


def _drop(columns: _Columns, rows: NDArray[np.bool_], what: str, repairs: Counter[str]) -> _Columns:
    _count(repairs, what, rows)
    return columns.keep(~rows)


def _count(repairs: Counter[str], what: str, rows: NDArray[np.bool_]) -> None:
    if count := int(rows.sum()):
        repairs[what] += count


# --- conversions ------------------------------------------------------------------------


def to_coco_dict(checked: CheckedSplit) -> dict[str, Any]:
    """The repaired ground truth for pycocotools, with the JSON's image and category ids.

    Annotations are numbered from 1: in pycocotools an annotation id of 0 means "not matched".
    """
    annotations: list[Item] = []
    for record in checked.images:
        columns = (record.xywh.tolist(), record.labels.tolist(), record.areas.tolist(), record.crowd.tolist())
        annotations += [
            {
                "id": len(annotations) + i,
                "image_id": record.id,
                "category_id": checked.category_ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for i, (box, label, area, crowd) in enumerate(zip(*columns, strict=True), start=1)
        ]
    names = zip(checked.category_ids, checked.class_names, strict=True)
    return {
        "info": {},
        "images": [
            {"id": r.id, "file_name": r.file_name, "width": r.width, "height": r.height}
            for r in checked.images
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in names],
    }


def is_annotated(record: ImageRecord) -> bool:
    """Whether an image has an annotation, crowds included, with both sides over 1 px.

    See `Data.skip_unannotated`. The reference tests the boxes of the file, this function those after repair.
    """
    return bool((record.xywh[:, 2:] > 1).all(axis=1).any())


def fingerprint(*splits: CheckedSplit) -> str:
    """12 hex digits of a hash of the splits' content, in the order given (training, validation).

    It depends on ids, file names, sizes, boxes, labels, areas, flags (crowd, difficult) and classes after
    repair; not on paths, the order of images in the JSON, or pixels.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(json.dumps([split.category_ids, split.class_names, len(split.images)]).encode())
        for record in split.images:
            head = [record.id, record.file_name, record.width, record.height, len(record.labels)]
            digest.update(json.dumps(head).encode())
            columns = (record.xywh, record.labels, record.areas, record.crowd)
            for column, kind in zip(columns, ("<f8", "<i8", "<f8", "?"), strict=True):
                digest.update(column.astype(kind).tobytes())
            if record.difficult.any():
                digest.update(record.difficult.tobytes())
    return digest.hexdigest()[:12]
