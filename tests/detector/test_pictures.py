from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector import pictures
from detector.pictures import (
    CLASS_COLOURS,
    DETECTION_COLOUR,
    TRUTH_COLOUR,
    contact_sheet,
    draw_by_class,
    draw_detections,
)

NOTHING = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int))
GREY = np.full((60, 100, 3), 128, dtype=np.uint8)
BOX = np.array([[20.0, 30.0, 70.0, 50.0]])
LABEL = np.array([1])
NAMES = ("square", "ring")


def has(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == colour).all(axis=-1).any())


def test_a_picture_is_enlarged_and_the_image_itself_is_not_drawn_on() -> None:
    picture = draw_detections(GREY, BOX, np.array([0.9]), LABEL, BOX, LABEL, NAMES, scale=3)
    assert picture.size == (300, 180)
    assert (GREY == 128).all()


def test_a_detection_is_drawn_at_its_place_times_the_scale() -> None:
    picture = draw_detections(GREY, BOX, np.array([0.9]), LABEL, *NOTHING[::2], NAMES, scale=3)
    assert picture.getpixel((3 * 70, 120)) == DETECTION_COLOUR
    assert not has(picture, TRUTH_COLOUR)


def test_detections_below_the_limit_are_left_out() -> None:
    picture = draw_detections(GREY, BOX, np.array([0.2]), LABEL, BOX, LABEL, NAMES)
    assert has(picture, TRUTH_COLOUR)
    assert not has(picture, DETECTION_COLOUR)


def test_boxes_at_or_beyond_the_edge_and_without_area_are_drawn() -> None:
    boxes = np.array([[-20.0, -5, 130, 80], [99, 59, 100, 60], [50, 20, 50, 20]])
    scores = np.array([0.9, 0.8, 0.7])
    picture = draw_detections(GREY, boxes, scores, np.zeros(3, int), boxes, np.zeros(3, int), NAMES)
    assert has(picture, DETECTION_COLOUR)


def test_an_image_with_nothing_on_it_stays_as_it_was() -> None:
    picture = draw_detections(GREY, *NOTHING, *NOTHING[::2], NAMES)
    np.testing.assert_array_equal(np.asarray(picture), GREY)


def test_a_box_has_the_colour_of_its_class_and_colours_start_again(tmp_path: Path) -> None:
    for label in (0, 3, len(CLASS_COLOURS)):
        picture = draw_by_class(GREY, BOX, np.array([label]), ["tag"], scale=1.5)
        assert picture.size == (150, 90)
        assert picture.getpixel((105, 70)) == CLASS_COLOURS[label % len(CLASS_COLOURS)]
    assert (GREY == 128).all()


def test_a_small_box_is_drawn_over_a_large_one() -> None:
    boxes = np.array([[20.0, 30, 40, 50], [20, 20, 90, 50]])
    picture = draw_by_class(GREY, boxes, np.array([0, 1]), ["", ""])
    assert picture.getpixel((20, 40)) == CLASS_COLOURS[0]
    assert picture.getpixel((90, 40)) == CLASS_COLOURS[1]


def test_a_dashed_box_alternates_with_ink() -> None:
    solid = draw_by_class(GREY, BOX, LABEL, [""])
    dashed = draw_by_class(GREY, BOX, LABEL, [""], dashed=np.array([True]))
    edges = [
        {picture.getpixel((x, 50)) for x in range(22, 68)}  # of the lower side
        for picture in (solid, dashed)
    ]
    assert edges[0] == {CLASS_COLOURS[1]}
    assert len(edges[1]) == 2 and CLASS_COLOURS[1] in edges[1]


def test_a_tag_covers_no_small_box_and_no_other_tag_where_there_is_room() -> None:
    image = np.full((300, 400, 3), 128, dtype=np.uint8)
    boxes = np.array(
        [[100.0, 100, 300, 200], [105, 70, 140, 98]]
    )  # the second where the first's tag would be
    picture = draw_by_class(image, boxes, np.array([0, 2]), ["large", "small"])
    inside = np.asarray(picture)[75:95, 110:135]
    assert (inside == 128).all()
    crowded = draw_by_class(GREY, np.repeat(BOX, 50, axis=0), np.repeat(LABEL, 50), ["a tag"] * 50)
    assert crowded.size == (100, 60)


def test_nothing_to_draw_leaves_the_image_as_it_was() -> None:
    picture = draw_by_class(GREY, NOTHING[0], NOTHING[2], [])
    np.testing.assert_array_equal(np.asarray(picture), GREY)


def test_a_row_is_only_as_high_as_its_highest_picture_and_a_note_replaces_the_legend(tmp_path: Path) -> None:
    images = [Image.new("RGB", size) for size in ((50, 50), (50, 200))]
    for name, columns, note in (("row", 2, None), ("column", 1, "dashed: crowds")):
        contact_sheet(images, columns, tmp_path / f"{name}.png", "two", note)
    row, column = (Image.open(tmp_path / f"{name}.png") for name in ("row", "column"))
    assert 50 <= column.height - row.height < 100
    assert has(row.convert("RGB"), DETECTION_COLOUR)
    assert not has(column.convert("RGB"), DETECTION_COLOUR)


def test_a_contact_sheet_holds_every_picture_of_any_size(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (1, 2, 3)]
    sizes = [(200, 100), (120, 180), (90, 90)]
    images = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    path = tmp_path / "figures" / "sheet.png"
    contact_sheet(images, 2, path, "three of them")
    sheet = np.asarray(Image.open(path))
    for (width, height), colour in zip(sizes, colours, strict=True):
        assert (sheet == colour).all(axis=-1).sum() == width * height
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_a_long_title_is_not_cut_off(tmp_path: Path) -> None:
    for name, title in (
        ("a", "short"),
        ("b", "a title that is far longer than one small picture is wide " * 2),
    ):
        contact_sheet([Image.new("RGB", (50, 50))], 1, tmp_path / f"{name}.png", title)
    assert Image.open(tmp_path / "b.png").width > Image.open(tmp_path / "a.png").width


def test_a_contact_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], 3, tmp_path / "sheet.png", "empty")


def test_letters_that_pillows_own_font_lacks_are_drawn_with_one_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drawn(name: str) -> Image.Image:
        pictures._font.cache_clear()
        return draw_by_class(GREY, BOX, np.array([0]), [name], 3)

    matplotlib = pytest.importorskip("matplotlib")
    wider = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(pictures, "_WIDER_FONTS", ("no such font.ttf",))
    boxes, plain = drawn("Ł"), drawn("ring")
    assert boxes == drawn("Ж"), "both are the box of a letter that is not there"
    monkeypatch.setattr(pictures, "_WIDER_FONTS", ("no such font.ttf", str(wider)))
    assert boxes != drawn("Ł") != drawn("Ж")
    assert plain == drawn("ring")
