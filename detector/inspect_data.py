"""A report on the content and the errors of a data set, as text and pictures.

Crowds are counted and otherwise ignored, as in training. Sizes are in original pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.data.checks import MAX_LISTED, Finding, refuse
from detector.data.coco import (
    CheckedSplit,
    DataPaths,
    ImageRecord,
    read_data,
    read_test,
)
from detector.data.dataset import unusable_images
from detector.data.decode import load_resized
from detector.data_problems import Problem, class_counts, problems_of_annotations, problems_of_files
from detector.errors import DataError
from detector.pictures import contact_sheet, draw_by_class

MAX_OPENED = 20_000
"""Largest number of images of all splits whose files are opened: a minute or two on two cores."""

WIDTH = 100
"""Characters per line, unless a name is longer."""

SMALL, MEDIUM = 32**2, 96**2
"""COCO's area limits between small, medium and large, in square pixels."""

TOP, RAREST = 20, 10
_PICTURED, _COLUMNS, _PICTURE_SIDE = 12, 4, 560
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a training and a test see of the images, as far as it makes problems.

    Attributes:
        short_side, max_long_side: what images are resized to, in pixels.
        max_detections: most detections of an image that a test counts.
    """

    short_side: int = 800
    max_long_side: int = 1333
    max_detections: int = 100


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a data set.

    Attributes:
        reading: lines on how it was read.
        problems: what is wrong with it, or looks wrong.
        opened: whether every image was opened.
        pictures: contact sheets that were drawn.
    """

    splits: Mapping[str, CheckedSplit]
    test: CheckedSplit | None
    reading: Sequence[str]
    problems: Sequence[Problem]
    opened: bool
    pictures: Sequence[Path] = ()

    @property
    def text(self) -> str:
        """Problems, then tables of images, boxes and classes, at most `WIDTH` characters wide."""
        found = [line for problem in self.problems for line in _lines(problem)]
        train, val = self.splits.values()
        blocks = [["Problems", "", *(found or ["none found"])], _image_table(self.splits)]
        blocks.append(_class_table(train, val))
        if self.reading:
            blocks.insert(0, ["Data set", "", *map(_wrapped, self.reading)])
        if self.test is not None:
            checked = "every one decodes" if self.opened else "every file is there"
            blocks.append([f"The test split has {_count(len(self.test.images))} images; {checked}."])
        blocks += [[f"Images with their boxes: {path}"] for path in self.pictures]
        return "\n".join("\n".join([*block, ""]) for block in blocks)

    def data(self) -> dict[str, Any]:
        """As JSON values, for programs; docs/own-data.md lists the fields."""
        train, val = (class_counts(split) for split in self.splits.values())
        names = next(iter(self.splits.values())).class_names
        return {
            "reading": list(self.reading),
            "problems": [
                {"code": p.code, "split": p.split, "text": p.text, "cases": list(p.cases)}
                for p in self.problems
            ],
            "images_opened": self.opened,
            "images": {name: len(split.images) for name, split in self.splits.items()},
            "boxes": {
                name: {"train": int(a), "val": int(b)} for name, a, b in zip(names, train, val, strict=True)
            },
            "pictures": [str(path) for path in self.pictures],
        }


def inspect(paths: DataPaths, folder: Path, reading: Sequence[str] = (), seen: Seen | None = None) -> Report:
    """Reads a data set, draws `train.png` and `val.png` into `folder`, and reports its content.

    Args:
        paths: of the data set.
        folder: of the contact sheets; created if absent.
        reading: lines on how the data set was read, which begin the report.
        seen: what a training sees of it; COCO's usual sizes when None.

    Raises:
        DataError: the data set cannot be used; the message lists the reasons, and nothing is drawn.
        OSError: the folder cannot be written to.
    """
    train, val = read_data(paths)
    test = read_test(paths.test, train) if paths.test is not None else None
    found = report(train, val, test, reading, seen)
    sheets = {folder / f"{name}.png": (split, name) for name, split in (("train", train), ("val", val))}
    drawn = [path for path, (split, name) in sheets.items() if contact_sheet_of(split, path, name)]
    return replace(found, pictures=drawn)


def report(
    train: CheckedSplit,
    val: CheckedSplit,
    test: CheckedSplit | None = None,
    reading: Sequence[str] = (),
    seen: Seen | None = None,
) -> Report:
    """What the splits hold and what is wrong with them; no picture is drawn.

    Every image is opened where there are at most `MAX_OPENED`; with more, the report says that none was.

    Args:
        train, val: the splits of the tables.
        test: its images are opened and counted.
        reading: lines on how the data set was read.
        seen: what a training sees of it; COCO's usual sizes when None.

    Raises:
        DataError: opened images cannot be used; the message has the reason for each.
    """
    splits = {"train": train, "val": val}
    opened = _open_all(splits if test is None else {**splits, "test": test})
    seen = seen or Seen()
    sizes = (seen.short_side, seen.max_long_side, seen.max_detections)
    problems = list(problems_of_annotations(splits, *sizes))
    if opened:
        problems += problems_of_files(splits)
    else:
        problems.append(Problem("images-not-opened", "", _not_opened(), ()))
    return Report(splits, test, reading, problems, opened)


def contact_sheet_of(split: CheckedSplit, path: Path, name: str) -> bool:
    """Twelve images, evenly spread over the split, with their boxes and class names, as one PNG.

    Args:
        split: its images; those that cannot be decoded are skipped.
        path: of the PNG.
        name: of the split, for the title.

    Returns:
        Whether there was an image to draw.
    """
    count = len(split.images)
    chosen = sorted({i * count // _PICTURED for i in range(_PICTURED)})
    pictures = [p for i in chosen if (p := _picture(split, split.images[i])) is not None]
    if pictures:
        title = f"{name}: {len(pictures)} of {_count(count)} images"
        contact_sheet(pictures, _COLUMNS, path, title, note="A colour is a class; crowds are dashed.")
    return bool(pictures)


def _picture(split: CheckedSplit, record: ImageRecord) -> Image.Image | None:
    try:
        pixels = load_resized(split.source.images, record, (record.height, record.width))
    except DataError:
        return None
    names = [split.class_names[label] for label in record.labels]
    scale = _PICTURE_SIDE / max(record.height, record.width)
    return draw_by_class(pixels, record.boxes, record.labels, names, scale, record.crowd)


# --- problems --------------------------------------------------------------------------------------


def _open_all(splits: Mapping[str, CheckedSplit]) -> bool:
    """Opens every image unless there are too many; returns whether they were opened."""
    if sum(len(split.images) for split in splits.values()) > MAX_OPENED:
        return False
    findings = [Finding(f"{name}: images", unusable_images(split)) for name, split in splits.items()]
    refuse("the data set", findings, limit=None)
    return True


def _not_opened() -> str:
    return f"images were not opened: there are more than {_count(MAX_OPENED)}"


def _lines(problem: Problem) -> list[str]:
    """A line with the number of cases, then the first ones: one per line, or joined by the separator."""
    if not problem.cases:
        return [problem.title]
    shown = list(problem.cases[:MAX_LISTED])
    if len(problem.cases) > MAX_LISTED:
        shown.append(f"and {_count(len(problem.cases) - MAX_LISTED)} more")
    lines = [problem.separator.join(shown)] if problem.separator else shown
    number = f" ({_count(len(problem.cases))})" if problem.counted else ""
    return [f"{problem.title}{number}:", *map(_wrapped, lines)]


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


# --- tables ----------------------------------------------------------------------------------------


def _image_table(splits: Mapping[str, CheckedSplit]) -> list[str]:
    columns = [[*_image_facts(split).items(), *_box_facts(split).items()] for split in splits.values()]
    rows = [
        [first[0], *(cell for _, cell in (first, *others))] for first, *others in zip(*columns, strict=True)
    ]
    return _aligned([["Images and boxes", *splits], *rows])


def _image_facts(split: CheckedSplit) -> dict[str, str]:
    records = split.images
    widths, heights = (np.array([getattr(r, side) for r in records]) for side in ("width", "height"))
    boxes = np.array([int((~r.crowd).sum()) for r in records])
    return {
        "images": _count(len(records)),
        "  without a box": _share(boxes == 0),
        "  portrait": _share(heights > widths),
        "width: least, median, most": _spread(widths),
        "height: least, median, most": _spread(heights),
        "boxes of an image: least, median, most": _spread(boxes),
        "crowds": _count(sum(int(r.crowd.sum()) for r in records)),
    }


def _box_facts(split: CheckedSplit) -> dict[str, str]:
    kept = [~record.crowd for record in split.images]
    areas = np.concatenate([r.areas[keep] for r, keep in zip(split.images, kept, strict=True)])
    xywh = np.concatenate([r.xywh[keep] for r, keep in zip(split.images, kept, strict=True)])
    percents = ", ".join(f"{q:.0%}" for q in _QUANTILES)
    return {
        "boxes": _count(len(areas)),
        "  small, area under 32 x 32": _share(areas < SMALL),
        "  medium": _share((areas >= SMALL) & (areas < MEDIUM)),
        "  large, from 96 x 96": _share(areas >= MEDIUM),
        f"root of area at {percents}": _quantiles(np.sqrt(areas), 0),
        f"height / width at {percents}": _quantiles(xywh[:, 3] / xywh[:, 2], 2),
    }


def _class_table(train: CheckedSplit, val: CheckedSplit) -> list[str]:
    """Boxes of every class, most frequent in training first; of many classes the ends of the list."""
    counts = np.stack([class_counts(train), class_counts(val)], axis=1)
    order = np.argsort(-counts[:, 0], kind="stable").tolist()
    rows = [[textwrap.shorten(train.class_names[c], 60), *(_count(n) for n in counts[c])] for c in order]
    left_out = len(rows) - TOP - RAREST
    if left_out > 0:
        rows = [*rows[:TOP], [f"({_count(left_out)} between)", "", ""], *rows[-RAREST:]]
    return _aligned([[f"Boxes of {_count(len(order))} classes", "train", "val"], *rows])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: a heading underlined, the first column to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _count(number: int) -> str:
    return f"{number:,}"


def _share(flags: Numbers) -> str:
    return f"{_count(int(flags.sum()))} ({flags.mean():.0%})"


def _spread(values: Numbers) -> str:
    return f"{values.min()}, {np.median(values):g}, {values.max()}"


def _quantiles(values: Numbers, digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in np.quantile(values, _QUANTILES))
