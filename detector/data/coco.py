"""Reading a data set in COCO's format, checked before anything is trained on it.

What can be repaired (a box beyond the image, a box without area) is repaired and counted; what cannot
stops with a `DataError` that lists the entries. Images without boxes are kept and train as background,
unless `Data.skip_unannotated` leaves them out of training as the reference does, whose losses fail on them.
Whoever labelled nothing in an image says that there is nothing, and false detections there count against a
detector in every evaluation.

Axes: n boxes of one image. Pixels are those of the original image, coordinates continuous.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.errors import DataError
from detector.geometry.transforms import xywh_to_xyxy

MAX_LISTED = 10
"""Cases of one kind that an error message spells out."""

_ROUNDING = 1e-3
"""Pixels that a border may be passed by, or a side be short of, before it is more than rounding."""

_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_KIND_NAMES = {int: "an integer", str: "text", list: "a list [x, y, width, height]"}

Item = dict[str, Any]


# --- where a data set lies -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """One split: a JSON file in COCO's instances format and the directory its file names start from."""

    annotations: Path
    images: Path


@dataclass(frozen=True, slots=True)
class DataPaths:
    """Where the splits of a data set lie.

    Attributes:
        test: images whose annotations are not public, as of COCO's test-dev; None where there are none.
            Only the standard layout has a place for them: a user who names files and folders one by one
            names those of train and val.
    """

    train: Split
    val: Split
    test: Split | None = None

    @classmethod
    def from_directory(cls, directory: Path) -> DataPaths:
        """The standard layout: annotations/instances_{train,val}2017.json, train2017/ and val2017/.

        With annotations/image_info_test-dev2017.json there must be test2017/ too, and is a test split.

        Raises:
            DataError: naming what is missing.
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


# --- what is read ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and everything annotated in it, crowds included, in the file's order.

    Attributes:
        id, file_name, width, height: as in the JSON.
        xywh: (n, 4) float64, COCO's x, y, width, height in original pixels: the file's own numbers,
            except where a box was clipped to the image.
        labels: (n,) int64, 0..K-1 in order of category id.
        areas: (n,) float64, square pixels; what decides between small, medium and large.
        crowd: (n,) bool; a crowd counts in evaluation (as a region to ignore) and not in training.
    """

    id: int
    file_name: str
    width: int
    height: int
    xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(n, 4) float32, xyxy, original pixels."""
        return xywh_to_xyxy(self.xywh).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class CheckedSplit:
    """A split that can be trained and evaluated on.

    Attributes:
        source: where it was read from.
        images: in order of image id, whatever the order of the file.
        category_ids: the JSON's ids in ascending order, gaps and all; entry c is label c.
        class_names: name of label c.
        repairs: how often each repair was made; only those that were.
    """

    source: Split
    images: tuple[ImageRecord, ...]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    repairs: Mapping[str, int]


def read_data(paths: DataPaths) -> tuple[CheckedSplit, CheckedSplit]:
    """Both splits, `read_split` each, and that they have the same classes.

    Raises:
        DataError: as `read_split`; or the categories differ.
    """
    train, val = read_split(paths.train), read_split(paths.val)
    _refuse_other_categories("training and validation", train, val)
    return train, val


def read_test(test: Split, train: CheckedSplit) -> CheckedSplit:
    """A test split, `read_split` without annotations, and that its classes are those of `train`.

    Raises:
        DataError: as `read_split`; or the categories differ.
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
    """Read and check one split. Pixels are not looked at: `dataset.open_split` does when it decodes.

    Args:
        split: its JSON file and image directory.
        annotated: False for a file of images and categories alone, as COCO's image_info files are;
            annotations that it may have are not looked at, and no record has a box.

    Returns:
        The split, repaired: boxes clipped to the image, boxes without area, outside the image or with
        NaN or infinite numbers dropped, missing areas set to the box's.

    Raises:
        DataError: the file is missing, truncated or not JSON; keys are missing or of the wrong type; ids
            occur twice; an annotation names an unknown image or category; image files are missing; the
            split has no images, no categories or, if `annotated`, no usable annotation.
    """
    content = _load(split.annotations)
    if not annotated and isinstance(content, dict):
        content["annotations"] = []
    refuse(split.annotations, _section_findings(content, annotated))
    refuse(split.annotations, _item_findings(content))
    refuse(split.annotations, _reference_findings(content))
    refuse(split.annotations, _file_findings(content["images"], split.images))
    categories = sorted(content["categories"], key=lambda c: int(c["id"]))
    category_ids = tuple(int(c["id"]) for c in categories)
    repairs: Counter[str] = Counter()
    images = tuple(_records(content, category_ids, repairs))
    if annotated and all(record.crowd.all() for record in images):
        refuse(split.annotations, [Finding("no box is left to train or evaluate on", _counts(repairs))])
    return CheckedSplit(split, images, category_ids, tuple(str(c["name"]) for c in categories), dict(repairs))


# --- refusing --------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """A kind of fault and the entries that have it; none where there are no cases."""

    what: str
    cases: Sequence[str]


def refuse(
    subject: object, findings: Iterator[Finding] | Sequence[Finding], limit: int | None = MAX_LISTED
) -> None:
    """Raise a `DataError` that lists the cases of every finding, up to `limit` each, and their number.

    Raises:
        DataError: if any finding has a case.
    """
    lines: list[str] = []
    for what, cases in findings:
        if cases:
            lines.append(f"  {what} ({len(cases)}):")
            lines += [f"    {case}" for case in cases[:limit]]
            if limit is not None and len(cases) > limit:
                lines.append(f"    and {len(cases) - limit} more")
    if lines:
        raise DataError("\n".join([f"{subject}: cannot be used", *lines]))


def _counts(repairs: Mapping[str, int]) -> list[str]:
    return [f"{what}: {count}" for what, count in repairs.items()] or ["every annotation is a crowd"]


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


def _section_findings(content: Any, annotated: bool) -> Iterator[Finding]:
    """The three top-level lists exist and have entries (annotations: if `annotated`) that are objects."""
    if not isinstance(content, dict):
        yield Finding("the top level must be an object", [f"found {_short(content)}"])
        return
    for section in _FIELDS:
        items = content.get(section)
        if section not in content:
            yield Finding("keys missing at the top level", [f'"{section}"'])
        elif not isinstance(items, list):
            yield Finding(f'"{section}" must be a list', [f"found {_short(items)}"])
        elif not items and (annotated or section != "annotations"):
            yield Finding(f'"{section}" must have at least one entry', ["found []"])
        else:
            cases = [f"{section}[{i}] = {_short(x)}" for i, x in enumerate(items) if not isinstance(x, dict)]
            yield Finding(f'entries of "{section}" must be objects', cases)


def _item_findings(content: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Every entry has the keys that are used, of the right type."""
    for section, fields in _FIELDS.items():
        for key, kind in fields.items():
            wrong = [(i, x) for i, x in enumerate(content[section]) if type(x.get(key)) is not kind]
            missing = [f"{section}[{i}]" for i, x in wrong if key not in x]
            typed = [f"{section}[{i}].{key} = {_short(x[key])}" for i, x in wrong if key in x]
            yield Finding(f'"{key}" is missing', missing)
            yield Finding(f'"{key}" must be {_KIND_NAMES[kind]}', typed)
    sizes = [
        f"images[{i}].{key} = {_short(image[key])}"
        for i, image in enumerate(content["images"])
        for key in ("width", "height")
        if type(image.get(key)) is int and image[key] < 1
    ]
    yield Finding("image sizes must be at least 1", sizes)
    yield Finding("bbox must be four numbers [x, y, width, height]", _malformed_boxes(content["annotations"]))


def _malformed_boxes(annotations: Sequence[Item]) -> list[str]:
    boxes = [a.get("bbox") for a in annotations]
    if _is_numeric(boxes, (len(boxes), 4)):
        return []
    return [
        f"annotations[{i}].bbox = {_short(box)}"
        for i, box in enumerate(boxes)
        if isinstance(box, list) and not _is_numeric(box, (4,))
    ]


def _is_numeric(values: Sequence[Any], shape: tuple[int, ...]) -> bool:
    try:
        array = np.array(values)
    except ValueError:  # numpy refuses lists of different lengths
        return False
    return array.shape == shape and array.dtype.kind in "iuf"


def _reference_findings(content: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Ids occur once, and annotations point at images and categories that exist."""
    for section, items in content.items():
        if section in _FIELDS:
            counts = Counter(x["id"] for x in items)
            cases = [f"id {i} occurs {count} times" for i, count in counts.items() if count > 1]
            yield Finding(f'ids of "{section}" must differ', cases)
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        known = {x["id"] for x in content[section]}
        cases = [
            f"annotations[{i}] (id {a['id']}): {key} = {a[key]}"
            for i, a in enumerate(content["annotations"])
            if a[key] not in known
        ]
        yield Finding(f'"{key}" must be an id of "{section}"', cases)


def _file_findings(images: Sequence[Item], directory: Path) -> Iterator[Finding]:
    # A data set may come from anywhere: its names must not make us open other files of this machine.
    outside = [
        f"images[{i}].file_name = {image['file_name']!r}"
        for i, image in enumerate(images)
        if _leaves_its_folder(image["file_name"])
    ]
    yield Finding(f"image files must lie under {directory}", outside)
    # One listing instead of a system call per image: quicker, and much so on network file systems.
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    cases = [
        f"images[{i}].file_name = {image['file_name']!r}"
        for i, image in enumerate(images)
        if image["file_name"] not in present and not (directory / image["file_name"]).is_file()
    ]
    yield Finding(f"image files not found under {directory}", cases)


def _leaves_its_folder(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- records ---------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """All annotations of a split as columns; row i of each is one annotation."""

    image: NDArray[np.int64]
    xywh: NDArray[np.float64]
    label: NDArray[np.int64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def keep(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> _Columns:
        return _Columns(
            self.image[rows], self.xywh[rows], self.label[rows], self.area[rows], self.crowd[rows]
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
    )


def _area(annotation: Item) -> float:
    area = annotation.get("area")
    return float(area) if isinstance(area, int | float) else np.nan


def _repaired(columns: _Columns, images: Sequence[Item], repairs: Counter[str]) -> _Columns:
    """Drop boxes that mean nothing, clip those that pass the border, and count both into `repairs`."""
    columns = _drop(columns, _any(~np.isfinite(columns.xywh)), "boxes with NaN or inf dropped", repairs)
    columns = _drop(columns, _any(columns.xywh[:, 2:] < _ROUNDING), "boxes without area dropped", repairs)
    limits = np.array([(i["width"], i["height"]) for i in images], dtype=np.float64)[columns.image]
    clipped = _clipped(columns.xywh, limits)
    moved = _any(np.abs(clipped - columns.xywh) > _ROUNDING)
    outside = _any(clipped[:, 2:] < _ROUNDING)
    box_area = clipped[:, 2] * clipped[:, 3]
    # Part of a clipped object's area is gone with it; what is left is at most its box.
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


# --- what others need of it ------------------------------------------------------------------------


def to_coco_dict(checked: CheckedSplit) -> dict[str, Any]:
    """The cleaned ground truth as pycocotools reads it, with the JSON's own image and category ids.

    Annotations are numbered from 1: pycocotools takes an annotation with id 0 for "not matched".
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
    """Whether anything in an image, crowds included, has both sides over 1 px (`Data.skip_unannotated`).

    The reference asks the same of the file's boxes; here they are those after repair.
    """
    return bool((record.xywh[:, 2:] > 1).all(axis=1).any())


def fingerprint(*splits: CheckedSplit) -> str:
    """12 hex digits over all that is used of the splits, in the order given (training, validation).

    Ids, file names, sizes, boxes, labels, areas, crowd flags and classes count, after repair; where the
    data set lies, the order of images in the JSON and the pixels do not.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(json.dumps([split.category_ids, split.class_names, len(split.images)]).encode())
        for record in split.images:
            head = [record.id, record.file_name, record.width, record.height, len(record.labels)]
            digest.update(json.dumps(head).encode())
            for column, kind in zip(
                (record.xywh, record.labels, record.areas, record.crowd),
                ("<f8", "<i8", "<f8", "?"),
                strict=True,
            ):
                digest.update(column.astype(kind).tobytes())
    return digest.hexdigest()[:12]
