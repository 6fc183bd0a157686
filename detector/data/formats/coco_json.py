"""COCO's JSON in the layouts of COCO 2017, Roboflow, CVAT, Label Studio and others.

Which file is of which split is read from its name or its folder's; which folder its file names start from is
the one in which most of them are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from detector.data.formats.contents import ALL, Content, split_of, split_of_path, usable_splits
from detector.data.formats.folder import Folder, parent
from detector.data.formats.notes import Notes
from detector.errors import DataError

_TRIED = 200
"""File names of a split that are looked for in each folder."""


def is_coco(value: object) -> bool:
    """Whether the value of a JSON file is COCO's, annotated or with images and categories alone."""
    return isinstance(value, dict) and "images" in value and ("annotations" in value or "categories" in value)


def layout_of(names: Sequence[str]) -> str:
    """What people call the layout of these files."""
    last_parts = {name.rsplit("/", 1)[-1] for name in names}
    if last_parts == {"_annotations.coco.json"}:
        return "Roboflow's COCO export"
    if {"annotations/instances_train2017.json", "annotations/instances_val2017.json"} <= set(names):
        return "COCO 2017's layout"
    if all(name.startswith("annotations/instances_") for name in names):
        return "COCO JSON as CVAT exports it"
    if last_parts == {"result.json"}:
        return "Label Studio's COCO export"
    return "COCO JSON"


def read(folder: Folder, files: Mapping[str, Any], notes: Notes) -> dict[str, Content]:
    """COCO's files by split, with the folder of each.

    Args:
        folder: of the data set.
        files: values of the JSON files by their names.
        notes: for what is left out.

    Raises:
        DataError: two files are of one split.
    """
    by_split: dict[str, list[str]] = {}
    for name in files:
        by_split.setdefault(split_of(name) or split_of_path(name) or ALL, []).append(name)
    chosen = {split: _one(folder, split, names) for split, names in by_split.items()}
    if len(chosen) > 1 and ALL in chosen:
        notes.say(f"{chosen.pop(ALL)} is not used: its name says no split")
    contents = {
        split: Content(
            files[name], folder, _images_folder(folder, split, name, files[name]), folder.root / name
        )
        for split, name in chosen.items()
    }
    return usable_splits(contents, notes)


def _one(folder: Folder, split: str, names: Sequence[str]) -> str:
    """The file of a split; of several the one that is named as in COCO 2017."""
    standard = f"annotations/instances_{split}2017.json"
    if len(names) == 1 or standard in names:
        return standard if standard in names else names[0]
    what = "without a split in their names" if split == ALL else f"of the {split} split"
    raise DataError(
        f"{folder.root}: {len(names)} COCO files {what}: {', '.join(names[:5])}. Name the four paths of "
        "those that are meant."
    )


def _images_folder(folder: Folder, split: str, source: str, content: Mapping[str, Any]) -> str:
    names = _some_names(content)
    leaves = {parent(image) for image in folder.images}
    folders = {"", *(str(p) for leaf in leaves for p in (PurePosixPath(leaf), *PurePosixPath(leaf).parents))}
    folders.discard(".")

    def fitness(name: str) -> tuple[int, bool, bool, int, str]:
        hits = sum((f"{name}/{own}" if name else own) in folder.stamps for own in names)
        of_split = split_of(name.rsplit("/", 1)[-1]) == split
        return hits, of_split, name == parent(source), -name.count("/"), name

    best = max(folders, key=fitness, default="")
    hits, of_split, *_ = fitness(best)
    return best if hits or of_split else ""


def _some_names(content: Mapping[str, Any]) -> list[str]:
    images = content["images"] if isinstance(content["images"], list) else []
    step = max(1, len(images) // _TRIED)
    names = (image.get("file_name") for image in images[::step] if isinstance(image, dict))
    return [name for name in names if isinstance(name, str)]
