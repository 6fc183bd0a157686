"""YOLO: one text file an image, lines of "class x y width height", all relative to the image.

As Ultralytics reads it: the label file of images/train/a.jpg is labels/train/a.txt, an image without one is
background, and x and y are the box's centre. A line of more numbers is a polygon, or four corners of a turned
box; both become the box around them. With `kpt_shape` in the YAML file, what follows the box are keypoints.
Sizes are those of the image as a viewer shows it, since labels are drawn on that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from detector.data.formats.contents import (
    ALL,
    TEST,
    TRAIN,
    VAL,
    Builder,
    Content,
    around,
    split_of_path,
    usable_splits,
)
from detector.data.formats.folder import Folder, image_size, is_under, parent, parts_of, suffix
from detector.data.formats.notes import Notes
from detector.data.formats.parsing import finite, number_in, read_text, read_yaml, short
from detector.errors import DataError

CLASS_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
_BEYOND = 0.01
"""Part of the image by which a coordinate may leave it and be rounding; such boxes are clipped later."""


def settings_file(folder: Folder) -> str | None:
    """The YAML file that has "names", nearest to the top; None where there is none."""
    candidates = sorted(folder.named(".yaml", ".yml"), key=lambda name: (name.count("/"), name))
    return next((name for name in candidates if _has_names(folder, name)), None)


def _has_names(folder: Folder, name: str) -> bool:
    content = read_yaml(folder.root / name)
    return isinstance(content, dict) and "names" in content


def class_list(folder: Folder) -> str | None:
    """A text file of class names, one a line, where no YAML file has them; None where there is none."""
    return next((n for n in folder.stamps if n.rsplit("/", 1)[-1].lower() in CLASS_LISTS), None)


def has_labels(folder: Folder) -> bool:
    """Whether a text file lies where the label file of an image would."""
    return any(label_of(folder, image) for image in folder.images)


def read(folder: Folder, notes: Notes) -> dict[str, Content]:
    """The images that the YAML file names by split, or all images that the folder holds.

    Raises:
        DataError: the files disagree, or a line is not a box.
    """
    settings_name = settings_file(folder)
    settings = read_yaml(folder.root / settings_name) if settings_name else {}
    names = _class_names(folder, settings_name, settings)
    builder = Builder(folder, notes, names, first_id=0)
    keypoints = "kpt_shape" in settings
    for split, images in _splits(folder, settings_name or "", settings).items():
        for image in images:
            _add(builder, split, image, keypoints)
    return usable_splits(builder.contents(), notes)


# --- classes ---------------------------------------------------------------------------------------


def _class_names(folder: Folder, settings_name: str | None, settings: Mapping[str, Any]) -> list[str]:
    if settings_name is None:
        name = class_list(folder) or ""
        return _distinct(
            [line.strip() for line in read_text(folder.root / name).splitlines() if line.strip()]
        )
    names = settings["names"]
    if isinstance(names, Mapping):
        numbers = {number_in(key): value for key, value in names.items()}
        if set(numbers) != set(range(len(names))):
            raise DataError(f"{folder.root / settings_name}: names must be numbered 0 to {len(names) - 1}")
        names = [numbers[i] for i in range(len(names))]
    if not isinstance(names, list) or any(isinstance(name, list | dict) or name is None for name in names):
        raise DataError(
            f"{folder.root / settings_name}: names must be a list of class names, got {short(names)}"
        )
    return _distinct([str(name) for name in names])


def _distinct(names: Sequence[str]) -> list[str]:
    """Names made distinct by their numbers: a class is known by its number alone."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


# --- images ----------------------------------------------------------------------------------------


def _splits(folder: Folder, settings_name: str, settings: Mapping[str, Any]) -> dict[str, list[str]]:
    keys = {TRAIN: ("train",), VAL: ("val", "valid", "validation"), TEST: ("test",)}
    splits = {}
    for split, names in keys.items():
        sources = next((settings[name] for name in names if settings.get(name)), None)
        if sources is not None:
            where = f"{folder.root / settings_name}: {split}"
            splits[split] = _listed(folder, settings_name, settings, sources, where)
    if splits.get(TRAIN):
        return _without_repeats(splits)
    by_folder: dict[str, list[str]] = {}
    for image in folder.images:
        by_folder.setdefault(split_of_path(image) or ALL, []).append(image)
    return by_folder


def _without_repeats(splits: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Train and val of the same images (a quick start's settings) are one set that is yet to be split."""
    if set(splits[TRAIN]) == set(splits.get(VAL, ())):
        return {ALL: splits[TRAIN]}
    return {split: images for split, images in splits.items() if images}


def _listed(
    folder: Folder, settings_name: str, settings: Mapping[str, Any], sources: object, where: str
) -> list[str]:
    """Images of a split, which is a folder, a list of images in a text file, or several of those."""
    images: list[str] = []
    for source in sources if isinstance(sources, list) else [sources]:
        if not isinstance(source, str):
            raise DataError(f"{where} must be a folder or a text file, got {short(source)}")
        base = settings.get("path")
        candidates = [[parent(settings_name), str(base), source]] if isinstance(base, str) else []
        candidates += [[parent(settings_name), source], [source]]
        images += _images_at(folder, candidates)
    return list(dict.fromkeys(images))


def _images_at(folder: Folder, candidates: Sequence[Sequence[str]]) -> list[str]:
    """Images of the first candidate that exists, its first parts left off as far as needed.

    What a YAML file says of places is often that of the computer it was written on ("../train/images").
    """
    for candidate in candidates:
        parts = parts_of("/".join(candidate))
        for start in range(len(parts) + 1):
            name = "/".join(parts[start:])
            if suffix(name) == ".txt" and name in folder.stamps:
                return _images_of_list(folder, name)
            inside = [image for image in folder.images if is_under(image, name)] if name else []
            if inside:
                return inside
    return []


def _images_of_list(folder: Folder, name: str) -> list[str]:
    lines = [line.strip() for line in read_text(folder.root / name).splitlines() if line.strip()]
    found = {line: folder.find_image(line) for line in lines}
    missing = [line for line, image in found.items() if image is None]
    if missing:
        raise DataError(
            f"{folder.root / name}: {len(missing):,} images not found, the first is {missing[0]!r}"
        )
    return [image for image in found.values() if image]


# --- labels ----------------------------------------------------------------------------------------


def label_of(folder: Folder, image: str) -> str | None:
    """The label file of an image: labels/ in place of the last images/ of its path, or beside it."""
    parts = image.split("/")
    stem = PurePosixPath(image).stem
    places = [parent(image)]
    for i in reversed([i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]):
        places.insert(0, "/".join([*parts[:i], "labels", *parts[i + 1 : -1]]))
    if len(parts) > 1:
        places.append("/".join([*parts[:-2], "labels", *parts[-2:-1]]).strip("/"))
    places.append("labels")
    names = (f"{place}/{stem}.txt" if place else f"{stem}.txt" for place in places)
    return next((name for name in names if name in folder.stamps), None)


def _add(builder: Builder, split: str, image: str, keypoints: bool) -> None:
    size = image_size(builder.folder.root / image)
    builder.add_image(split, image, size)
    label = label_of(builder.folder, image)
    if label is None:
        builder.notes.count("images without a label file, taken as images without an object", image)
        return
    for where, words in _lines(builder.folder, label):
        corners = _corners(words, where, keypoints, builder.notes)
        scaled = [value * size[axis % 2] for axis, value in enumerate(corners)]
        builder.add_box(split, _label(builder, words[0], where), scaled)


def _lines(folder: Folder, name: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(read_text(folder.root / name).splitlines(), 1):
        if words := line.split():
            yield f"{folder.root / name}, line {number}", words


def _label(builder: Builder, word: str, where: str) -> str:
    names = builder.classes or ()
    index = number_in(word)
    if not isinstance(index, int) or not 0 <= index < len(names):
        raise DataError(f"{where}: class must be 0 to {len(names) - 1}, got {short(word)}")
    return names[index]


def _corners(words: Sequence[str], where: str, keypoints: bool, notes: Notes) -> list[float]:
    """x1, y1, x2, y2 relative to the image."""
    if len(words) < 5:
        raise DataError(f"{where}: needs a class and 4 numbers, got {short(' '.join(words))}")
    numbers = [finite(word, where) for word in words[1:]]
    if len(numbers) > 5 and not keypoints:
        if len(numbers) % 2:
            raise DataError(f"{where}: a polygon needs pairs of numbers, got {len(numbers)} numbers")
        notes.count("polygons, read as the boxes around them", where)
        corners = around([numbers[i : i + 2] for i in range(0, len(numbers), 2)], where)
    else:
        x, y, width, height = numbers[:4]
        if width < 0 or height < 0:
            raise DataError(f"{where}: width and height must not be negative, got {width} and {height}")
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if max(numbers[:4]) > 1 + _BEYOND or min(numbers[:4]) < -_BEYOND:
        raise DataError(
            f"{where}: numbers must be relative to the image, 0 to 1, got {short(' '.join(words))}"
        )
    return corners
