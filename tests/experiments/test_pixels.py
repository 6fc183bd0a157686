"""Which data set it is depends on the images' bytes, and not on where they lie or when they were written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ablation.errors import UserError
from detector.config import Data
from detector.data import image_files
from detector.data.coco import DataPaths
from detector.data.shapes import ShapesSpec, draw_dataset
from experiments.detection.data import DataSet, open_data

SPEC = ShapesSpec(seed=1, image_size=32, num_train=4, num_val=2, max_objects=2, min_size=8)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    drawn = draw_dataset(SPEC, tmp_path / "drawn")
    folder = drawn.train.annotations.parents[1]
    shutil.copytree(folder, tmp_path / "own")
    return tmp_path / "own"


def opened(folder: Path, cache: Path) -> DataSet:
    return open_data(DataPaths.from_directory(folder), Data("", 32, 32), cache, "own")


def an_image(folder: Path) -> Path:
    return sorted((folder / "train2017").iterdir())[0]


def test_an_image_replaced_under_its_name_and_size_makes_another_data_set(own: Path, tmp_path: Path) -> None:
    before = opened(own, tmp_path / "cache")
    path = an_image(own)
    with Image.open(path) as image:
        Image.new("RGB", image.size, "red").save(path)
    after = opened(own, tmp_path / "cache")
    assert after.data.fingerprint != before.data.fingerprint


def test_an_image_damaged_after_it_was_read_is_refused_by_its_name(own: Path, tmp_path: Path) -> None:
    opened(own, tmp_path / "cache")
    an_image(own).write_bytes(b"damaged")
    with pytest.raises(UserError, match=an_image(own).name):
        opened(own, tmp_path / "cache")


def test_an_image_removed_after_it_was_read_is_refused(own: Path, tmp_path: Path) -> None:
    opened(own, tmp_path / "cache")
    path = an_image(own)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        opened(own, tmp_path / "cache")


def test_the_same_images_elsewhere_or_touched_are_the_same_data_set(own: Path, tmp_path: Path) -> None:
    before = opened(own, tmp_path / "cache")
    os.utime(an_image(own))
    assert opened(own, tmp_path / "cache").data == before.data
    shutil.move(own, tmp_path / "moved")
    assert opened(tmp_path / "moved", tmp_path / "cache").data == before.data


def test_a_file_is_hashed_once(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(own, tmp_path / "cache")
    hashed: list[str] = []
    real = image_files.hashlib.file_digest
    monkeypatch.setattr(
        image_files.hashlib, "file_digest", lambda file, name: hashed.append(file.name) or real(file, name)
    )
    (own / "train2017" / "notes.txt").write_text("a file that no annotation lists")
    opened(own, tmp_path / "cache")
    assert hashed == []
    os.utime(an_image(own))
    opened(own, tmp_path / "cache")
    assert hashed == [str(an_image(own))]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a.jpg": 3}'])
def test_a_damaged_record_of_hashes_is_made_anew(content: str, own: Path, tmp_path: Path) -> None:
    before = opened(own, tmp_path / "cache")
    for record in (tmp_path / "cache" / "known").iterdir():
        record.write_text(content)
    assert opened(own, tmp_path / "cache").data == before.data
