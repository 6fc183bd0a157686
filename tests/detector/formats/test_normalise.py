import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detector.data.coco import CheckedSplit, read_data
from detector.data.formats.convert import Converted, Reading, convert
from detector.errors import DataError
from tests.support import layouts

Coco = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    layouts.coco_2017(layouts.small_source(tmp_path / "source"), tmp_path / "data")
    return tmp_path / "data"


def edit(folder: Path, change: Callable[[Coco], Any], splits: tuple[str, ...] = ("train", "val")) -> None:
    for split in splits:
        path = folder / "annotations" / f"instances_{split}2017.json"
        coco = json.loads(path.read_text())
        change(coco)
        path.write_text(json.dumps(coco))


def edit_all(section: str, change: Callable[[Coco, int], Any]) -> Callable[[Coco], None]:
    def every(coco: Coco) -> None:
        for i, item in enumerate(coco[section]):
            change(item, i)

    return every


def converted(folder: Path, **reading: Any) -> Converted:
    return convert(folder, folder.parent / "work" / "cache", Reading(**reading))


def train_split(folder: Path, **reading: Any) -> CheckedSplit:
    return read_data(converted(folder, **reading).paths)[0]


def boxes_of(split: CheckedSplit) -> list[list[list[float]]]:
    return [record.xywh.round(6).tolist() for record in split.images]


# --- file names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelled",
    [
        "train2017\\{}",
        ".\\{}",
        "data\\train2017/{}",
        "/home/me/project/data/train2017/{}",
        "C:\\Users\\me\\data\\{}",
        "../../media/upload/{}",
    ],
)
def test_file_names_of_another_system_find_their_files(folder: Path, spelled: str) -> None:
    expected = boxes_of(train_split(folder))
    names = [record.file_name for record in train_split(folder).images]
    edit(
        folder,
        edit_all("images", lambda x, _: x.update(file_name=spelled.format(x["file_name"]))),
        ("train",),
    )
    found = converted(folder)
    train, _ = read_data(found.paths)
    assert [record.file_name for record in train.images] == names
    assert boxes_of(train) == expected
    assert found.notes[0].startswith("train: file names found under another spelling: 6 (first: ")


def test_names_that_repeat_the_folder_of_the_images_find_their_files(folder: Path) -> None:
    expected = boxes_of(train_split(folder))
    edit(
        folder, edit_all("images", lambda x, _: x.update(file_name=f"train2017/{x['file_name']}")), ("train",)
    )
    assert boxes_of(train_split(folder)) == expected


def test_a_file_name_in_another_case_finds_its_file(folder: Path) -> None:
    for path in (folder / "train2017").iterdir():
        path.rename(path.with_suffix(".JPG"))
    assert train_split(folder).images[0].file_name == "train_1.JPG"


def test_a_name_that_two_files_could_have_is_not_guessed(folder: Path) -> None:
    path = folder / "train2017" / "train_1.jpg"
    for other in ("TRAIN_1.jpg", "Train_1.jpg"):
        layouts.link(path, path.with_name(other))
    path.unlink()
    with pytest.raises(DataError, match=r"image files not found under .*train2017 \(1\)"):
        converted(folder)


def test_a_missing_file_is_named_with_the_most_similar_one(folder: Path) -> None:
    (folder / "train2017" / "train_3.jpg").rename(folder / "train2017" / "train_33.jpg")
    with pytest.raises(DataError) as caught:
        converted(folder)
    assert "images[2].file_name = 'train_3.jpg'; the most similar file is train2017/train_33.jpg" in str(
        caught.value
    )


def test_a_file_that_another_image_names_is_not_suggested(folder: Path) -> None:
    (folder / "train2017" / "train_3.jpg").unlink()
    with pytest.raises(DataError) as caught:
        converted(folder)
    assert "images[2].file_name = 'train_3.jpg'" in str(caught.value)
    assert "most similar" not in str(caught.value)


def test_a_file_name_never_leads_out_of_the_data_set(folder: Path) -> None:
    layouts.link(folder / "train2017" / "train_1.jpg", folder.parent / "secret.jpg")
    edit(folder, lambda coco: coco["images"][0].update(file_name="../../secret.jpg"), ("train",))
    with pytest.raises(DataError, match="image files not found"):
        converted(folder)


# --- numbers ---------------------------------------------------------------------------------------


def test_crowds_written_as_text_are_numbers(folder: Path) -> None:
    edit(folder, edit_all("annotations", lambda a, i: a.update(iscrowd="01"[i == 0] if i % 2 == 0 else 0)))
    crowds = [record.crowd.tolist() for record in train_split(folder).images]
    assert crowds == [[True, False]] + [[False, False]] * 5
    assert any('"iscrowd" written as str, read as the number: 6' in note for note in converted(folder).notes)


@pytest.mark.parametrize(
    ("section", "key"),
    [("images", "width"), ("images", "height"), ("annotations", "area"), ("annotations", "iscrowd"),
     ("images", "id"), ("annotations", "image_id"), ("annotations", "category_id"), ("categories", "id")],
)  # fmt: skip
def test_every_number_may_come_as_text(folder: Path, section: str, key: str) -> None:
    before = train_split(folder)
    edit(folder, edit_all(section, lambda x, _: x.update({key: str(x[key])})))
    after = train_split(folder)
    assert boxes_of(after) == boxes_of(before)
    assert [r.id for r in after.images] == [r.id for r in before.images]
    assert [r.areas.tolist() for r in after.images] == [r.areas.tolist() for r in before.images]
    assert after.category_ids == before.category_ids
    assert converted(folder).notes


def test_boxes_may_come_as_text(folder: Path) -> None:
    before = boxes_of(train_split(folder))
    edit(folder, edit_all("annotations", lambda a, _: a.update(bbox=[str(x) for x in a["bbox"]])))
    assert boxes_of(train_split(folder)) == before


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("annotations", "iscrowd", "maybe"), ("annotations", "iscrowd", "2"), ("annotations", "iscrowd", []),
     ("annotations", "area", "large"), ("annotations", "bbox", ["a", 1, 2, 3]), ("annotations", "bbox", None),
     ("annotations", "bbox", [1, 2, 3]), ("images", "width", "wide"), ("images", "height", {}),
     ("images", "width", 10**30), ("images", "id", None), ("images", "id", 1.5), ("images", "file_name", 7),
     ("annotations", "image_id", [1]), ("categories", "id", {})],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_its_place(
    folder: Path, section: str, key: str, value: object
) -> None:
    edit(folder, lambda coco: coco[section][1].update({key: value}), ("val",))
    with pytest.raises(DataError) as caught:
        converted(folder)
    assert f"{section}[1].{key} = " in str(caught.value)
    assert "instances_val2017.json" in str(caught.value)


def test_sizes_that_the_json_lacks_come_from_the_files(folder: Path) -> None:
    edit(folder, edit_all("images", lambda x, _: x.pop("width")), ("train",))
    assert {(r.width, r.height) for r in train_split(folder).images} == {(64, 48)}


# --- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [lambda i: i + 2**63, lambda i: f"image-{i}", lambda i: -(2**70) + i])
def test_ids_that_are_text_or_beyond_64_bits_are_mapped(folder: Path, new: Callable[[int], object]) -> None:
    before = train_split(folder)

    def change(coco: Coco) -> None:
        for image in coco["images"]:
            image["id"] = new(image["id"])
        for annotation in coco["annotations"]:
            annotation["image_id"] = new(annotation["image_id"])

    edit(folder, change)
    after = train_split(folder)
    assert boxes_of(after) == boxes_of(before)
    assert [r.id for r in after.images] == [1, 2, 3, 4, 5, 6]
    assert any("text or beyond 64 bits, numbered from 1: 6" in note for note in converted(folder).notes)


def test_an_unknown_image_of_mapped_ids_is_refused(folder: Path) -> None:
    def change(coco: Coco) -> None:
        for image in coco["images"]:
            image["id"] = f"image-{image['id']}"
        for annotation in coco["annotations"]:
            annotation["image_id"] = f"image-{annotation['image_id']}"
        coco["annotations"][2]["image_id"] = 1

    edit(folder, change, ("train",))
    with pytest.raises(DataError, match=r"annotations\[2\]: image_id = 1"):
        converted(folder)


def test_annotation_ids_that_start_again_in_each_image_are_renumbered(folder: Path) -> None:
    before = boxes_of(train_split(folder))
    edit(folder, edit_all("annotations", lambda a, i: a.update(id=i % 2)))
    assert boxes_of(train_split(folder)) == before
    assert "train: annotation ids that repeat or are no numbers, numbered from 1: 12 (first: 0)" in (
        converted(folder).notes
    )


# --- boxes -----------------------------------------------------------------------------------------


def as_corners(annotation: Coco, _: int) -> None:
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x, y, x + width, y + height]


def as_relative(annotation: Coco, _: int) -> None:
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x / 64, y / 48, width / 64, height / 48]


@pytest.mark.parametrize(("form", "change"), [("corners", as_corners), ("relative", as_relative)])
def test_boxes_of_another_form_are_told_and_converted_when_asked(
    folder: Path, form: str, change: Callable[[Coco, int], None]
) -> None:
    before = boxes_of(train_split(folder))
    edit(folder, edit_all("annotations", change))
    with pytest.raises(DataError, match=rf"boxes look like {form}|boxes look like relative") as caught:
        converted(folder)
    assert f"--boxes {form}" in str(caught.value)
    assert boxes_of(train_split(folder, boxes=form)) == before
    assert f"train: boxes converted from {form}, as asked for: 12 (first: annotations[0])" in (
        converted(folder, boxes=form).notes
    )


def test_boxes_are_taken_as_they_are_when_asked(folder: Path) -> None:
    edit(folder, edit_all("annotations", as_corners))
    assert train_split(folder, boxes="xywh").repairs["boxes clipped to the image"] > 0


def test_real_boxes_are_not_suspected(shared: Path, tmp_path: Path) -> None:
    for name in ("bccd", "coco_mini"):
        assert convert(shared / "data" / name, tmp_path / "cache").notes == ()


# --- classes ---------------------------------------------------------------------------------------


def test_the_class_that_roboflow_adds_is_left_out(tmp_path: Path) -> None:
    layouts.roboflow(layouts.small_source(tmp_path / "source"), tmp_path / "data")
    found = converted(tmp_path / "data")
    assert read_data(found.paths)[0].class_names == ("cat", "dog")
    assert found.notes[0] == (
        "train: supercategories that no box has, left out of the classes: 1 (first: 'things')"
    )


def test_a_supercategory_that_has_boxes_stays(tmp_path: Path) -> None:
    layouts.roboflow(layouts.small_source(tmp_path / "source"), tmp_path / "data")
    path = tmp_path / "data" / "valid" / "_annotations.coco.json"
    coco = json.loads(path.read_text())
    coco["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(coco))
    assert read_data(converted(tmp_path / "data").paths)[0].class_names == ("things", "cat", "dog")
