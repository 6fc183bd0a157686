"""A report on the content and the errors of a data set, as text and pictures.

Crowds are counted and otherwise ignored, as in training. Sizes are in original pixels.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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
from detector.data.formats.similar import similar_across
from detector.errors import DataError
from detector.evaluation.coco_eval import disambiguate
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


def inspect(paths: DataPaths, folder: Path, reading: Sequence[str] = ()) -> str:
    """Reads a data set, draws `train.png` and `val.png` into `folder`, and reports its content.

    Args:
        paths: of the data set.
        folder: of the contact sheets; created if absent.
        reading: lines on how the data set was read, which begin the report.

    Returns:
        The report with the paths of the pictures.

    Raises:
        DataError: the data set cannot be used; the message lists the reasons, and nothing is drawn.
        OSError: the folder cannot be written to.
    """
    train, val = read_data(paths)
    test = read_test(paths.test, train) if paths.test is not None else None
    lines = [report(train, val, test, reading)]
    for name, split in (("train", train), ("val", val)):
        if contact_sheet_of(split, folder / f"{name}.png", name):
            lines.append(f"Images with their boxes: {folder / f'{name}.png'}")
    return "\n".join(lines) + "\n"


def report(
    train: CheckedSplit, val: CheckedSplit, test: CheckedSplit | None = None, reading: Sequence[str] = ()
) -> str:
    """How it was read, problems, then tables of images, boxes and classes, at most `WIDTH` characters wide.

    Every image is opened where there are at most `MAX_OPENED`; with more, the report says that none was.

    Args:
        train, val: the splits of the tables.
        test: its images are opened and counted.
        reading: lines on how the data set was read.

    Raises:
        DataError: opened images cannot be used; the message has the reason for each.
    """
    splits = {"train": train, "val": val}
    opened = _open_all(splits if test is None else {**splits, "test": test})
    problems = [*_problems(splits), *(_duplicates(splits) if opened else [_not_opened()])]
    blocks = [["Problems", "", *(problems or ["none found"])], _image_table(splits), _class_table(train, val)]
    if reading:
        blocks.insert(0, ["Data set", "", *map(_wrapped, reading)])
    if test is not None:
        checked = "every one decodes" if opened else "every file is there"
        blocks.append([f"The test split has {_count(len(test.images))} images; {checked}."])
    return "\n".join("\n".join([*block, ""]) for block in blocks)


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


def _open_all(splits: dict[str, CheckedSplit]) -> bool:
    """Opens every image unless there are too many; returns whether they were opened."""
    if sum(len(split.images) for split in splits.values()) > MAX_OPENED:
        return False
    findings = [Finding(f"{name}: images", unusable_images(split)) for name, split in splits.items()]
    refuse("the data set", findings, limit=None)
    return True


def _problems(splits: dict[str, CheckedSplit]) -> Iterator[str]:
    yield from _listed("classes of one name, or without a name", _unclear_names(splits["train"]), ", ")
    for name, split in splits.items():
        for what, count in split.repairs.items():
            yield f"{name}: {what}: {_count(count)}"
    for name, split in splits.items():
        absent = [split.class_names[c] for c in np.flatnonzero(_class_counts(split) == 0)]
        yield from _listed(f"{name}: classes without a box", absent, ", ")
        counts = Counter(record.file_name for record in split.images)
        twice = [file_name for file_name, count in counts.items() if count > 1]
        yield from _listed(f"{name}: image files listed more than once", twice)
        repeated = [record.file_name for record in split.images if _has_equal_boxes(record)]
        yield from _listed(f"{name}: images with the same box of the same class twice", repeated)


def _unclear_names(split: CheckedSplit) -> list[str]:
    """Category names that are hard to distinguish; all splits have the same categories."""
    names = dict(zip(split.category_ids, split.class_names, strict=True))
    return [label for category, label in disambiguate(names).items() if label != names[category]]


def _not_opened() -> str:
    return f"images were not opened: there are more than {_count(MAX_OPENED)}"


def _listed(what: str, cases: Sequence[str], separator: str | None = None) -> list[str]:
    """A line with the number of cases, then the first ones: one per line, or joined by the separator."""
    if not cases:
        return []
    shown = list(cases[:MAX_LISTED])
    if len(cases) > MAX_LISTED:
        shown.append(f"and {_count(len(cases) - MAX_LISTED)} more")
    lines = [separator.join(shown)] if separator else shown
    return [f"{what} ({_count(len(cases))}):", *(_wrapped(line) for line in lines)]


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _has_equal_boxes(record: ImageRecord) -> bool:
    rows = np.column_stack((record.xywh, record.labels))[~record.crowd]
    return len(np.unique(rows, axis=0)) < len(rows)


def _duplicates(splits: dict[str, CheckedSplit]) -> Iterator[str]:
    """Images with equal bytes: in both splits, then within one."""
    leaks: list[str] = []
    twice: defaultdict[str, list[str]] = defaultdict(list)
    for group in _equal_files(splits):
        first: dict[str, str] = {}
        for name, file_name in group:
            if first.setdefault(name, file_name) != file_name:
                twice[name].append(f"{first[name]} = {file_name}")
        if len(first) > 1:
            leaks.append(" = ".join(first.values()))
    yield from _listed("training images that are in val too, which makes its AP too high", leaks)
    yield from _listed("images that nearly look like one of the other split (copies, frames)", _alike(splits))
    for name in splits:
        yield from _listed(f"{name}: images that are there twice under two names", twice[name])


def _alike(splits: dict[str, CheckedSplit]) -> list[str]:
    """Images of different splits that nearly look the same and are not the same file."""
    paths = [[s.source.images / record.file_name for record in s.images] for s in splits.values()]
    cases = []
    for group in similar_across(paths):
        first = {split: paths[split][image] for split, image in reversed(group)}
        sizes = {path.stat().st_size for path in first.values()}
        if len(sizes) > 1:
            cases.append(" = ".join(path.name for _, path in sorted(first.items())))
    return cases


def _equal_files(splits: dict[str, CheckedSplit]) -> Iterator[list[tuple[str, str]]]:
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


# --- tables ----------------------------------------------------------------------------------------


def _image_table(splits: dict[str, CheckedSplit]) -> list[str]:
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
    counts = np.stack([_class_counts(train), _class_counts(val)], axis=1)
    order = np.argsort(-counts[:, 0], kind="stable").tolist()
    rows = [[textwrap.shorten(train.class_names[c], 60), *(_count(n) for n in counts[c])] for c in order]
    left_out = len(rows) - TOP - RAREST
    if left_out > 0:
        rows = [*rows[:TOP], [f"({_count(left_out)} between)", "", ""], *rows[-RAREST:]]
    return _aligned([[f"Boxes of {_count(len(order))} classes", "train", "val"], *rows])


def _class_counts(split: CheckedSplit) -> NDArray[np.int64]:
    labels = np.concatenate([record.labels[~record.crowd] for record in split.images])
    return np.bincount(labels, minlength=len(split.class_names))


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
