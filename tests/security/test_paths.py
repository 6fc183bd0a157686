"""Names that come from data sets, configs and people never lead out of the folder they are meant for."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ablation.errors import UserError
from ablation.workspace import Workspace
from detector.config import Data
from detector.data.coco import DataPaths, Split, read_split
from detector.errors import DataError
from experiments.detection.data import open_data

ESCAPES = ["../secret.jpg", "a/../../secret.jpg", "{outside}/secret.jpg", "./../secret.jpg"]


def _write(folder: Path, file_name: str, name: str = "train") -> Split:
    split = Split(folder / f"{name}.json", folder / name)
    split.images.mkdir(parents=True, exist_ok=True)
    (split.images / "a").mkdir(exist_ok=True)
    for place in (split.images, split.images / "a", folder):
        Image.new("RGB", (20, 10)).save(place / "secret.jpg")
    content = {
        "images": [{"id": 1, "file_name": file_name, "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    split.annotations.write_text(json.dumps(content))
    return split


@pytest.mark.parametrize("file_name", ESCAPES)
def test_a_data_set_cannot_name_images_outside_its_folder(tmp_path: Path, file_name: str) -> None:
    split = _write(tmp_path, file_name.format(outside=tmp_path))
    with pytest.raises(DataError, match="must lie under"):
        read_split(split)


@pytest.mark.parametrize("file_name", ["secret.jpg", "a/secret.jpg", "./secret.jpg"])
def test_images_in_folders_of_the_folder_are_fine(tmp_path: Path, file_name: str) -> None:
    assert read_split(_write(tmp_path, file_name)).images[0].file_name == file_name


def test_a_name_with_a_zero_byte_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_split(_write(tmp_path, "a\0.jpg"))


@pytest.mark.parametrize(
    "key", ["", "..", "../../etc", "/etc", "0123456789a/", "0123456789AB", "0123456789ab\n"]
)
def test_only_a_key_makes_a_trial_directory(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="trial key"):
        Workspace.at(tmp_path).trial_directory(key)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc", "-rf", "a\n", "a" * 101, "a\0b"])
def test_study_profile_and_data_names_make_one_folder_of_the_results(tmp_path: Path, name: str) -> None:
    for study, profile in ((name, "shapes"), ("atss", name)):
        with pytest.raises(UserError, match="folder names"):
            Workspace.at(tmp_path).results_directory(study, profile)


@pytest.mark.parametrize("name", ["my data; rm -rf", "$(id)", "..", "données", "<b>"])
def test_a_data_set_in_a_folder_of_any_name_gets_a_plain_folder_of_results(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "x" / name if name != ".." else tmp_path / "x" / "y" / ".."
    folder.mkdir(parents=True, exist_ok=True)
    paths = DataPaths(
        _write(folder / "annotations", "secret.jpg"), _write(folder / "annotations", "secret.jpg")
    )
    size = Data(fingerprint="0" * 12, short_side=10, max_long_side=20)
    data = open_data(paths, size, tmp_path / "cache", name)
    place = Workspace.at(tmp_path).results_directory("atss", f"shapes-{data.folder_name}")
    assert place.parent == tmp_path / "results"
