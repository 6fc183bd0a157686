from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from detector.geometry.boxes import area, clip, flip_horizontal, pairwise_iou, xywh_to_xyxy, xyxy_to_xywh

CORNER = st.integers(-20, 60)
BOX = st.tuples(CORNER, CORNER, st.integers(0, 40), st.integers(0, 40))
BOXES = st.lists(BOX, max_size=5).map(
    lambda rows: xywh_to_xyxy(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))
)


@pytest.fixture(scope="module")
def golden(authors: Path) -> dict[str, Tensor]:
    with np.load(authors / "coders_iou.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_iou_and_area_equal_the_reference_bit_for_bit(golden: dict[str, Tensor]) -> None:
    gts = golden["gts"][:40]
    assert torch.equal(pairwise_iou(golden["anchors"][:40], gts), golden["iou40x40"])
    assert torch.equal(area(gts), golden["area"])


def test_flip_and_xywh_equal_the_reference(authors: Path) -> None:
    with np.load(authors / "data_lr.npz") as arrays:
        golden = {name: torch.from_numpy(arrays[name]) for name in arrays}
    assert_close(flip_horizontal(golden["flip_in"], 799), golden["flip_out_w799"])
    assert_close(xywh_to_xyxy(golden["xywh_in"]), golden["xywh_to_xyxy"])


def test_iou_of_boxes_computed_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 4.0]])
    # The same box; 1 of 4 + 4 - 1 pixels; only a side in common; 2 of 4 + 4 - 2.
    assert_close(pairwise_iou(a, b), torch.tensor([[1.0, 1 / 7, 0.0, 1 / 3]]))


def test_iou_of_boxes_without_area_is_zero_and_not_nan() -> None:
    empty = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert pairwise_iou(empty, empty).item() == 0


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_between_zero_and_one(a: Tensor, b: Tensor) -> None:
    iou = pairwise_iou(a, b)
    assert iou.shape == (len(a), len(b))
    assert torch.equal(iou, pairwise_iou(b, a).T)
    assert ((iou >= 0) & (iou <= 1)).all()


def test_iou_broadcasts_leading_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    a = xywh_to_xyxy(torch.rand(3, 5, 4, generator=generator))
    b = xywh_to_xyxy(torch.rand(7, 4, generator=generator))
    together = pairwise_iou(a, b)
    assert torch.equal(together, torch.stack([pairwise_iou(boxes, b) for boxes in a]))


@given(BOXES)
def test_xywh_and_back_changes_nothing(boxes: Tensor) -> None:
    assert torch.equal(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)


@given(BOXES)
def test_flipping_twice_changes_nothing_and_keeps_corners_in_order(boxes: Tensor) -> None:
    flipped = flip_horizontal(boxes, 50)
    assert torch.equal(flip_horizontal(flipped, 50), boxes)
    assert (flipped[:, 2] >= flipped[:, 0]).all()


@given(BOXES)
def test_clipped_boxes_lie_in_the_image_and_a_box_outside_has_no_area(boxes: Tensor) -> None:
    clipped = clip(boxes, height=30, width=40)
    assert (clipped >= 0).all()
    assert (clipped <= torch.tensor([40, 30, 40, 30])).all()
    outside = (boxes[:, 0] >= 40) | (boxes[:, 1] >= 30) | (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
    assert (area(clipped)[outside] == 0).all()
