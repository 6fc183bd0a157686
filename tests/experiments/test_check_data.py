"""A data set that check-data calls usable is one that a run can train on, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ablation.errors import UserError
from experiments.detection import small
from experiments.detection.options import DetectionOptions
from experiments.detection.study import check_data
from tests.support import layouts

Damage = Callable[[Path], object]


def _annotations(edit: Callable[[Any], object]) -> Damage:
    """A change of the training annotations."""

    def damage(folder: Path) -> None:
        path = folder / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return damage


def _image(write: Callable[[Path, bytes], object]) -> Damage:
    """A change of the first training image."""

    def damage(folder: Path) -> None:
        path = sorted((folder / "train2017").iterdir())[0]
        content = path.read_bytes()
        path.unlink()
        write(path, content)

    return damage


def _each(name: str, field: str, change: Callable[[Any], Any]) -> Damage:
    def edit(content: Any) -> None:
        for item in content[name]:
            item[field] = change(item[field])

    return _annotations(edit)


def _first(name: str, field: str, value: Any) -> Damage:
    return _annotations(lambda content: content[name][0].update({field: value}))


def _unfinished(folder: Path) -> None:
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text()[:-20])


GOOD: dict[str, Damage] = {
    "untouched": lambda folder: None,
    "iscrowd as text": _each("annotations", "iscrowd", str),
    "annotation ids that repeat": _each("annotations", "id", lambda _: 1),
    "a box of NaN": _first("annotations", "bbox", [float("nan")] * 4),
    "backslashes": _each("images", "file_name", "images\\{}".format),
    "folders of another computer": _each("images", "file_name", "/data/{}".format),
}
BAD: dict[str, Damage] = {
    "an image of seven bytes": _image(lambda path, content: path.write_bytes(b"1234567")),
    "half an image": _image(lambda path, content: path.write_bytes(content[: len(content) // 2])),
    "an image that is missing": _image(lambda path, content: None),
    "an image of another size": _image(lambda path, content: Image.new("RGB", (33, 21)).save(path)),
    "unfinished JSON": _unfinished,
    "relative boxes": _each("annotations", "bbox", lambda box: [v / 640 for v in box]),
    "an unknown category": _first("annotations", "category_id", 999),
    "an image id twice": _first("images", "id", 2),
    "no boxes": _annotations(lambda content: content.update(annotations=[])),
    "crowds alone": _each("annotations", "iscrowd", lambda _: 1),
    "a name of null": _first("images", "file_name", None),
    "a width of 0": _first("images", "width", 0),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> layouts.Source:
    return layouts.small_source(tmp_path_factory.mktemp("source"))


def verdicts(damage: Damage, source: layouts.Source, tmp_path: Path) -> tuple[bool, bool]:
    """Whether check-data and a run's preparation find the data set usable."""
    layouts.coco_2017(source, tmp_path / "mine")
    damage(tmp_path / "mine")
    options = DetectionOptions(data=tmp_path / "mine")
    found = []
    for look in (
        lambda: check_data(options, tmp_path / "check"),
        lambda: small.prepare(small.SMOKE, tmp_path / "work", options),
    ):
        try:
            look()
            found.append(True)
        except UserError:
            found.append(False)
    return found[0], found[1]


@pytest.mark.parametrize("damage", GOOD)
def test_what_check_data_calls_usable_can_be_trained_on(
    damage: str, source: layouts.Source, tmp_path: Path
) -> None:
    assert verdicts(GOOD[damage], source, tmp_path) == (True, True)


@pytest.mark.parametrize("damage", BAD)
def test_what_cannot_be_trained_on_check_data_refuses(
    damage: str, source: layouts.Source, tmp_path: Path
) -> None:
    assert verdicts(BAD[damage], source, tmp_path) == (False, False)
