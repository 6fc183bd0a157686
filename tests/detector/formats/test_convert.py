import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.data.coco import CheckedSplit, DataPaths, Split, read_data
from detector.data.formats.convert import Converted, Reading, convert, convert_paths
from detector.errors import DataError
from tests.support import layouts


def boxes_by_image(split: CheckedSplit) -> dict[str, list[tuple[str, list[float]]]]:
    """Class and box of each annotation by the last part of the file name."""
    return {
        record.file_name.rsplit("/", 1)[-1]: sorted(
            (split.class_names[label], np.round(box, 4).tolist())
            for label, box in zip(record.labels, record.xywh, strict=True)
        )
        for record in split.images
    }


def state(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def source(tmp_path: Path) -> layouts.Source:
    return layouts.small_source(tmp_path / "source")


def written(source: layouts.Source, tmp_path: Path, layout: str) -> Path:
    folder = tmp_path / layout
    (layouts.SPLIT | layouts.UNSPLIT)[layout](source, folder)
    return folder


def converted(folder: Path, **reading: Any) -> Converted:
    return convert(folder, folder.parent / "work" / "cache", Reading(**reading))


# --- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", layouts.SPLIT)
def test_every_layout_gives_the_boxes_and_classes_of_the_same_data_set(
    source: layouts.Source, tmp_path: Path, layout: str
) -> None:
    expected = read_data(converted(written(source, tmp_path / "a", "coco-2017")).paths)
    found = read_data(converted(written(source, tmp_path / "b", layout)).paths)
    for ours, theirs in zip(found, expected, strict=True):
        assert boxes_by_image(ours) == boxes_by_image(theirs)
        assert not ours.repairs


@pytest.mark.parametrize("layout", layouts.UNSPLIT)
def test_a_layout_without_a_split_is_split_when_asked(
    source: layouts.Source, tmp_path: Path, layout: str
) -> None:
    folder = written(source, tmp_path, layout)
    with pytest.raises(DataError, match=r"one set of 9 images, not split .* --split 0.2"):
        converted(folder)
    train, val = read_data(converted(folder, split=1 / 3).paths)
    assert (len(train.images), len(val.images)) == (6, 3)
    everything = boxes_by_image(train) | boxes_by_image(val)
    originals = read_data(converted(written(source, tmp_path / "a", "coco-2017")).paths)
    assert everything == boxes_by_image(originals[0]) | boxes_by_image(originals[1])


def test_real_images_survive_every_layout(shared: Path, tmp_path: Path) -> None:
    source = layouts.read_source(shared / "data" / "bccd")
    for layout in layouts.SPLIT:
        train, val = read_data(converted(written(source, tmp_path, layout)).paths)
        assert (len(train.images), len(val.images)) == (292, 72)
        assert sum(len(record.labels) for record in train.images) == 3941


def test_coco_files_that_need_no_change_are_read_where_they_are(
    source: layouts.Source, tmp_path: Path
) -> None:
    folder = written(source, tmp_path, "coco-2017")
    found = converted(folder)
    assert found.paths.train.annotations == folder / "annotations" / "instances_train2017.json"
    assert found.paths.train.images == folder / "train2017"
    assert found.notes == ()


@pytest.mark.parametrize("layout", layouts.SPLIT | layouts.UNSPLIT)
def test_the_data_set_itself_is_never_written_to(source: layouts.Source, tmp_path: Path, layout: str) -> None:
    folder = written(source, tmp_path, layout)
    before = state(folder)
    converted(folder, split=0.3 if layout in layouts.UNSPLIT else None)
    assert state(folder) == before


def test_an_annotation_file_stands_for_its_folder(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "yolo")
    assert converted(folder / "data.yaml").layout == "YOLO"
    one = written(source, tmp_path, "one-json")
    assert converted(one / "labels.json", split=0.3).layout == "COCO JSON"


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"export.zip: is an archive; unpack it"):
        converted(tmp_path / "export.zip")


def test_a_test_split_is_used_where_there_is_no_validation_split(
    source: layouts.Source, tmp_path: Path
) -> None:
    folder = written(source, tmp_path, "roboflow")
    (folder / "valid").rename(folder / "test")
    found = converted(folder)
    assert len(read_data(found.paths)[1].images) == 3
    assert any("the test split is used for validation" in note for note in found.notes)


# --- the cache -------------------------------------------------------------------------------------


def test_the_same_files_are_read_once(
    source: layouts.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(source, tmp_path, "yolo")
    first = converted(folder)
    monkeypatch.setattr("detector.data.formats.convert.recognise", None)
    assert converted(folder) == first


def test_a_changed_label_file_is_read_again(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "yolo")
    before = read_data(converted(folder).paths)
    label = folder / "labels" / "train" / "train_1.txt"
    label.write_text(label.read_text().splitlines()[0])
    after = read_data(converted(folder).paths)
    assert sum(len(r.labels) for r in before[0].images) == sum(len(r.labels) for r in after[0].images) + 1


def test_a_moved_data_set_is_found_at_its_new_place(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "yolo")
    converted(folder)
    moved = folder.rename(tmp_path / "moved")
    found = converted(moved)
    assert (found.name, found.paths.train.images) == ("moved", moved)
    assert len(read_data(found.paths)[0].images) == 6


def test_a_cache_inside_the_data_set_is_not_taken_for_data(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "one-json")
    first = convert(folder, folder / "runs" / "cache", Reading(split=0.3))
    assert convert(folder, folder / "runs" / "cache", Reading(split=0.3)) == first
    assert len(list((folder / "runs" / "cache").iterdir())) == 1


# --- what cannot be read ---------------------------------------------------------------------------


def test_a_folder_that_is_no_data_set_is_told_the_nearest_layout(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError) as caught:
        converted(tmp_path)
    assert "1 images and label files as of YOLO (labels/a.txt)" in str(caught.value)
    assert "Lacking: the class names: a data.yaml" in str(caught.value)
    assert "four options" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "found", "lacking"),
    [
        ({}, "0 images", "annotations"),
        ({"a.json": "{}"}, "1 JSON files (a.json)", '"images", "annotations" and "categories"'),
        ({"a.xml": "<gpx/>"}, "1 XML files (a.xml)", "<annotation> (VOC)"),
        ({"data.yaml": "names: [a]\ntrain: x"}, "data.yaml, as of YOLO", "label files"),
    ],
)
def test_an_error_names_what_is_there_and_what_lacks(
    tmp_path: Path, files: dict[str, str], found: str, lacking: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        converted(tmp_path)
    lines = str(caught.value).splitlines()
    assert found in lines[1] and lacking in lines[2]


def test_annotations_without_any_image_file_are_refused(source: layouts.Source, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    layouts.write_json(folder / "labels.json", layouts.joined(source))
    with pytest.raises(DataError, match=r"COCO JSON by labels.json, but there is no image file"):
        converted(folder, split=0.5)


def test_a_split_asked_for_beside_a_given_one_is_refused(source: layouts.Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a training and a validation split"):
        converted(written(source, tmp_path, "voc"), split=0.2)


def test_a_truncated_json_file_is_named(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "roboflow")
    path = folder / "valid" / "_annotations.coco.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"valid/_annotations.coco.json: is truncated"):
        converted(folder)


def test_two_coco_files_of_one_split_are_refused(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "one-json")
    layouts.write_json(folder / "more.json", json.loads((folder / "labels.json").read_text()))
    with pytest.raises(
        DataError, match=r"2 COCO files without a split in their names: labels.json, more.json"
    ):
        converted(folder, split=0.2)


def test_links_in_a_circle_end(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "one-json")
    (folder / "pictures" / "again").symlink_to(folder)
    assert len(read_data(converted(folder, split=0.5).paths)[0].images) in (4, 5)


# --- four paths ------------------------------------------------------------------------------------


def test_files_named_one_by_one_are_put_in_order_too(source: layouts.Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path, "roboflow")
    train, val = (
        Split(folder / name / "_annotations.coco.json", folder / name) for name in ("train", "valid")
    )
    found = convert_paths(DataPaths(train, val), tmp_path / "work" / "cache")
    assert read_data(found.paths)[0].class_names == ("cat", "dog")
    assert found.paths.train.images == folder / "train"
    assert convert_paths(DataPaths(train, val), tmp_path / "work" / "cache") == found


def test_files_named_one_by_one_that_need_no_change_are_read_where_they_are(
    source: layouts.Source, tmp_path: Path
) -> None:
    folder = written(source, tmp_path, "coco-2017")
    paths = converted(folder).paths
    assert convert_paths(paths, tmp_path / "work" / "cache").paths == paths
