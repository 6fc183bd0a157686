"""COCO's dictionaries as people have them, put in order: each change is counted, each doubt is an error.

Numbers may come as text; ids may be text or beyond 64 bits; annotation ids may repeat; file names may be
written on another system. What the rest of the project checks (`detector.data.coco`) is left to it: unknown
ids, boxes beyond the image, splits without images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.data.checks import Finding, refuse
from detector.data.formats.boxes import BoxForm, convert_boxes, suspected_form
from detector.data.formats.contents import Content
from detector.data.formats.file_names import find_files
from detector.data.formats.folder import image_size
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import number_in, short
from detector.errors import DataError

_SECTIONS = ("images", "annotations", "categories")
_NUMBERS = {"images": ("width", "height"), "annotations": ("area", "iscrowd"), "categories": ()}
_MAX_ID = 2**63 - 1
_MAX_NUMBER = 2**31
"""Pixels or square pixels that no image has."""

Item = dict[str, Any]


def normalise(
    splits: Mapping[str, Content], notes: Notes, boxes: BoxForm | None = None
) -> dict[str, Content]:
    """All splits of a data set, changed in place where needed; those changed have no `source` any more.

    Args:
        splits: as a reader found them.
        notes: count the changes, by split.
        boxes: what boxes are; None finds it out and refuses what is not COCO's.

    Raises:
        DataError: listing what has no clear meaning: entries of a wrong type, files that are not found, boxes
            that are not COCO's.
    """
    own = {name: Notes() for name in splits}
    for name, content in splits.items():
        _check_sections(_subject(content), content.coco)
        _put_in_order(_subject(content), content, own[name])
    _leave_out_supercategory([content.coco for content in splits.values()], list(own.values()))
    _settle_boxes(splits, own, boxes)
    for name, split_notes in own.items():
        for line in split_notes.lines():
            notes.say(f"{name}: {line}")
    return {
        name: replace(content, source=None) if own[name].lines() else content
        for name, content in splits.items()
    }


def _subject(content: Content) -> Path:
    """What an error is about: the split's file, or the folder of its files."""
    return content.source or content.images_path


def _check_sections(subject: object, coco: Item) -> None:
    if not isinstance(coco, dict):
        raise DataError(f"{subject}: must be a JSON object, got {short(coco)}")
    coco.setdefault("annotations", [])  # of a file of images alone
    for section in _SECTIONS:
        items = coco.get(section)
        if not isinstance(items, list):
            raise DataError(f'{subject}: "{section}" must be a list, got {short(items)}')
        wrong = [f"{section}[{i}] = {short(x)}" for i, x in enumerate(items) if not isinstance(x, dict)]
        refuse(subject, [Finding(f'entries of "{section}" must be objects', wrong)])


def _put_in_order(subject: object, content: Content, notes: Notes) -> None:
    coco = content.coco
    for section, keys in _NUMBERS.items():
        for key in keys:
            refuse(subject, [_to_numbers(section, key, coco[section], notes)])
    refuse(subject, [_boxes_to_numbers(coco["annotations"], notes)])
    unnamed = [
        f"images[{i}].file_name = {short(x.get('file_name'))}"
        for i, x in enumerate(coco["images"])
        if not isinstance(x.get("file_name"), str)
    ]
    refuse(subject, [Finding('"file_name" must be text', unnamed)])
    missing = find_files(coco["images"], content.folder, content.images, notes)
    refuse(subject, [Finding(f"image files not found under {content.images_path}", missing)])
    _add_sizes(coco["images"], content.images_path, notes)
    for section, reference in (("images", "image_id"), ("categories", "category_id")):
        _settle_ids(subject, section, reference, coco, notes)
    _number_annotations(coco["annotations"], notes)


# --- numbers ---------------------------------------------------------------------------------------


def _to_numbers(section: str, key: str, items: Sequence[Item], notes: Notes) -> Finding:
    """Write numbers as numbers, in place. An absent number is left to the readers of the key."""
    wrong = []
    for i, item in enumerate(items):
        value = item.get(key)
        if value is None or (type(value) is float and key == "area"):  # of any value: a bad area is repaired
            continue
        number = number_in(value)
        where = f"{section}[{i}].{key} = {short(value)}"
        if number is None or abs(number) > _MAX_NUMBER or (key == "iscrowd" and number not in (0, 1)):
            wrong.append(where)
        elif type(number) is not type(value):
            item[key] = number
            notes.count(f'"{key}" written as {type(value).__name__}, read as the number', where)
    return Finding(f'"{key}" must be {"0 or 1" if key == "iscrowd" else "a number"}', wrong)


def _boxes_to_numbers(annotations: Sequence[Item], notes: Notes) -> Finding:
    wrong = []
    for i, annotation in enumerate(annotations):
        box = annotation.get("bbox")
        if type(box) is list and len(box) == 4 and all(type(x) is float for x in box):
            continue
        numbers = _four_numbers(box)
        if numbers is None:
            wrong.append(f"annotations[{i}].bbox = {short(box)}")
        elif [type(x) for x in numbers] != [type(x) for x in annotation["bbox"]]:
            annotation["bbox"] = numbers
            notes.count('"bbox" written otherwise than as numbers', f"annotations[{i}].bbox = {short(box)}")
    return Finding("bbox must be four numbers [x, y, width, height]", wrong)


def _four_numbers(box: object) -> list[float] | None:
    """Integers beyond all images become infinite, as such a box is dropped and counted."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    numbers = [x if type(x) is float else number_in(x) for x in box]
    if any(x is None for x in numbers):
        return None
    return [x if not abs(x) > _MAX_NUMBER else float("inf") for x in numbers if x is not None]


def _add_sizes(images: Sequence[Item], under: Path, notes: Notes) -> None:
    for image in images:
        if image.get("width") is None or image.get("height") is None:
            name = image["file_name"]
            image["width"], image["height"] = image_size(under / name)
            notes.count("images without a size in the JSON, read from the file", name)


# --- ids -------------------------------------------------------------------------------------------


def _settle_ids(subject: object, section: str, reference: str, coco: Item, notes: Notes) -> None:
    """Whole numbers of 64 bits stay; where one is text or larger, all of the section are numbered from 1."""
    items, annotations = coco[section], coco["annotations"]
    for part, key, name in ((items, "id", section), (annotations, reference, "annotations")):
        refuse(subject, [Finding(f'"{key}" must be a whole number or text', _not_ids(part, key, name))])
    pairs = [(x, "id") for x in items] + [(a, reference) for a in annotations]
    if all(_is_id(item[key]) for item, key in pairs):
        return
    ids = list(dict.fromkeys(_id_of(item["id"]) for item in items))
    kept = all(_is_id(i) for i in ids)
    new = {i: i if kept else number for number, i in enumerate(ids, 1)}
    unknown = [
        f"annotations[{i}]: {reference} = {short(a[reference])}"
        for i, a in enumerate(annotations)
        if _id_of(a[reference]) not in new
    ]
    refuse(subject, [Finding(f'"{reference}" must be an id of "{section}"', unknown)])
    change = (
        "written as text, read as numbers" if kept else "that are text or beyond 64 bits, numbered from 1"
    )
    for item, key in pairs:
        if key == "id":
            notes.count(f'ids of "{section}" {change}', short(item[key]))
        item[key] = new[_id_of(item[key])]


def _is_id(value: object) -> bool:
    return type(value) is int and abs(value) <= _MAX_ID


def _not_ids(items: Sequence[Item], key: str, section: str) -> list[str]:
    return [
        f"{section}[{i}].{key} = {short(item.get(key))}"
        for i, item in enumerate(items)
        if not isinstance(item.get(key), int | str) and not isinstance(number_in(item.get(key)), int)
    ]


def _id_of(value: object) -> int | str:
    number = number_in(value)
    return number if isinstance(number, int) else str(value)


def _number_annotations(annotations: Sequence[Item], notes: Notes) -> None:
    ids = [a.get("id") for a in annotations]
    if all(_is_id(i) for i in ids) and len(set(ids)) == len(ids):
        return
    for number, annotation in enumerate(annotations, 1):
        notes.count(
            "annotation ids that repeat or are no numbers, numbered from 1", short(annotation.get("id"))
        )
        annotation["id"] = number


# --- what belongs to all splits --------------------------------------------------------------------


def _leave_out_supercategory(splits: Sequence[Item], notes: Sequence[Notes]) -> None:
    """Roboflow writes the data set's name as a class of id 0, which nothing is labelled with."""
    used = {a["category_id"] for coco in splits for a in coco["annotations"]}
    for coco, own in zip(splits, notes, strict=True):
        parents = [c.get("supercategory") for c in coco["categories"]]
        for category in list(coco["categories"]):
            is_parent = category.get("name") in parents and category.get("supercategory") in (
                None,
                "none",
                "",
            )
            if is_parent and category["id"] not in used and len(coco["categories"]) > 1:
                coco["categories"].remove(category)
                own.count("supercategories that no box has, left out of the classes", short(category["name"]))


_LOOKS = {
    "corners": "corners, [x1, y1, x2, y2]: nearly all fit their images as such, and many leave them as "
    "COCO's [x, y, width, height]",
    "relative": "relative to the image: nearly all numbers are within 0 and 1, so that all boxes would be "
    "smaller than a pixel",
}


def _settle_boxes(splits: Mapping[str, Content], notes: Mapping[str, Notes], boxes: BoxForm | None) -> None:
    for content in splits.values() if boxes is None else ():
        if (looks := suspected_form(content.coco)) != "xywh":
            raise DataError(
                f"{_subject(content)}: boxes look like {_LOOKS[looks]}. Say what they are: --boxes {looks} "
                "converts those of all splits, --boxes xywh takes them as they are."
            )
    for name, content in splits.items():
        convert_boxes(content.coco, boxes or "xywh", notes[name])
