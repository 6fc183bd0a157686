"""What a data set holds, in text and pictures."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector import data_problems as problems
from detector.data.coco import CheckedSplit, DataPaths, Split, read_data, read_split
from detector.data_problems import Problem, problems_of_annotations
from detector.errors import DataError
from detector.inspect_data import WIDTH, contact_sheet_of, inspect, report

Content = dict[str, Any]


def content() -> Content:
    """Three images of 60 x 40, one of them without a box; two classes; small, medium and crowd boxes."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in (1, 2, 3)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [1, 2, 40, 30], "area": 1200, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0},
            {"id": 4, "image_id": 2, "category_id": 1, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write(directory: Path, name: str, data: Content) -> Split:
    """The split's files; every image of its own content."""
    split = Split(directory / "annotations" / f"instances_{name}2017.json", directory / f"{name}2017")
    for folder in (split.annotations.parent, split.images):
        folder.mkdir(parents=True, exist_ok=True)
    split.annotations.write_text(json.dumps(data))
    for image in data["images"]:
        colour = (image["id"], 7 if name == "train" else 9, 0)
        Image.new("RGB", (image["width"], image["height"]), colour).save(split.images / image["file_name"])
    return split


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One box of a class is enough for these small splits."""
    monkeypatch.setattr(problems, "FEW_BOXES", 1)


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    return DataPaths(write(tmp_path, "train", content()), write(tmp_path, "val", content()))


def edit_train(paths: DataPaths, edit: Callable[[Content], Any]) -> str:
    data = content()
    edit(data)
    paths.train.annotations.write_text(json.dumps(data))
    return report(*read_data(paths)).text


def cells(text: str, label: str) -> list[str]:
    """Columns of the line that begins with a label."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(label))
    return [cell.strip() for cell in line.strip().split("  ") if cell]


def test_a_good_data_set_has_no_problem_and_its_numbers_are_counted(paths: DataPaths) -> None:
    text = report(*read_data(paths)).text
    assert text.startswith("Problems\n\nnone found\n")
    assert cells(text, "images ")[1:] == ["3", "3"]
    assert cells(text, "without a box")[1] == "1 (33%)"
    assert cells(text, "portrait")[1] == "0 (0%)"
    assert cells(text, "width")[1] == "60, 60, 60"
    assert cells(text, "boxes    ")[1] == "3"
    assert cells(text, "crowds")[1] == "1"
    assert cells(text, "boxes of an image")[1] == "0, 1, 2"
    assert cells(text, "small")[1] == "2 (67%)"
    assert cells(text, "medium")[1] == "1 (33%)"
    assert cells(text, "large")[1] == "0 (0%)"
    # Roots of 100, 200 and 1200, and heights over widths of 3/4, 1 and 2.
    assert cells(text, "root of area")[1] == "10, 12, 14, 24, 33"
    assert cells(text, "height / width")[1] == "0.78, 0.88, 1.00, 1.50, 1.90"


def test_classes_are_listed_most_frequent_first(paths: DataPaths) -> None:
    lines = report(*read_data(paths)).text.splitlines()
    assert [line.split() for line in lines[-2:]] == [["dog", "2", "2"], ["cat", "1", "1"]]


def test_of_many_classes_the_ends_of_the_list_are_shown(paths: DataPaths) -> None:
    def many(data: Content) -> None:
        data["categories"] += [{"id": i, "name": f"class {i}"} for i in range(3, 61)]

    edit_train(paths, lambda data: None)
    for split in (paths.train, paths.val):
        data = content()
        many(data)
        split.annotations.write_text(json.dumps(data))
    text = report(*read_data(paths)).text
    assert "Boxes of 60 classes" in text
    assert "(30 between)" in text
    assert "class 60" in text.splitlines()[-1]


def test_classes_that_cannot_be_told_apart_by_their_names_are_a_problem(paths: DataPaths) -> None:
    for split in (paths.train, paths.val):
        data = content()
        data["categories"] += [{"id": 7, "name": "cat"}, {"id": 9, "name": " "}]
        split.annotations.write_text(json.dumps(data))
    text = report(*read_data(paths)).text
    assert "classes of one name, or without a name (3):" in text
    assert [f"cat (id {i})" in text for i in (1, 2, 7)].count(True) == 2
    assert "cat (id 7), (id 9)" in text


def test_a_class_without_boxes_in_a_split_is_a_problem(paths: DataPaths) -> None:
    text = edit_train(paths, lambda data: data["annotations"].pop(0))
    assert "train: classes without a box (1):\n  cat\n" in text
    assert "val: classes without" not in text


def test_repairs_are_problems(paths: DataPaths) -> None:
    text = edit_train(paths, lambda data: data["annotations"][0].update(bbox=[50, 2, 20, 20]))
    assert "train: boxes clipped to the image: 1\n" in text


def test_a_box_given_twice_is_a_problem_and_a_crowd_over_a_box_is_not(paths: DataPaths) -> None:
    text = edit_train(paths, lambda data: data["annotations"].append(data["annotations"][0] | {"id": 9}))
    assert "train: images with the same box of the same class twice (1):\n  1.png\n" in text
    crowd = {"id": 9, "iscrowd": 1}
    text = edit_train(paths, lambda data: data["annotations"].append(data["annotations"][0] | crowd))
    assert "twice" not in text


def test_a_file_listed_twice_is_a_problem(paths: DataPaths) -> None:
    text = edit_train(paths, lambda data: data["images"][2].update(file_name="1.png"))
    assert "train: image files listed more than once (1):\n  1.png\n" in text


def test_an_image_that_is_in_both_splits_is_a_leak_under_any_name(paths: DataPaths) -> None:
    (paths.val.images / "3.png").write_bytes((paths.train.images / "2.png").read_bytes())
    (paths.train.images / "1.png").write_bytes((paths.train.images / "2.png").read_bytes())
    text = report(*read_data(paths)).text
    assert "images that are in val too, which makes its AP too high (1):\n  1.png = 3.png\n" in text
    assert "train: images that are there twice under two names (1):\n  1.png = 2.png\n" in text


def test_splits_that_share_their_folder_leak_what_both_list(paths: DataPaths) -> None:
    shared = DataPaths(paths.train, Split(paths.val.annotations, paths.train.images))
    text = report(*read_data(shared)).text
    assert "which makes its AP too high (3):\n  1.png = 1.png\n" in text


def test_images_that_cannot_be_used_are_named_with_the_reason(paths: DataPaths) -> None:
    (paths.val.images / "1.png").write_bytes(b"no image")
    Image.new("RGB", (6, 4)).save(paths.val.images / "2.png")
    (paths.train.images / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="the data set: cannot be used") as error:
        report(*read_data(paths))
    assert error.match(r"train: images \(1\):\n +\S+train2017/3\.png: cannot be decoded")
    assert error.match(r"val: images \(2\):\n +\S+val2017/1\.png: cannot be decoded")
    assert error.match(r"/2\.png: is 6x4, but width x height of image id 2")


def test_every_image_that_cannot_be_used_is_named(paths: DataPaths) -> None:
    data = content()
    data["images"] = [data["images"][0] | {"id": i, "file_name": f"{i}.png"} for i in range(1, 21)]
    write(paths.train.images.parent, "train", data)
    for i in range(1, 21):
        (paths.train.images / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train: images \(20\)") as error:
        report(*read_data(paths))
    assert str(error.value).count("cannot be decoded") == 20


def test_many_images_are_not_opened_and_the_report_says_so(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.inspect_data.MAX_OPENED", 5)
    (paths.val.images / "1.png").write_bytes(b"no image")
    text = report(*read_data(paths)).text
    assert text.startswith("Problems\n\nimages were not opened: there are more than 5\n")


def test_a_long_list_is_cut_and_lines_stay_narrow(paths: DataPaths) -> None:
    def many(data: Content) -> None:
        data["categories"] += [{"id": i, "name": f"a class of a long name {i}"} for i in range(3, 61)]

    for split in (paths.train, paths.val):
        data = content()
        many(data)
        split.annotations.write_text(json.dumps(data))
    text = report(*read_data(paths)).text
    assert "train: classes without a box (58):" in text
    assert "and 48 more" in text
    assert max(len(line) for line in text.splitlines()) <= WIDTH


# --- the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [(Path.unlink, r"images\[0\]\.file_name = '1\.png'"), (Path.write_text, r"/1\.png: cannot be decoded")],
)
def test_a_data_set_that_cannot_be_used_is_refused_and_not_drawn(
    paths: DataPaths, tmp_path: Path, damage: Callable[..., Any], said: str
) -> None:
    damage(paths.train.images / "1.png", *(["no image"] if damage is Path.write_text else []))
    with pytest.raises(DataError, match=said):
        inspect(paths, tmp_path / "look")
    assert not (tmp_path / "look").exists()


def test_a_report_comes_with_a_picture_of_each_split(paths: DataPaths, tmp_path: Path) -> None:
    text = inspect(paths, tmp_path / "look").text
    assert report(*read_data(paths)).text in text
    assert sorted(p.name for p in (tmp_path / "look").iterdir()) == ["train.png", "val.png"]
    assert str(tmp_path / "look" / "train.png") in text


def test_a_test_split_is_checked_too(
    paths: DataPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = write(tmp_path, "test", {k: v for k, v in content().items() if k != "annotations"})
    with_test = DataPaths(paths.train, paths.val, test)
    assert "The test split has 3 images; every one decodes." in inspect(with_test, tmp_path / "look").text
    (test.images / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test: images \(1\):\n.*/2\.png: cannot be decoded"):
        inspect(with_test, tmp_path / "look")
    with monkeypatch.context() as few:
        few.setattr("detector.inspect_data.MAX_OPENED", 8)
        text = inspect(with_test, tmp_path / "look").text
        assert "images were not opened: there are more than 8\n" in text
        assert "The test split has 3 images; every file is there." in text
    (test.images / "2.png").unlink()
    with pytest.raises(DataError, match=r"images\[1\]\.file_name = '2\.png'"):
        inspect(with_test, tmp_path / "look")


def test_a_contact_sheet_leaves_out_what_cannot_be_decoded(paths: DataPaths, tmp_path: Path) -> None:
    (paths.train.images / "3.png").write_bytes(b"no image")
    train, val = read_data(paths)
    assert contact_sheet_of(train, tmp_path / "train.png", "train")
    assert contact_sheet_of(val, tmp_path / "val.png", "val")
    two, three = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("train", "val"))
    assert two.shape[1] < three.shape[1]
    for n in (1, 2, 3):
        (paths.train.images / f"{n}.png").write_bytes(b"no image")
    assert not contact_sheet_of(train, tmp_path / "none.png", "train")
    assert not (tmp_path / "none.png").exists()


# --- real data -------------------------------------------------------------------------------------


def test_coco_images_are_reported_with_the_classes_that_are_missing(shared: Path, tmp_path: Path) -> None:
    text = inspect(DataPaths.from_directory(shared / "data" / "coco_mini"), tmp_path).text
    assert "train: classes without a box (9):" in text
    assert "cannot be used" not in text and "AP too high" not in text
    assert cells(text, "crowds")[1:] == ["10", "5"]
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= WIDTH


# --- what may spoil a training --------------------------------------------------------------------------


def codes(*splits: CheckedSplit, short_side: int = 800, most: int = 100) -> dict[str, Problem]:
    named = dict(zip(("train", "val"), splits, strict=False))
    return {p.code: p for p in problems_of_annotations(named, short_side, 1333, most)}


def with_boxes(
    tmp_path: Path, *boxes: tuple[int, list[float]], size: tuple[int, int] = (600, 400)
) -> CheckedSplit:
    """A split of one image with boxes (category, xywh)."""
    data = content()
    data["images"] = [{"id": 1, "file_name": "1.png", "width": size[0], "height": size[1]}]
    data["annotations"] = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (c, box) in enumerate(boxes, start=1)
    ]
    return read_split(write(tmp_path, "train", data))


def test_boxes_that_resizing_makes_tiny_are_told_with_the_short_side_that_keeps_them(tmp_path: Path) -> None:
    split = with_boxes(tmp_path, (1, [0, 0, 16, 16]), (2, [50, 50, 100, 100]))
    assert "tiny-boxes" not in codes(split, short_side=400)
    problem = codes(split, short_side=100)["tiny-boxes"]  # 16 pixels become 4
    assert "50% of the boxes" in problem.cases[0]
    side = int(re.findall(r"--short-side (\d+)", problem.cases[0])[0])
    assert 64 <= side <= 224
    assert side % 32 == 0


def test_one_place_annotated_as_two_classes_is_told_and_a_box_inside_another_is_not(tmp_path: Path) -> None:
    inside = with_boxes(tmp_path / "a", (1, [0, 0, 100, 100]), (2, [10, 10, 60, 60]))
    assert "two-classes-at-one-place" not in codes(inside)
    same = with_boxes(tmp_path / "b", (1, [0, 0, 100, 100]), (2, [1, 1, 98, 99]))
    assert codes(same)["two-classes-at-one-place"].cases == ("1.png",)


def test_more_objects_than_detections_are_told_with_the_share_that_cannot_be_found(tmp_path: Path) -> None:
    split = with_boxes(tmp_path, *[(1, [10 * i, 0, 9, 9]) for i in range(10)])
    assert "more-objects-than-detections" not in codes(split, most=10)
    problem = codes(split, most=8)["more-objects-than-detections"]
    assert "1 images have more than 8, up to 10; 20.0% of all objects cannot be found" in problem.cases[0]


def test_a_class_with_few_boxes_is_told_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "FEW_BOXES", 10)
    split = with_boxes(tmp_path, (1, [0, 0, 20, 20]), *[(2, [10 * i, 50, 9, 9]) for i in range(10)])
    assert codes(split)["class-with-few-boxes"].cases == ("cat 1",)


def test_a_report_as_data_is_json_with_the_problems_by_code(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "FEW_BOXES", 10)
    found = json.loads(json.dumps(report(*read_data(paths)).data()))
    assert found["images"] == {"train": 3, "val": 3}
    assert found["boxes"]["dog"] == {"train": 2, "val": 2}
    assert {problem["code"] for problem in found["problems"]} == {"class-with-few-boxes"}
