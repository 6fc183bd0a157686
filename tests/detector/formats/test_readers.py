"""What each format has beyond plain rectangles."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from detector.data.coco import CheckedSplit, read_data
from detector.data.formats.convert import convert
from detector.errors import DataError

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 40 x 20 in train/ and one in val/."""
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(path)
    return tmp_path / "data"


def read(folder: Path) -> tuple[CheckedSplit, CheckedSplit, tuple[str, ...]]:
    found = convert(folder, folder.parent / "work" / "cache")
    return *read_data(found.paths), found.notes


def boxes(split: CheckedSplit) -> list[list[list[float]]]:
    return [record.xywh.round(4).tolist() for record in split.images]


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(folder)
    return str(caught.value)


# --- Pascal VOC ------------------------------------------------------------------------------------


def write_voc(folder: Path, *objects: str, head: str = "") -> None:
    for name in ("train/a", "train/b", "val/c"):
        xml = f"{head}<annotation><filename>x</filename>{''.join(objects)}</annotation>"
        (folder / f"{name}.xml").write_text(xml)


def test_voc_corners_count_pixels_from_one(folder: Path) -> None:
    write_voc(folder, OBJECT.format("cat", 0, 1, 1, 40, 20))
    train, _, notes = read(folder)
    assert boxes(train) == [[[0, 0, 40, 20]]] * 2
    assert notes == ("corners are taken as VOC's, counting pixels from 1: xmin and ymin are lowered by 1",)


def test_voc_corners_of_tools_that_count_from_zero_are_not_moved(folder: Path) -> None:
    write_voc(folder, OBJECT.format("cat", 0, 0, 3, 10, 9), OBJECT.format("cat", 0, 5, 5, 8, 8))
    train, _, notes = read(folder)
    assert boxes(train) == [[[0, 3, 10, 6], [5, 5, 3, 3]]] * 2
    assert notes == ("corners are taken to count pixels from 0, as some are 0",)


def test_difficult_objects_are_kept_and_ignored_as_crowds(folder: Path) -> None:
    write_voc(folder, OBJECT.format("cat", 1, 2, 2, 9, 9), OBJECT.format("cat", 0, 4, 4, 8, 8))
    train, val, notes = read(folder)
    assert [record.crowd.tolist() for record in (*train.images, *val.images)] == [[True, False]] * 3
    written = json.loads(val.source.annotations.read_text())["annotations"]
    assert [a.get("difficult", 0) for a in written] == [1, 0]
    assert any(note.startswith("difficult objects, ignored in tests") for note in notes)


def test_voc_lists_decide_the_split(folder: Path) -> None:
    (folder / "JPEGImages").mkdir()
    (folder / "Annotations").mkdir()
    write_voc(folder, OBJECT.format("cat", 0, 2, 2, 9, 9))
    for path in [*folder.glob("*/*.png"), *folder.glob("*/*.xml")]:
        path.rename(folder / ("JPEGImages" if path.suffix == ".png" else "Annotations") / path.name)
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, stems in {"trainval": "a\nb\n", "test": "c\nlost\n", "cat_trainval": "a 1\nb -1\n"}.items():
        (lists / f"{name}.txt").write_text(stems)
    train, val, notes = read(folder)
    assert [r.file_name for r in train.images] == ["JPEGImages/a.png", "JPEGImages/b.png"]
    assert [r.file_name for r in val.images] == ["JPEGImages/c.png"]
    assert "there is no validation split: the test split is used for validation" in notes
    assert any("without an XML file and an image, left out: 1 (first: lost)" in note for note in notes)


def write_devkit(folder: Path, **lists: str) -> None:
    """VOC2007 and VOC2012 with an image for each name in the lists."""
    for year in ("VOC2007", "VOC2012"):
        for place in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / year / place).mkdir(parents=True)
    for name, stems in lists.items():
        year, listing = name.split("_")
        (folder / year / "ImageSets/Main" / f"{listing}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            Image.new("RGB", (40, 20)).save(folder / year / f"JPEGImages/{stem}.jpg")
            boxes = OBJECT.format("cat", 0, 1, 1, 20, 20) + OBJECT.format("dog", 1, 2, 2, 9, 9)
            (folder / year / f"Annotations/{stem}.xml").write_text(f"<annotation>{boxes}</annotation>")


LISTS = {
    "VOC2007_train": "a",
    "VOC2007_val": "b",
    "VOC2007_trainval": "ab",
    "VOC2007_test": "cd",
    "VOC2012_train": "a",
    "VOC2012_val": "e",
    "VOC2012_trainval": "ae",
}


def test_a_devkit_with_both_years_trains_on_their_trainval_and_tests_on_the_test_of_2007(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "VOCdevkit"
    write_devkit(folder, **LISTS)
    train, val, notes = read(folder)
    names = [record.file_name.replace("JPEGImages/", "") for record in train.images]
    assert names == ["VOC2007/a.jpg", "VOC2007/b.jpg", "VOC2012/a.jpg", "VOC2012/e.jpg"]
    assert [record.file_name for record in val.images] == [f"VOC2007/JPEGImages/{stem}.jpg" for stem in "cd"]
    assert [record.difficult.tolist() for record in (*train.images, *val.images)] == [[False, True]] * 6
    assert "VOC 07+12: the trainval images of both years train, VOC 2007 test is tested on" in notes


@pytest.mark.parametrize("without", ["VOC2007_test", "VOC2012_trainval"])
def test_a_devkit_with_both_years_and_a_list_missing_says_which(tmp_path: Path, without: str) -> None:
    folder = tmp_path / "VOCdevkit"
    write_devkit(folder, **{name: stems for name, stems in LISTS.items() if name != without})
    year, listing = without.split("_")
    said = refused(folder)
    assert f"there is no {year}/ImageSets/Main/{listing}.txt" in said
    assert ("unpack VOCtest_06-Nov-2007.tar over it" in said) == (listing == "test")


def test_a_devkit_whose_test_images_have_no_annotations_says_what_to_unpack(tmp_path: Path) -> None:
    folder = tmp_path / "VOCdevkit"
    write_devkit(folder, **LISTS)
    for stem in "cd":
        (folder / f"VOC2007/Annotations/{stem}.xml").unlink()
    assert "VOC 2007 test have no annotations; unpack VOCtest_06-Nov-2007.tar over it" in refused(folder)


def test_a_devkit_with_one_year_is_read_by_its_own_lists_and_says_that_the_other_is_missing(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "VOCdevkit"
    write_devkit(folder, **LISTS)
    shutil.rmtree(folder / "VOC2012")
    train, val, notes = read(folder)
    assert [len(train.images), len(val.images)] == [1, 1]
    assert any(note.startswith("VOC2007 alone; with VOC2012 beside it, both train") for note in notes)


@pytest.mark.parametrize(
    "head",
    ["<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>", "<!DOCTYPE annotation>"],
)
def test_xml_with_a_document_type_is_refused(folder: Path, head: str) -> None:
    write_voc(folder, OBJECT.format("cat", 0, 2, 2, 9, 9), head=head)
    assert "train/a.xml: has a document type" in refused(folder)


def test_a_voc_box_that_is_no_number_is_named(folder: Path) -> None:
    write_voc(folder, OBJECT.format("cat", 0, 2, 2, 9, "wide"))
    assert "train/a.xml: object 1: <ymax>: must be a number, got 'wide'" in refused(folder)


# --- YOLO ------------------------------------------------------------------------------------------


def write_yolo(
    folder: Path, lines: str, settings: str = "names: [cat, dog]\ntrain: train\nval: val\n"
) -> None:
    (folder / "data.yaml").write_text(settings)
    for name in ("train/a", "train/b", "val/c"):
        (folder / f"{name}.txt").write_text(lines)


def test_yolo_polygons_become_the_boxes_around_them(folder: Path) -> None:
    write_yolo(folder, "0 0.25 0.5 0.5 0.5\n1 0.1 0.1 0.5 0.2 0.3 0.9\n")
    train, _, notes = read(folder)
    assert boxes(train) == [[[0, 5, 20, 10], [4, 2, 16, 16]]] * 2
    assert notes[0].startswith("polygons, read as the boxes around them: 3 (first: ")


def test_yolo_keypoints_are_left_out_of_the_boxes(folder: Path) -> None:
    settings = "names: [cat]\nkpt_shape: [2, 3]\ntrain: train\nval: val\n"
    write_yolo(folder, "0 0.25 0.5 0.5 0.5 0.9 0.9 2 0.1 0.1 2\n", settings)
    assert boxes(read(folder)[0]) == [[[0, 5, 20, 10]]] * 2


def test_yolo_images_without_a_label_file_are_background(folder: Path) -> None:
    write_yolo(folder, "0 0.25 0.5 0.5 0.5\n")
    (folder / "train" / "b.txt").unlink()
    train, _, notes = read(folder)
    assert boxes(train) == [[[0, 5, 20, 10]], []]
    assert notes == (
        "images without a label file, taken as images without an object: 1 (first: train/b.png)",
    )


def test_yolo_names_may_be_a_mapping_and_a_class_without_boxes_stays(folder: Path) -> None:
    write_yolo(folder, "1 0.5 0.5 0.5 0.5\n", "names: {1: dog, 0: cat}\ntrain: train\nval: val\n")
    train, _, _ = read(folder)
    assert (train.category_ids, train.class_names) == ((0, 1), ("cat", "dog"))
    assert train.images[0].labels.tolist() == [1]


def test_yolo_sizes_are_those_that_a_viewer_shows(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "train" / "a.png", exif=exif)
    write_yolo(folder, "0 0.5 0.5 1 1\n")
    assert boxes(read(folder)[0]) == [[[0, 0, 20, 40]], [[0, 0, 40, 20]]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "a.txt, line 1: class must be 0 to 1, got '2'"),
        ("cat 0.5 0.5 0.1 0.1", "a.txt, line 1: class must be 0 to 1, got 'cat'"),
        ("0 0.5 0.5 0.1", "a.txt, line 1: needs a class and 4 numbers"),
        ("0 0.5 0.5 0.1 nan", "a.txt, line 1: must be a number, got 'nan'"),
        ("0 20 10 4 4", "a.txt, line 1: numbers must be relative to the image"),
        ("0 0.5 0.5 -0.1 0.1", "a.txt, line 1: width and height must not be negative"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "a.txt, line 1: a polygon needs pairs of numbers"),
    ],
)
def test_a_line_that_is_no_box_is_named(folder: Path, line: str, message: str) -> None:
    write_yolo(folder, line)
    assert message in refused(folder)


# --- LabelMe, VIA, CVAT ----------------------------------------------------------------------------


def write_labelme(folder: Path, *shapes: object) -> None:
    for name in ("train/a", "val/c"):
        value = {"shapes": shapes, "imagePath": f"..\\{name}.png", "imageWidth": None, "imageHeight": None}
        (folder / f"{name}.json").write_text(json.dumps(value))


def test_labelme_shapes_become_the_boxes_around_them(folder: Path) -> None:
    write_labelme(
        folder,
        {"label": "cat", "shape_type": "rectangle", "points": [[20, 10], [5, 2]]},
        {"label": "cat", "shape_type": "polygon", "points": [[1, 1], [9, 3], [4, 8]]},
        {"label": "dog", "shape_type": "circle", "points": [[10, 10], [13, 14]]},
        {"label": "dog", "shape_type": "point", "points": [[10, 10]]},
    )
    train, _, notes = read(folder)
    assert boxes(train) == [[[5, 2, 15, 8], [1, 1, 8, 7], [5, 5, 10, 10]]]
    assert [note.split(" (first")[0] for note in notes] == [
        "shapes of kind polygon, read as the boxes around them: 2",
        "shapes of kind circle, read as the boxes around them: 2",
        "shapes without a box ('point'), left out: 2",
        "images without a JSON file, left out: 1",
    ]


def write_via(folder: Path, wrap: Callable[[object], object], *regions: object) -> None:
    for name, path in (("train", "a.png"), ("val", "c.png")):
        value = {f"{path}99": {"filename": path, "size": 99, "regions": list(regions)}}
        (folder / name / "via.json").write_text(json.dumps(wrap(value)))


@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: {"_via_settings": {}, "_via_img_metadata": value}]
)
def test_via_regions_become_boxes(folder: Path, wrap: Callable[[object], object]) -> None:
    polygon = {"name": "polygon", "all_points_x": [1, 9, 4], "all_points_y": [1, 3, 8]}
    circle = {"name": "circle", "cx": 10, "cy": 10, "r": 5}
    write_via(
        folder,
        wrap,
        {"shape_attributes": polygon, "region_attributes": {"kind": "cat", "note": ""}},
        {"shape_attributes": circle, "region_attributes": {"kind": {"dog": True, "cat": False}}},
    )
    train, _, _ = read(folder)
    assert boxes(train) == [[[1, 1, 8, 7], [5, 5, 10, 10]]]
    assert [train.class_names[label] for label in train.images[0].labels] == ["cat", "dog"]


def test_via_regions_without_attributes_are_of_one_class(folder: Path) -> None:
    rectangle = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
    write_via(folder, lambda value: value, {"shape_attributes": rectangle, "region_attributes": {}})
    train, _, notes = read(folder)
    assert train.class_names == ("object",)
    assert "no region has an attribute: all are of one class, 'object'" in notes


def test_via_attributes_that_could_both_be_the_class_are_refused(folder: Path) -> None:
    rectangle = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
    attributes = {"colour": "red", "shape": "round"}
    write_via(folder, lambda value: value, {"shape_attributes": rectangle, "region_attributes": attributes})
    assert "every region has 'colour', 'shape'. Name one of them 'class'" in refused(folder)


def test_cvat_polygons_and_turned_boxes_become_the_boxes_around_them(folder: Path) -> None:
    shapes = (
        '<polygon label="cat" points="1,1;9,3;4,8"/><points label="cat" points="1,1"/>'
        '<box label="dog" xtl="10" ytl="8" xbr="20" ybr="12" rotation="90"/>'
    )
    images = "".join(
        f'<image name="{name}" width="40" height="20">{shapes}</image>' for name in ("a.png", "c.png")
    )
    (folder / "annotations.xml").write_text(f"<annotations>{images}</annotations>")
    train, _, notes = read(folder)
    assert boxes(train) == [[[1, 1, 8, 7], [13, 5, 4, 10]]]
    assert any(note.startswith("shapes without a box (<points>), left out: 2") for note in notes)
