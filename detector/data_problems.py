"""What may spoil a training on a data set that can be read: leaks, duplicates, rare classes, tiny objects.

Crowds are left out, as in training. Boxes are compared in pixels of the original image.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.data.coco import CheckedSplit, ImageRecord
from detector.data.formats.similar import similar_across
from detector.evaluation.coco_eval import disambiguate
from detector.geometry.transforms import resized_size

FEW_BOXES = 10
"""Boxes of a class in a split below which its numbers say little."""
TINY_SIDE = 8.0
"""Side in pixels, after resizing, below which an object covers at most one cell of the finest level."""
TINY_SHARE = 0.05
"""Share of such boxes that is worth a note."""
SAME_PLACE = 0.9
"""IoU from which two boxes are taken for one object that is annotated twice."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of thing that is wrong, or looks wrong.

    Attributes:
        code: for programs: "in-both-splits".
        split: "train" or "val"; "" for both.
        text: what it is, without the number of cases.
        cases: each of them, or one line on all.
        separator: joins cases in a text; None puts each on a line of its own.
        counted: whether the number of cases says anything.
    """

    code: str
    split: str
    text: str
    cases: tuple[str, ...]
    separator: str | None = None
    counted: bool = True

    @property
    def title(self) -> str:
        """The text with its split."""
        return f"{self.split}: {self.text}" if self.split else self.text


def problems_of_annotations(
    splits: Mapping[str, CheckedSplit], short_side: int, max_long_side: int, max_detections: int
) -> Iterator[Problem]:
    """What the annotations show; no image is opened.

    Args:
        splits: by name.
        short_side, max_long_side: what images are resized to, in pixels.
        max_detections: most detections of an image that a test counts.
    """
    names = _unclear_names(next(iter(splits.values())))
    yield from _found("unclear-names", "", "classes of one name, or without a name", names, ", ")
    for name, split in splits.items():
        for what, count in split.repairs.items():
            yield Problem("repaired", name, f"{what}: {count:,}", (), counted=False)
    for name, split in splits.items():
        yield from _of_classes(name, split)
        yield from _of_images(name, split)
        yield from _tiny(name, split, short_side, max_long_side)
        yield from _crowded(name, split, max_detections)


def problems_of_files(splits: Mapping[str, CheckedSplit]) -> Iterator[Problem]:
    """Images that are there twice: in both splits, nearly, or within one. Reads the files."""
    leaks: list[str] = []
    twice: defaultdict[str, list[str]] = defaultdict(list)
    for group in _equal_files(splits):
        first: dict[str, str] = {}
        for name, file_name in group:
            if first.setdefault(name, file_name) != file_name:
                twice[name].append(f"{first[name]} = {file_name}")
        if len(first) > 1:
            leaks.append(" = ".join(first.values()))
    text = "training images that are in val too, which makes its AP too high"
    yield from _found("in-both-splits", "", text, leaks)
    text = "images that nearly look like one of the other split (copies, frames)"
    yield from _found("nearly-in-both-splits", "", text, _alike(splits))
    for name in splits:
        text = "images that are there twice under two names"
        yield from _found("image-twice", name, text, twice[name])


def _found(
    code: str, split: str, text: str, cases: Sequence[str], separator: str | None = None
) -> Iterator[Problem]:
    if cases:
        yield Problem(code, split, text, tuple(cases), separator)


# --- annotations -------------------------------------------------------------------------------------


def class_counts(split: CheckedSplit) -> NDArray[np.int64]:
    """(K,) boxes of each class."""
    labels = np.concatenate([record.labels[~record.crowd] for record in split.images])
    return np.bincount(labels, minlength=len(split.class_names))


def _unclear_names(split: CheckedSplit) -> list[str]:
    """Category names that are hard to distinguish; all splits have the same categories."""
    names = dict(zip(split.category_ids, split.class_names, strict=True))
    return [label for category, label in disambiguate(names).items() if label != names[category]]


def _of_classes(name: str, split: CheckedSplit) -> Iterator[Problem]:
    counts = class_counts(split)
    absent = [split.class_names[c] for c in np.flatnonzero(counts == 0)]
    yield from _found("class-without-box", name, "classes without a box", absent, ", ")
    few = [f"{split.class_names[c]} {counts[c]}" for c in np.flatnonzero((counts > 0) & (counts < FEW_BOXES))]
    text = f"classes with fewer than {FEW_BOXES} boxes, whose numbers say little"
    yield from _found("class-with-few-boxes", name, text, few, ", ")


def _of_images(name: str, split: CheckedSplit) -> Iterator[Problem]:
    counts = Counter(record.file_name for record in split.images)
    twice = [file_name for file_name, count in counts.items() if count > 1]
    yield from _found("file-listed-twice", name, "image files listed more than once", twice)
    repeated = [record.file_name for record in split.images if _has_equal_boxes(record)]
    text = "images with the same box of the same class twice"
    yield from _found("box-twice", name, text, repeated)
    disagreeing = [record.file_name for record in split.images if _disagrees(record)]
    text = "images with one place annotated as two classes"
    yield from _found("two-classes-at-one-place", name, text, disagreeing)


def _has_equal_boxes(record: ImageRecord) -> bool:
    rows = np.column_stack((record.xywh, record.labels))[~record.crowd]
    return len(np.unique(rows, axis=0)) < len(rows)


def _disagrees(record: ImageRecord) -> bool:
    """Whether two boxes of different classes overlap by `SAME_PLACE`."""
    boxes, labels = record.xywh[~record.crowd], record.labels[~record.crowd]
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = np.clip(sides, 0, None).prod(axis=2)
    areas = boxes[:, 2:].prod(axis=1)
    union = areas[:, None] + areas - shared
    return bool(((shared >= SAME_PLACE * union) & (labels[:, None] != labels)).any())


def _tiny(name: str, split: CheckedSplit, short_side: int, max_long_side: int) -> Iterator[Problem]:
    """Boxes that resizing makes smaller than a cell of the finest level."""
    sides = np.concatenate([np.sqrt(r.xywh[~r.crowd, 2:].prod(axis=1)) * _scale(r, short_side, max_long_side)
                            for r in split.images])  # fmt: skip
    share = float((sides < TINY_SIDE).mean())
    if share <= TINY_SHARE:
        return
    enough = short_side * TINY_SIDE / max(float(np.quantile(sides, TINY_SHARE)), 1e-6)
    option = f"--short-side {int(np.ceil(enough / 32) * 32)}"
    line = (
        f"{share:.0%} of the boxes have a side (root of the area) below {TINY_SIDE:g} pixels when the short "
        f"side is {short_side}; with {option} it would be {TINY_SHARE:.0%}"
    )
    yield Problem("tiny-boxes", name, "objects that resizing makes too small to find", (line,), counted=False)


def _scale(record: ImageRecord, short_side: int, max_long_side: int) -> float:
    height, _ = resized_size(record.width, record.height, short_side, max_long_side)
    return height / record.height


def _crowded(name: str, split: CheckedSplit, max_detections: int) -> Iterator[Problem]:
    """Objects beyond the number of detections that a test counts."""
    counts = np.array([int((~record.crowd).sum()) for record in split.images])
    beyond = int(np.clip(counts - max_detections, 0, None).sum())
    if beyond:
        line = (
            f"{int((counts > max_detections).sum())} images have more than {max_detections}, up to "
            f"{counts.max():,}; {beyond / counts.sum():.1%} of all objects cannot be found"
        )
        text = f"more objects than the {max_detections} detections of an image that a test counts"
        yield Problem("more-objects-than-detections", name, text, (line,), counted=False)


# --- files -------------------------------------------------------------------------------------------


def _alike(splits: Mapping[str, CheckedSplit]) -> list[str]:
    """Images of different splits that nearly look the same and are not the same file."""
    paths = [[s.source.images / record.file_name for record in s.images] for s in splits.values()]
    cases = []
    for group in similar_across(paths):
        first = {split: paths[split][image] for split, image in reversed(group)}
        sizes = {path.stat().st_size for path in first.values()}
        if len(sizes) > 1:
            cases.append(" = ".join(path.name for _, path in sorted(first.items())))
    return cases


def _equal_files(splits: Mapping[str, CheckedSplit]) -> Iterator[list[tuple[str, str]]]:
    """Groups of (split, file name) of equal content; only files of equal length are read."""
    by_length: defaultdict[int, dict[tuple[str, str], Path]] = defaultdict(dict)
    for name, split in splits.items():
        for record in split.images:
            path = split.source.images / record.file_name
            by_length[path.stat().st_size][name, record.file_name] = path
    for files in by_length.values():
        by_content: defaultdict[bytes, list[tuple[str, str]]] = defaultdict(list)
        for named, path in files.items() if len(files) > 1 else ():
            by_content[hashlib.sha256(path.read_bytes()).digest()].append(named)
        yield from (group for group in by_content.values() if len(group) > 1)
