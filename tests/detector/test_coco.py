import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.coco import (
    CheckedSplit,
    DataPaths,
    Split,
    fingerprint,
    is_annotated,
    read_data,
    read_split,
    read_test,
    to_coco_dict,
)
from detector.errors import DataError

Content = dict[str, Any]


def content() -> Content:
    """Two images of 20 x 10; the second has no box. Category ids have a gap and are not in order."""
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 20, "height": 10},
            {"id": 5, "file_name": "a.jpg", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 11.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 20, 10], "area": 200, "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
    }


def write(directory: Path, data: Content | str, name: str = "train") -> Split:
    split = Split(directory / "annotations" / f"instances_{name}2017.json", directory / f"{name}2017")
    split.annotations.parent.mkdir(exist_ok=True, parents=True)
    split.images.mkdir(exist_ok=True)
    for file_name in ("a.jpg", "b.jpg"):
        (split.images / file_name).touch()
    split.annotations.write_text(data if isinstance(data, str) else json.dumps(data))
    return split


def read(directory: Path, data: Content) -> CheckedSplit:
    return read_split(write(directory, data))


def edited(edit: Callable[[Content], Any]) -> Content:
    data = content()
    edit(data)
    return data


def annotation(**changes: Any) -> Content:
    data = content()
    data["annotations"][0] |= changes
    return data


# --- what is read ----------------------------------------------------------------------------------


def test_records_are_in_order_of_id_with_labels_in_order_of_category_id(tmp_path: Path) -> None:
    checked = read(tmp_path, content())
    assert (checked.category_ids, checked.class_names) == ((4, 9), ("dog", "cat"))
    empty, full = checked.images
    assert (empty.id, empty.file_name, empty.boxes.shape) == (5, "a.jpg", (0, 4))
    assert (full.id, full.width, full.height) == (7, 20, 10)
    np.testing.assert_array_equal(full.boxes, [[1, 2, 4, 6], [0, 0, 20, 10]])
    assert full.boxes.dtype == np.float32
    assert full.labels.tolist() == [1, 0]
    assert full.areas.tolist() == [11.5, 200]
    assert full.crowd.tolist() == [False, True]
    assert checked.repairs == {}


def test_an_image_without_boxes_is_kept_as_background(tmp_path: Path) -> None:
    assert [len(record.labels) for record in read(tmp_path, content()).images] == [0, 2]


def test_the_cleaned_ground_truth_keeps_the_files_ids_and_numbers(tmp_path: Path) -> None:
    truth = to_coco_dict(read(tmp_path, content()))
    assert [
        (a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]) for a in truth["annotations"]
    ] == [
        (7, 9, [1, 2, 3, 4], 11.5, 0),
        (7, 4, [0, 0, 20, 10], 200, 1),
    ]
    # From 1: pycocotools takes a matched annotation with id 0 for none.
    assert [a["id"] for a in truth["annotations"]] == [1, 2]
    assert truth["categories"] == [{"id": 4, "name": "dog"}, {"id": 9, "name": "cat"}]
    assert [image["id"] for image in truth["images"]] == [5, 7]


def test_pycocotools_reads_the_cleaned_ground_truth(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    api = COCO()
    api.dataset = to_coco_dict(read(tmp_path, content()))
    api.createIndex()
    assert sorted(api.getImgIds()) == [5, 7]
    assert len(api.getAnnIds(imgIds=[7])) == 2


# --- repairs ---------------------------------------------------------------------------------------


def test_a_box_beyond_the_image_is_clipped_and_its_area_is_at_most_its_box(tmp_path: Path) -> None:
    checked = read(tmp_path, annotation(bbox=[-2, 4, 10, 10], area=100))
    record = checked.images[1]
    np.testing.assert_array_equal(record.boxes[0], [0, 4, 8, 10])
    assert record.areas[0] == 48
    assert checked.repairs == {"boxes clipped to the image": 1}


def test_rounding_at_the_border_is_no_repair(tmp_path: Path) -> None:
    checked = read(tmp_path, annotation(bbox=[16.2, 2, 3.8000001, 4]))
    assert checked.repairs == {}
    assert checked.images[1].xywh[0].tolist() == [16.2, 2, 3.8000001, 4]


@pytest.mark.parametrize(
    ("bbox", "repair"),
    [
        ([1, 2, 0, 4], "boxes without area dropped"),
        ([1, 2, 3, -4], "boxes without area dropped"),
        ([25, 2, 3, 4], "boxes outside the image dropped"),
        ([1, 2, float("nan"), 4], "boxes with NaN or inf dropped"),
        ([float("inf"), 2, 3, 4], "boxes with NaN or inf dropped"),
    ],
)
def test_a_box_that_means_nothing_is_dropped_and_counted(
    tmp_path: Path, bbox: list[float], repair: str
) -> None:
    data = annotation(bbox=bbox)
    data["annotations"].append(data["annotations"][0] | {"id": 3, "bbox": [5, 5, 1, 1]})
    checked = read(tmp_path, data)
    assert checked.repairs == {repair: 1}
    assert checked.images[1].labels.tolist() == [0, 1]


def test_a_missing_area_becomes_the_boxes(tmp_path: Path) -> None:
    data = content()
    del data["annotations"][0]["area"], data["annotations"][0]["iscrowd"]
    checked = read(tmp_path, data)
    assert checked.images[1].areas[0] == 12
    assert not checked.images[1].crowd[0]
    assert checked.repairs == {"areas missing or not positive, set to the box's": 1}


# --- what cannot be used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (edited(lambda d: d["images"][0].pop("width")), r'"width" is missing \(1\):\s+images\[0\]'),
        (edited(lambda d: d["annotations"][1].pop("bbox")), r'"bbox" is missing \(1\):\s+annotations\[1\]'),
        (edited(lambda d: d["images"][0].update(id="7")), r"""images\[0\].id = '7'"""),
        (edited(lambda d: d["images"][0].update(height=0)), r"at least 1 \(1\):\s+images\[0\].height = 0"),
        (edited(lambda d: d.pop("categories")), r'missing at the top level \(1\):\s+"categories"'),
        (edited(lambda d: d.update(images={})), r'"images" must be a list'),
        (edited(lambda d: d.update(images=[])), r'"images" must have at least one entry'),
        (edited(lambda d: d.update(annotations=[])), r'"annotations" must have at least one entry'),
        (edited(lambda d: d["images"].append(3)), r'"images" must be objects \(1\):\s+images\[2\] = 3'),
        (
            edited(lambda d: d["images"][1].update(id=7)),
            r'ids of "images" must differ \(1\):\s+id 7 occurs 2',
        ),
        (
            edited(lambda d: d["annotations"][1].update(id=1)),
            r'"annotations" must differ \(1\):\s+id 1 occurs 2',
        ),
        (
            edited(lambda d: d["categories"][1].update(id=9)),
            r'"categories" must differ \(1\):\s+id 9 occurs 2',
        ),
        (annotation(image_id=8), r"annotations\[0\] \(id 1\): image_id = 8"),
        (annotation(category_id=1), r"annotations\[0\] \(id 1\): category_id = 1"),
        (annotation(bbox=[1, 2, 3]), r"four numbers .*\(1\):\s+annotations\[0\].bbox = \[1, 2, 3\]"),
        (annotation(bbox=[1, 2, "3", 4]), r"annotations\[0\].bbox = \[1, 2, '3', 4\]"),
        (annotation(bbox=[1, 2, None, 4]), r"annotations\[0\].bbox = \[1, 2, None, 4\]"),
        (annotation(bbox="1 2 3 4"), r'"bbox" must be a list .*\s+annotations\[0\].bbox ='),
        (edited(lambda d: d["images"][0].update(file_name="c.jpg")), r"images\[0\].file_name = 'c.jpg'"),
        (annotation(bbox=[1, 2, 0, 0]), r"no box is left .*\s+boxes without area dropped: 1"),
        (annotation(iscrowd=1), r"no box is left .*\s+every annotation is a crowd"),
    ],
)
def test_unusable_annotations_are_refused_by_file_and_field(
    tmp_path: Path, data: Content, message: str
) -> None:
    with pytest.raises(DataError, match=r"instances_train2017\.json") as error:
        read(tmp_path, data)
    assert error.match(message)


def test_a_truncated_json_is_told_from_one_that_is_no_json(tmp_path: Path) -> None:
    text = json.dumps(content())
    for cut in (len(text) // 2, len(text) - 1, 3):
        with pytest.raises(DataError, match=r"instances_train2017\.json: is truncated"):
            read_split(write(tmp_path, text[:cut]))
    with pytest.raises(DataError, match=r"instances_train2017\.json: is not JSON \(line 1, column 1"):
        read_split(write(tmp_path, "images: []"))
    split = write(tmp_path, "")
    split.annotations.write_bytes(b"\xff\xd8\xff\xe0 an image")
    with pytest.raises(DataError, match="is not JSON"):
        read_split(split)
    split.annotations.unlink()
    with pytest.raises(DataError, match=r"instances_train2017\.json: cannot be read \(No such file"):
        read_split(split)


def test_ten_cases_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    data = content()
    data["annotations"] = [data["annotations"][0] | {"id": i, "image_id": 1000 + i} for i in range(25)]
    with pytest.raises(DataError) as error:
        read(tmp_path, data)
    assert str(error.value).count("image_id = ") == 10
    assert error.match(r"\(25\):")
    assert error.match("and 15 more")


def test_all_faults_of_one_kind_of_check_are_listed_together(tmp_path: Path) -> None:
    data = annotation(image_id=8)
    data["annotations"][1]["category_id"] = 1
    with pytest.raises(DataError) as error:
        read(tmp_path, data)
    assert error.match("image_id = 8")
    assert error.match("category_id = 1")


def test_splits_with_different_categories_are_refused(tmp_path: Path) -> None:
    paths = DataPaths(write(tmp_path, content()), write(tmp_path, content(), "val"))
    assert [len(split.images) for split in read_data(paths)] == [2, 2]
    write(tmp_path, edited(lambda d: d["categories"].append({"id": 11, "name": "cow"})), "val")
    with pytest.raises(DataError, match="different categories") as error:
        read_data(paths)
    assert error.match(r"only in instances_val2017\.json \(1\):\s+\(11, 'cow'\)")


def test_a_directory_in_another_layout_is_told_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, content())
    with pytest.raises(
        DataError, match=r"annotations/instances_val2017\.json, val2017/ not found\. Expected"
    ):
        DataPaths.from_directory(tmp_path)


# --- images without public annotations -------------------------------------------------------------


def image_info(directory: Path, edit: Callable[[Content], Any] = lambda data: None) -> Split:
    """A test split in COCO's layout: images and categories alone."""
    data = content()
    del data["annotations"]
    edit(data)
    split = Split(directory / "annotations" / "image_info_test-dev2017.json", directory / "test2017")
    split.annotations.parent.mkdir(exist_ok=True, parents=True)
    split.images.mkdir(exist_ok=True)
    for file_name in ("a.jpg", "b.jpg"):
        (split.images / file_name).touch()
    split.annotations.write_text(json.dumps(data))
    return split


def test_a_directory_has_a_test_split_when_its_json_is_there(tmp_path: Path) -> None:
    train, val = write(tmp_path, content()), write(tmp_path, content(), "val")
    assert DataPaths.from_directory(tmp_path) == DataPaths(train, val, None)
    (tmp_path / "test2017").mkdir()
    assert DataPaths.from_directory(tmp_path).test is None
    test = image_info(tmp_path)
    assert DataPaths.from_directory(tmp_path) == DataPaths(train, val, test)


def test_a_test_json_without_its_images_is_refused(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write(tmp_path, content(), name)
    shutil.rmtree(image_info(tmp_path).images)
    with pytest.raises(DataError, match=r"COCO-format data set: test2017/ not found"):
        DataPaths.from_directory(tmp_path)


@pytest.mark.parametrize("annotations", [None, [], content()["annotations"]])
def test_a_split_read_without_annotations_has_images_and_classes_and_no_box(
    tmp_path: Path, annotations: list[Content] | None
) -> None:
    def put(data: Content) -> None:
        if annotations is not None:
            data["annotations"] = annotations

    checked = read_split(image_info(tmp_path, put), annotated=False)
    assert [(r.id, r.width, r.height) for r in checked.images] == [(5, 20, 10), (7, 20, 10)]
    assert (checked.category_ids, checked.class_names) == ((4, 9), ("dog", "cat"))
    for record in checked.images:
        assert (record.boxes.shape, record.labels.shape, record.crowd.shape) == ((0, 4), (0,), (0,))
    assert to_coco_dict(checked)["annotations"] == []


def test_a_test_split_is_otherwise_checked_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'keys missing at the top level \(1\):\s+"annotations"'):
        read_split(image_info(tmp_path))
    for edit, message in (
        (lambda d: d["images"][0].update(file_name="c.jpg"), r"images\[0\].file_name = 'c.jpg'"),
        (lambda d: d.update(images=[]), r'"images" must have at least one entry'),
        (lambda d: d.pop("categories"), r'"categories"'),
    ):
        with pytest.raises(DataError, match=message):
            read_split(image_info(tmp_path, edit), annotated=False)


def test_a_test_split_has_the_classes_of_the_training_split(tmp_path: Path) -> None:
    train = read(tmp_path, content())
    assert len(read_test(image_info(tmp_path), train).images) == 2
    other = image_info(tmp_path, lambda data: data["categories"][0].update(name="cow"))
    with pytest.raises(DataError, match="training and test splits have different categories"):
        read_test(other, train)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], False),
        ([([1, 2, 1, 9], 0)], False),
        ([([1, 2, 9, 0.5], 0), ([1, 2, 1, 1], 1)], False),
        ([([1, 2, 1.01, 1.01], 0)], True),
        ([([1, 2, 3, 4], 1)], True),
    ],
)
def test_an_image_is_annotated_when_anything_in_it_has_both_sides_over_a_pixel(
    tmp_path: Path, boxes: list[tuple[list[float], int]], expected: bool
) -> None:
    data = content()
    data["annotations"] += [
        {"id": 10 + i, "image_id": 5, "category_id": 4, "bbox": bbox, "iscrowd": crowd}
        for i, (bbox, crowd) in enumerate(boxes)
    ]
    assert is_annotated(read(tmp_path, data).images[0]) is expected


# --- fingerprint -----------------------------------------------------------------------------------


def test_the_same_data_elsewhere_has_the_same_fingerprint(tmp_path: Path) -> None:
    write(tmp_path / "one", content())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    reordered = edited(lambda d: d["images"].reverse())
    reordered["info"] = {"contributor": "somebody"}
    one, two = read(tmp_path / "one", content()), read(tmp_path / "two", reordered)
    assert fingerprint(one, one) == fingerprint(two, two)
    assert len(fingerprint(one, two)) == 12


@pytest.mark.parametrize(
    "data",
    [
        annotation(bbox=[1, 2, 3, 4.5]),
        annotation(category_id=4),
        annotation(area=11),
        annotation(image_id=5),
        annotation(iscrowd=0) | {"categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "wolf"}]},
        edited(lambda d: d["images"][0].update(width=21)),
        edited(lambda d: d["images"][0].update(file_name="a.jpg")),
        edited(lambda d: d["annotations"][1].update(iscrowd=0)),
    ],
)
def test_anything_that_is_used_changes_the_fingerprint(tmp_path: Path, data: Content) -> None:
    assert fingerprint(read(tmp_path, data)) != fingerprint(read(tmp_path, content()))


# --- real data -------------------------------------------------------------------------------------


def test_blood_cells_are_read_whole(shared: Path) -> None:
    train, val = read_data(DataPaths.from_directory(shared / "data" / "bccd"))
    assert (len(train.images), len(val.images)) == (292, 72)
    assert sum(len(r.labels) for r in train.images) == 3941
    assert (train.repairs, val.repairs) == ({}, {})


def test_blood_cells_as_found_lose_two_boxes_without_area(shared: Path) -> None:
    bccd = shared / "data" / "bccd"
    found = read_split(Split(bccd / "annotations" / "instances_train2017_asfound.json", bccd / "train2017"))
    clean = read_split(DataPaths.from_directory(bccd).train)
    assert found.repairs == {"boxes without area dropped": 2}
    assert fingerprint(found) == fingerprint(clean)


def test_coco_images_keep_gaps_crowds_and_empty_images(shared: Path) -> None:
    train, val = read_data(DataPaths.from_directory(shared / "data" / "coco_mini"))
    assert (len(train.images), len(val.images)) == (128, 79)
    assert (len(train.category_ids), train.category_ids[-1]) == (80, 90)
    assert max(int(r.labels.max(initial=0)) for r in train.images) == 79
    assert sum(int(r.crowd.sum()) for r in train.images + val.images) == 15
    assert sum(len(r.labels) == 0 for r in train.images + val.images) == 2
    assert (train.repairs, val.repairs) == ({}, {})


def test_coco_ground_truth_passes_through_unchanged(shared: Path) -> None:
    paths = DataPaths.from_directory(shared / "data" / "coco_mini")
    original = json.loads(paths.val.annotations.read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    expected = sorted([a[key] for key in keys] for a in original)
    assert (
        sorted([a[key] for key in keys] for a in to_coco_dict(read_split(paths.val))["annotations"])
        == expected
    )
