"""Data sets of other tools' layouts, as a study's options name them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablation.errors import UserError
from detector.data.coco import DataPaths
from experiments.detection import small
from experiments.detection.data import open_data
from experiments.detection.options import DetectionOptions
from experiments.detection.study import check_data
from tests.support import layouts


@pytest.fixture
def source(tmp_path: Path) -> layouts.Source:
    return layouts.small_source(tmp_path / "source", 8, 4)


def test_a_plain_coco_folder_keeps_the_identity_of_its_own_files(
    source: layouts.Source, tmp_path: Path
) -> None:
    layouts.coco_2017(source, tmp_path / "mine")
    setting = small.prepare(small.SMOKE, tmp_path / "work", DetectionOptions(data=tmp_path / "mine"))
    paths = DataPaths.from_directory(tmp_path / "mine")
    expected = open_data(paths, replace(setting.data, fingerprint=""), tmp_path / "cache", "mine").data
    assert setting.data == expected
    assert setting.own_data == f"mine-{expected.fingerprint[:6]}"


def test_an_export_is_prepared_for_training_and_says_how_it_was_read(
    source: layouts.Source, tmp_path: Path
) -> None:
    layouts.yolo_roboflow(source, tmp_path / "mine")
    setting = small.prepare(small.SMOKE, tmp_path / "work", DetectionOptions(data=tmp_path / "mine"))
    assert (setting.data_name, setting.num_classes, setting.num_val) == ("mine", 2, 4)
    assert setting.notices[0] == "read as YOLO, recognised by data.yaml"


def test_a_split_is_part_of_what_is_trained_on(source: layouts.Source, tmp_path: Path) -> None:
    layouts.one_json(source, tmp_path / "mine")
    prepared = [
        small.prepare(small.SMOKE, tmp_path / "work", DetectionOptions(data=tmp_path / "mine", **changes))
        for changes in ({"split": 0.25}, {"split": 0.25, "split_seed": 1}, {"split": 0.5})
    ]
    assert [setting.num_val for setting in prepared] == [3, 3, 6]
    assert len({setting.own_data for setting in prepared}) == 3


def test_check_data_says_how_a_data_set_was_read_and_which_images_are_on_both_sides(
    source: layouts.Source, tmp_path: Path
) -> None:
    layouts.roboflow(source, tmp_path / "mine")
    copy = tmp_path / "mine" / "valid" / "val_1.jpg"
    copy.unlink()
    layouts.link(tmp_path / "mine" / "train" / "train_2.jpg", copy)
    report = check_data(DetectionOptions(data=tmp_path / "mine"), tmp_path / "check").text
    assert "read as Roboflow's COCO export, recognised by train/_annotations.coco.json" in report
    assert "supercategories that no box has, left out of the classes: 1 (first: 'things')" in report
    assert "train_2.jpg = val_1.jpg" in report


def test_check_data_refuses_what_a_run_refuses(source: layouts.Source, tmp_path: Path) -> None:
    layouts.coco_2017(source, tmp_path / "mine")
    path = tmp_path / "mine" / "annotations" / "instances_train2017.json"
    coco = json.loads(path.read_text())
    for annotation in coco["annotations"]:
        annotation["bbox"] = [value / 64 for value in annotation["bbox"]]
    path.write_text(json.dumps(coco))
    layouts.one_json(source, tmp_path / "whole")
    for folder, message in (("mine", "--boxes relative"), ("whole", "--split 0.2")):
        options = DetectionOptions(data=tmp_path / folder)
        with pytest.raises(UserError, match=message):
            check_data(options, tmp_path / "check")
        with pytest.raises(UserError, match=message):
            small.prepare(small.SMOKE, tmp_path / "work", options)


def test_a_split_is_a_share() -> None:
    for share in (0.0, 1.0, 20.0):
        with pytest.raises(ValueError, match="--split must be between 0 and 1"):
            DetectionOptions(data=Path("cells"), split=share)


@pytest.mark.parametrize(
    "option", [{"split": 0.2}, {"split_seed": 0}, {"split_group": "a"}, {"boxes": "corners"}]
)
def test_an_option_about_a_data_set_needs_one(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs? .*--data DIR"):
        DetectionOptions(**option)
