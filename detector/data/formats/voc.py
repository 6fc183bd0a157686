"""Pascal VOC: one XML file an image.

Corners are VOC's: pixels counted from 1, both corners inside the box (VOC2012 devkit, readme.pdf section 9:
"the top-left pixel in the image has coordinates (1,1)"). Pixel i covers i-1 to i, so a box from xmin to xmax
covers xmin-1 to xmax; detectron2 and supervision convert likewise. Many tools write this format with corners
that count from 0, which no file says: a corner at 0 shows it, and no corner of that data set is moved then.

`difficult` is kept in a field of its own. VOC's evaluation ignores such objects, and most detectors leave
them out of training; both is what `iscrowd` does, so it is set with it. SSD and RefineDet train on them
(`config.SquareData`).

A folder that holds VOC2007/ and VOC2012/, as the devkits unpack, is "07+12": the trainval lists of both years
train, and the test list of 2007 is tested on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from detector.data.formats.contents import (
    ALL,
    TEST,
    TRAIN,
    VAL,
    Builder,
    Content,
    pixel_size,
    split_of_path,
    usable_splits,
)
from detector.data.formats.folder import Folder, parent
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import finite, read_text, read_xml
from detector.errors import DataError

_LISTS = "ImageSets/Main"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_BOTH_YEARS = (("VOC2007", "trainval", TRAIN), ("VOC2012", "trainval", TRAIN), ("VOC2007", "test", VAL))
"""Year, list and split of "07+12"."""
_TEST_2007 = "unpack VOCtest_06-Nov-2007.tar over it"


class _Object(NamedTuple):
    label: str
    corners: list[float]
    difficult: bool


class _Image(NamedTuple):
    file_name: str
    size: tuple[int, int] | None
    objects: list[_Object]


def read(folder: Folder, notes: Notes) -> dict[str, Content]:
    """All XML files of the folder whose root is <annotation>, by ImageSets/Main or else by their folders.

    Raises:
        DataError: a file is not XML, or lacks what a box needs; "07+12" lacks a list, or annotations of its
            test.
    """
    images: dict[str, _Image] = {}
    for name in folder.named(".xml"):
        root = read_xml(folder.root / name)
        if root.tag == "annotation" and (image := _image(folder, name, root, notes)):
            images[name] = image
    shift = 0.0 if _counts_from_zero(images.values()) else 1.0
    notes.say(
        "corners are taken to count pixels from 0, as some are 0"
        if shift == 0
        else "corners are taken as VOC's, counting pixels from 1: xmin and ymin are lowered by 1"
    )
    builder = Builder(folder, notes)
    for split, names in _splits(folder, images, notes).items():
        for name in names:
            _add(builder, split, images[name], shift)
    return usable_splits(builder.contents(), notes)


def _image(folder: Folder, name: str, root: Element, notes: Notes) -> _Image | None:
    stem = Path(name).stem
    stated = (root.findtext("filename") or "").strip()
    found = folder.find_image(stated, _base(name)) or _by_stem(folder, name, stem)
    if found is None:
        notes.count("XML files without an image, left out", name)
        return None
    size = root.find("size")
    stated_size = None if size is None else pixel_size(size.findtext("width"), size.findtext("height"))
    objects = [
        _object(item, f"{folder.root / name}: object {i}") for i, item in enumerate(root.findall("object"), 1)
    ]
    return _Image(found, stated_size, objects)


def _base(name: str) -> str:
    """The folder that holds JPEGImages/ and Annotations/; the XML's own where they are not apart."""
    folder = parent(name)
    return parent(folder) if folder.rsplit("/", 1)[-1].lower() == "annotations" else folder


def _by_stem(folder: Folder, name: str, stem: str) -> str | None:
    candidates = (f"{stem}{ending}" for ending in (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
    return next((found for c in candidates if (found := folder.find_image(c, _base(name)))), None)


def _object(item: Element, where: str) -> _Object:
    label = (item.findtext("name") or "").strip()
    box = item.find("bndbox")
    if not label or box is None:
        raise DataError(f"{where}: needs a <name> and a <bndbox>")
    corners = [finite(box.findtext(key), f"{where}: <{key}>") for key in _CORNERS]
    return _Object(label, corners, (item.findtext("difficult") or "0").strip() in ("1", "true", "True"))


def _counts_from_zero(images: Iterable[_Image]) -> bool:
    return any(min(o.corners) <= 0 for image in images for o in image.objects)


def _splits(folder: Folder, images: Mapping[str, _Image], notes: Notes) -> dict[str, list[str]]:
    """XML files by split."""
    lists = [n for n in folder.named(".txt") if parent(n).endswith(_LISTS)]
    by_split: dict[str, list[str]] = {}
    for split, listing in _of_both_years(folder, lists, notes) or _chosen(lists):
        base = parent(parent(parent(listing)))
        for stem in _listed(folder, listing):
            name = "/".join(part for part in (base, "Annotations", f"{stem}.xml") if part)
            if name in images:
                by_split.setdefault(split, []).append(name)
            else:
                notes.count(f"names of {listing} without an XML file and an image, left out", stem)
    if _is_both_years(folder) and not by_split.get(VAL):
        raise DataError(f"{folder.root}: the images of VOC 2007 test have no annotations; {_TEST_2007}")
    if by_split:
        return by_split
    for name in images:
        by_split.setdefault(split_of_path(name) or split_of_path(images[name].file_name) or ALL, []).append(
            name
        )
    return by_split


def _is_both_years(folder: Folder) -> bool:
    return all(folder.has_folder(year) for year in ("VOC2007", "VOC2012"))


def _of_both_years(folder: Folder, lists: list[str], notes: Notes) -> list[tuple[str, str]]:
    """(split, list file) of "07+12"; nothing where a year is not there.

    Raises:
        DataError: both years are there, and not all lists.
    """
    years = [year for year in ("VOC2007", "VOC2012") if folder.has_folder(year)]
    if len(years) == 1:
        other = "VOC2012" if years == ["VOC2007"] else "VOC2007"
        notes.say(
            f"{years[0]} alone; with {other} beside it, both train and VOC 2007 test is tested on (07+12)"
        )
    if len(years) < 2:
        return []
    wanted = [(split, f"{year}/{_LISTS}/{name}.txt") for year, name, split in _BOTH_YEARS]
    if missing := [listing for _, listing in wanted if listing not in lists]:
        how = f" ({_TEST_2007})" if any(listing.endswith("/test.txt") for listing in missing) else ""
        raise DataError(
            f"{folder.root}: VOC 2007 and 2012 train together by trainval and are tested on VOC 2007 test, "
            f"but there is no {' and no '.join(missing)}{how}. One year alone: name its folder."
        )
    notes.say("VOC 07+12: the trainval images of both years train, VOC 2007 test is tested on")
    return wanted


def _chosen(lists: list[str]) -> Iterator[tuple[str, str]]:
    """(split, list file) for every base: train and val where both are there, else trainval and test."""
    for folder in sorted({parent(name) for name in lists}):
        own = {Path(name).stem.lower(): name for name in lists if parent(name) == folder}
        names = {TRAIN: TRAIN, VAL: VAL} if {TRAIN, VAL} <= own.keys() else {}
        if not names:
            names = {"trainval" if "trainval" in own else TRAIN: TRAIN, VAL: VAL}
        for stem, split in {**names, TEST: TEST}.items():
            if stem in own:
                yield split, own[stem]


def _listed(folder: Folder, listing: str) -> Iterator[str]:
    """First words of a list's lines, each once; lists of one class have a second word."""
    lines = read_text(folder.root / listing).splitlines()
    yield from dict.fromkeys(words[0] for line in lines if (words := line.split()))


def _add(builder: Builder, split: str, image: _Image, shift: float) -> None:
    builder.add_image(split, image.file_name, image.size)
    for label, (x1, y1, x2, y2), difficult in image.objects:
        left, right = sorted((x1, x2))
        top, bottom = sorted((y1, y2))
        fields = {"difficult": 1, "iscrowd": 1} if difficult else {}
        if difficult:
            builder.notes.count(
                "difficult objects, ignored in tests; SSD and RefineDet alone train on them", image.file_name
            )
        builder.add_box(split, label, (left - shift, top - shift, right, bottom), **fields)
