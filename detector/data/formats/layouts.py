"""Which layout a folder has, and what the nearest one lacks where none fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.data.formats import coco_json, cvat, labelme, via, voc, yolo
from detector.data.formats.contents import Content, Recognised
from detector.data.formats.folder import IMAGE_SUFFIXES, Folder, list_folder, suffix
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import read_json, read_xml
from detector.errors import DataError

_COCO_NAMES = re.compile(r"(^|/)(instances_.*|image_info_test-dev\d*|_annotations\.coco)\.json$")
"""Names that COCO's files of boxes have; where one has such a name, other JSON files are not opened."""

_MAX_JSON_FILES = 50
"""JSON files opened to find COCO's or VIA's, those nearest to the top first."""

_ARCHIVES = frozenset({".7z", ".gz", ".rar", ".tar", ".tgz", ".zip"})

LAYOUTS = (
    "COCO JSON (COCO 2017, Roboflow, CVAT, Label Studio, or one file and a folder of images), VIA, "
    "Pascal VOC, CVAT XML, LabelMe and YOLO"
)


@dataclass(frozen=True, slots=True)
class _Match:
    layout: str
    evidence: str
    read: Callable[[Folder, Notes], dict[str, Content]]


def open_folder(path: Path, without: Path | None = None) -> Folder:
    """List what `path` names: a data set's folder, or the file in it that its annotations are read from.

    Args:
        path: the folder; or a JSON, YAML or XML file, which stands for the folder that it is in.
        without: a folder that is no part of the data set.

    Raises:
        DataError: there is nothing, or an archive.
    """
    if suffix(path.name) in _ARCHIVES and path.is_file():
        raise DataError(f"{path}: is an archive; unpack it and name the folder")
    if not path.is_file():
        return list_folder(path, without)
    kinds = IMAGE_SUFFIXES | ({".txt"} if suffix(path.name) in (".yaml", ".yml") else set())
    folder = list_folder(path.parent, without)
    stamps = {n: stamp for n, stamp in folder.stamps.items() if suffix(n) in kinds or n == path.name}
    return Folder(folder.root, stamps)


def recognise(folder: Folder) -> Recognised:
    """Read a folder with the reader of the first layout that fits.

    Raises:
        DataError: no layout fits, naming the nearest and what it lacks; or as the reader.
    """
    match = next(_matches(folder), None)
    if match is None:
        raise DataError(_nothing_fits(folder))
    if not folder.images:
        raise DataError(
            f"{folder.root}: is {match.layout} by {match.evidence}, but there is no image file in the folder"
        )
    notes = Notes()
    return Recognised(match.layout, match.evidence, match.read(folder, notes), notes)


def _matches(folder: Folder) -> Iterator[_Match]:
    coco, via_files = _json_files(folder)
    if coco:
        yield _Match(
            coco_json.layout_of(list(coco)), next(iter(coco)), lambda f, n: coco_json.read(f, coco, n)
        )
    if via_files:
        yield _Match("VIA JSON", next(iter(via_files)), lambda f, n: via.read(f, via_files, n))
    for name in folder.named(".xml"):
        tag = read_xml(folder.root / name).tag
        if tag == "annotation":
            yield _Match("Pascal VOC", name, voc.read)
        elif tag == "annotations":
            yield _Match("CVAT XML", name, cvat.read)
    for name in labelme.label_files(folder):
        if labelme.is_labelme(read_json(folder.root / name)):
            yield _Match("LabelMe", name, labelme.read)
    names = yolo.settings_file(folder) or yolo.class_list(folder)
    if names and yolo.has_labels(folder):
        yield _Match("YOLO", names, yolo.read)


def _json_files(folder: Folder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of COCO's and of VIA's files by name; files named as images are LabelMe's and not opened."""
    of_images = set(labelme.label_files(folder))
    names = [name for name in folder.named(".json") if name not in of_images]
    names = [name for name in names if _COCO_NAMES.search(name)] or names
    coco, via_files = {}, {}
    for name in sorted(names, key=lambda name: (name.count("/"), name))[:_MAX_JSON_FILES]:
        value = read_json(folder.root / name)
        if coco_json.is_coco(value):
            coco[name] = value
        elif via.images_of(value) is not None:
            via_files[name] = value
    return coco, via_files


def _nothing_fits(folder: Folder) -> str:
    there, lacking = _nearest(folder)
    return (
        f"{folder.root}: is not a data set in a layout that is read.\n"
        f"  Found: {there}.\n"
        f"  Lacking: {lacking}.\n"
        f"  Read are {LAYOUTS}.\n"
        "  Files elsewhere can be named one by one, with the four options for annotations and images."
    )


def _nearest(folder: Folder) -> tuple[str, str]:
    """What is there of the nearest layout, and what it lacks."""
    images = f"{len(folder.images):,} images"
    texts = [name for name in folder.named(".txt") if "labels" in name.split("/")[:-1]]
    settings = yolo.settings_file(folder) or yolo.class_list(folder)
    if texts or (folder.images and yolo.has_labels(folder)):
        first = texts[0] if texts else folder.named(".txt")[0]
        return (
            f"{images} and label files as of YOLO ({first})",
            "the class names: a data.yaml with `names:`, or a classes.txt",
        )
    if settings:
        return f"{images} and {settings}, as of YOLO", "label files of the images (labels/*.txt)"
    if names := folder.named(".json"):
        return (
            f"{images} and {len(names):,} JSON files ({names[0]})",
            'a JSON file with "images", "annotations" and "categories", as COCO\'s',
        )
    if names := folder.named(".xml"):
        return (
            f"{images} and {len(names):,} XML files ({names[0]})",
            "<annotation> (VOC) or <annotations> (CVAT)",
        )
    return images, "annotations: JSON, XML or YOLO's text files"
