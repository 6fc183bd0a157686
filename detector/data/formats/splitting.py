"""A validation split made by image: every class in proportion, nothing that belongs together on both sides.

Classes are stratified as in Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data"
(2011): the rarest class first, each image to the side that lacks most of it. What is dealt is not images but
groups of images: those that nearly look the same, and those of one scene where names tell it.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from detector.data.formats.contents import TRAIN, VAL
from detector.errors import DataError

Item = dict[str, Any]


def split(
    coco: Mapping[str, Any], share: float, seed: int, together: Iterable[Sequence[Hashable]] = ()
) -> dict[str, Item]:
    """Two COCO dictionaries of the images of one; the same for the same seed, in any order of the images.

    Args:
        coco: of the whole; file names must differ.
        share: of the images that go to validation, 0 < share < 1.
        seed: of the choice among images that would do equally well.
        together: groups of image ids that must be on one side; groups that share an image become one.

    Returns:
        {TRAIN: ..., VAL: ...}, each with all categories.

    Raises:
        DataError: the share is not between 0 and 1, or all images belong together.
    """
    if not 0 < share < 1:
        raise DataError(f"a split's share must be between 0 and 1, got {share}")
    units = _units(coco["images"], together)
    if len(units) < 2:
        raise DataError(f"cannot be split: its {len(coco['images']):,} images all belong together")
    random.Random(seed).shuffle(units)
    chosen = _chosen(units, _classes(coco), share)
    val = {i for unit in chosen for i in units[unit]}
    return {TRAIN: _part(coco, {image["id"] for image in coco["images"]} - val), VAL: _part(coco, val)}


def groups_by_name(images: Iterable[Item], pattern: str) -> list[list[int]]:
    """Ids of images whose names agree in what `pattern` finds: its first group, or else the whole match.

    Raises:
        DataError: the pattern is not a regular expression, or a name does not have it.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{pattern!r} is not a regular expression ({error})") from error
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for image in images:
        found = expression.search(image["file_name"])
        if found is None:
            raise DataError(f"{pattern!r} is not found in the file name {image['file_name']!r}")
        groups[found[1] if expression.groups else found[0]].append(image["id"])
    return list(groups.values())


def _units(images: Sequence[Item], together: Iterable[Sequence[Hashable]]) -> list[list[Hashable]]:
    """Ids of all images in groups, in order of their first file name."""
    ids = [image["id"] for image in sorted(images, key=lambda image: str(image["file_name"]))]
    group_of: dict[Hashable, list[Hashable]] = {i: [i] for i in ids}
    for group in together:
        for other in group[1:]:
            one, two = group_of[group[0]], group_of[other]
            if one is not two:
                one += two
                group_of |= dict.fromkeys(two, one)
    order = {i: place for place, i in enumerate(ids)}
    units = {id(group): sorted(group, key=order.__getitem__) for group in group_of.values()}
    return sorted(units.values(), key=lambda unit: order[unit[0]])


def _classes(coco: Mapping[str, Any]) -> dict[Hashable, set[Hashable]]:
    """Classes that each image has a box of, crowds left out."""
    classes: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd"):
            classes[annotation["image_id"]].add(annotation["category_id"])
    return classes


_IMAGES = object()
"""A class that every image has, so that those without a box are in proportion too."""


def _chosen(
    units: Sequence[Sequence[Hashable]], classes: Mapping[Hashable, set[Hashable]], share: float
) -> set[int]:
    """Indices of the units that go to validation."""
    contents = [
        Counter([_IMAGES] * len(unit) + [c for i in unit for c in classes.get(i, ())]) for unit in units
    ]
    totals = sum(contents, Counter[Hashable]())
    wanted = [{c: (1 - share) * n for c, n in totals.items()}, {c: share * n for c, n in totals.items()}]
    rare_first = sorted((c for c in totals if c is not _IMAGES), key=lambda c: (totals[c], str(c)))
    side: dict[int, int] = {}
    for rarest in [*rare_first, _IMAGES]:
        own = [i for i in range(len(units)) if i not in side and contents[i][rarest]]
        for i in sorted(own, key=lambda i: -contents[i][rarest]):
            side[i] = int((wanted[1][rarest], wanted[1][_IMAGES]) > (wanted[0][rarest], wanted[0][_IMAGES]))
            for c, n in contents[i].items():
                wanted[side[i]][c] -= n
    chosen = {i for i, s in side.items() if s}
    smallest = min(range(len(units)), key=lambda i: len(units[i]))
    return chosen if 0 < len(chosen) < len(units) else {smallest}


def _part(coco: Mapping[str, Any], ids: set[Hashable]) -> Item:
    return {
        "images": [image for image in coco["images"] if image["id"] in ids],
        "annotations": [a for a in coco["annotations"] if a["image_id"] in ids],
        "categories": coco["categories"],
    }
