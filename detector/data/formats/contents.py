"""What readers return: splits as COCO's dictionaries, and how readers of other formats build them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.data.formats.folder import Folder, image_size
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import finite, number_in
from detector.errors import DataError

TRAIN, VAL, TEST, ALL = "train", "val", "test", "all"
"""Names of splits; ALL is that of a data set without splits."""

_SPLIT_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
    "testing": TEST,
}


@dataclass(frozen=True, slots=True)
class Content:
    """One split as a reader found it.

    Attributes:
        coco: COCO's dictionary: "images", "annotations" and "categories".
        folder: that its images are in.
        images: folder that its file names start from, relative to `folder`; "" for that itself.
        source: COCO file that holds exactly `coco`; None where `coco` was made from other files or changed.
    """

    coco: dict[str, Any]
    folder: Folder
    images: str
    source: Path | None = None

    @property
    def images_path(self) -> Path:
        """The folder that its file names start from."""
        return self.folder.root / self.images


@dataclass(frozen=True, slots=True)
class Recognised:
    """A data set as it was found.

    Attributes:
        layout: its name, for people.
        evidence: the file or folder that the layout was recognised by.
        splits: contents by the name of the split: TRAIN, VAL and perhaps TEST, or ALL alone.
        notes: what was changed, counted and left out.
    """

    layout: str
    evidence: str
    splits: Mapping[str, Content]
    notes: Notes


def split_of(name: str) -> str | None:
    """The split that a file or folder name speaks of: "instances_Train.json", "valid", "val2017"."""
    stem = name.rsplit("/", 1)[-1].split(".", 1)[0].lower()
    words = "".join(c if c.isalpha() else " " for c in stem).split()
    named = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    if {"test", "dev"} <= set(words):  # COCO's test-dev
        named.discard(VAL)
    return named.pop() if len(named) == 1 else None


def split_of_path(name: str) -> str | None:
    """The split that the innermost telling folder of a relative path speaks of."""
    return next((s for part in reversed(name.split("/")[:-1]) if (s := split_of(part))), None)


def usable_splits(splits: Mapping[str, Content], notes: Notes) -> dict[str, Content]:
    """TRAIN and VAL, or ALL alone, of whatever splits there are.

    A test split takes the part of a missing validation split. Beside one it is left out, unless it has no
    annotations: then it is TEST.
    """
    present = {name: content for name, content in splits.items() if content.coco["images"]}
    if TRAIN in present and VAL not in present and TEST in present:
        notes.say("there is no validation split: the test split is used for validation")
        present = {TRAIN: present[TRAIN], VAL: present[TEST]}
    if {TRAIN, VAL, TEST} <= present.keys() and present[TEST].coco.get("annotations"):
        count = len(present.pop(TEST).coco["images"])
        notes.say(f"the test split is not used: {count:,} images, as results are those of validation")
    if {TRAIN, VAL, ALL} <= present.keys():
        notes.say(f"images of no split, left out: {len(present.pop(ALL).coco['images']):,}")
    if len(present) == 1:
        return {ALL: next(iter(present.values()))}
    return present


@dataclass(slots=True)
class Builder:
    """Collects images and boxes of formats that are not COCO's.

    Attributes:
        folder: of the data set; file names are relative to it.
        notes: for what is left out.
        classes: names in order of category id from `first_id`; None where they are those met, sorted, from 1.
        first_id: category id of the first class.
    """

    folder: Folder
    notes: Notes
    classes: Sequence[str] | None = None
    first_id: int = 1
    _splits: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = field(default_factory=dict)
    _count: int = 0

    def add_image(self, split: str, file_name: str, size: tuple[int, int] | None = None) -> None:
        """An image, which the boxes added next are of.

        Args:
            split: its split's name.
            file_name: relative to the folder.
            size: (width, height) in pixels; read from the file when None.

        Raises:
            DataError: the size cannot be read.
        """
        width, height = size or image_size(self.folder.root / file_name)
        images, _ = self._splits.setdefault(split, ([], []))
        self._count += 1
        images.append({"id": self._count, "file_name": file_name, "width": width, "height": height})

    def add_box(self, split: str, label: str, corners: Sequence[float], **fields: Any) -> None:
        """A box of the image added last, as x1, y1, x2, y2 in pixels; corners may come in any order."""
        (left, right), (top, bottom) = sorted(corners[0::2]), sorted(corners[1::2])
        images, annotations = self._splits[split]
        box = [left, top, right - left, bottom - top]
        annotation = {"image_id": images[-1]["id"], "label": label, "bbox": box, "area": box[2] * box[3]}
        annotations.append({**annotation, "iscrowd": 0, **fields})

    def contents(self) -> dict[str, Content]:
        """The splits, with ids given to classes and annotations.

        Raises:
            DataError: there is no class, as nothing is annotated.
        """
        labels = (a["label"] for _, annotations in self._splits.values() for a in annotations)
        names = self.classes if self.classes is not None else sorted(set(labels))
        if not names:
            raise DataError(f"{self.folder.root}: nothing is annotated in the images that were found")
        ids = {name: i for i, name in enumerate(names, self.first_id)}
        categories = [{"id": i, "name": name} for name, i in ids.items()]
        return {
            split: Content(
                {"images": images, "annotations": _numbered(annotations, ids), "categories": categories},
                self.folder,
                images="",
            )
            for split, (images, annotations) in self._splits.items()
        }


def _numbered(annotations: Iterable[dict[str, Any]], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"id": i, "category_id": ids[a["label"]], **{k: v for k, v in a.items() if k != "label"}}
        for i, a in enumerate(annotations, 1)
    ]


def around(points: Sequence[Any], where: str) -> list[float]:
    """x1, y1, x2, y2 around points [x, y]: how a polygon becomes a box.

    Raises:
        DataError: there are no points, or one is not two numbers.
    """
    if not isinstance(points, list | tuple) or not points:
        raise DataError(f"{where}: must be a list of points [x, y]")
    if any(not isinstance(p, list | tuple) or len(p) != 2 for p in points):
        raise DataError(f"{where}: must be a list of points [x, y]")
    xs, ys = ([finite(p[axis], where) for p in points] for axis in (0, 1))
    return [min(xs), min(ys), max(xs), max(ys)]


def pixel_size(width: object, height: object) -> tuple[int, int] | None:
    """(width, height) where a file states both as whole positive numbers, else None."""
    size = number_in(width), number_in(height)
    if all(isinstance(side, int) and 0 < side < 2**31 for side in size):
        return int(size[0] or 0), int(size[1] or 0)
    return None
