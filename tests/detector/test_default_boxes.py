"""Anchors of SSD and RefineDet: corners by hand."""

import pytest
import torch

from detector.geometry.default_boxes import default_boxes
from detector.presets import REFINEDET320, REFINEDET512, SSD300, SSD512

ROOT2, ROOT3 = 2**0.5, 3**0.5


def box(x: float, y: float, width: float, height: float) -> list[float]:
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize(
    ("detector", "count"),
    [(SSD300, 8732), (SSD512, 24564), (REFINEDET320, 6375), (REFINEDET512, 16320)],
    ids=["SSD300", "SSD512", "RefineDet320", "RefineDet512"],
)
def test_there_are_as_many_as_the_papers_say(detector, count) -> None:  # type: ignore[no-untyped-def]
    boxes = default_boxes(detector)
    assert boxes.shape == (count, 4) and boxes.dtype == torch.float32


def test_refinedets_first_cell_has_a_square_a_wide_and_a_tall_box_of_one_area_not_clipped() -> None:
    wide, tall = 32 * ROOT2, 32 / ROOT2
    expected = [[-12.0, -12, 20, 20], box(4, 4, wide, tall), box(4, 4, tall, wide)]
    torch.testing.assert_close(default_boxes(REFINEDET320)[:3], torch.tensor(expected))
    assert default_boxes(REFINEDET320)[0].tolist() == [-12, -12, 20, 20]


def test_cells_follow_each_other_along_x_then_y_then_the_levels() -> None:
    boxes = default_boxes(REFINEDET320)
    second, second_row, second_level, last = boxes[3], boxes[3 * 40], boxes[3 * 40**2], boxes[-3]
    assert second.tolist() == box(12, 4, 32, 32)
    assert second_row.tolist() == box(4, 12, 32, 32)
    assert second_level.tolist() == box(8, 8, 64, 64)
    assert last.tolist() == box(288, 288, 256, 256)  # cell (4, 4) of stride 64


def test_ssds_cell_also_has_a_square_on_the_way_to_the_next_level() -> None:
    boxes = default_boxes(SSD300)
    between = (30 * 60) ** 0.5
    expected = [
        box(4, 4, 30, 30),
        box(4, 4, between, between),
        box(4, 4, 30 * ROOT2, 30 / ROOT2),
        box(4, 4, 30 / ROOT2, 30 * ROOT2),
    ]
    torch.testing.assert_close(boxes[:4], torch.tensor(expected))


def test_the_levels_in_the_middle_have_the_ratio_of_three_too() -> None:
    first = default_boxes(SSD300)[4 * 38**2 :][:6]
    between = (60 * 111) ** 0.5
    sizes = [(60, 60), (between, between)]
    sizes += [(60 * ROOT2, 60 / ROOT2), (60 / ROOT2, 60 * ROOT2), (60 * ROOT3, 60 / ROOT3)]
    expected = [box(8, 8, w, h) for w, h in [*sizes, (60 / ROOT3, 60 * ROOT3)]]
    torch.testing.assert_close(first, torch.tensor(expected))


def test_the_rounded_strides_of_ssd300_are_the_scripts() -> None:
    boxes = default_boxes(SSD300)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(centers[-4], torch.tensor([150.0, 150]))  # 1 x 1 cells of 300
    torch.testing.assert_close(centers[-8], torch.tensor([250.0, 250]))  # 3 x 3 cells of 100
    assert centers[4 * 38**2 - 1].tolist() == pytest.approx([300.0, 300.0])  # 38 cells of 8 are 304 px
