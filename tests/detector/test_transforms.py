from pathlib import Path

import numpy as np
import pytest

from detector.geometry.transforms import flip_boxes, resized_size, scale_boxes, xywh_to_xyxy


@pytest.fixture(scope="module")
def golden(authors: Path) -> dict[str, np.ndarray]:
    with np.load(authors / "data_lr.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (640, 1333), (1800, 3000)])
def test_resized_sizes_are_the_references(golden: dict[str, np.ndarray], short: int, long: int) -> None:
    sizes = [resized_size(w, h, short, long) for w, h in golden["orig_wh"].tolist()]
    np.testing.assert_array_equal(sizes, golden[f"resized_hw_{short}_{long}"])


def test_an_image_of_the_size_asked_for_keeps_it() -> None:
    assert resized_size(96, 96, 96, 96) == (96, 96)
    assert resized_size(128, 96, 96, 128) == (96, 128)


def test_a_very_long_image_keeps_at_least_one_row() -> None:
    # 10,000 x 1 to a long side of at most 100: the short side would round to 0.
    height, width = resized_size(10_000, 1, 96, 100)
    assert height == 1
    assert width > 1


def test_boxes_scale_flip_and_convert_as_in_the_reference(golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(flip_boxes(golden["flip_in"], 799), golden["flip_out_w799"], rtol=1e-6)
    corners = xywh_to_xyxy(golden["xywh_in"])
    np.testing.assert_allclose(corners, golden["xywh_to_xyxy"], rtol=1e-6)
    scaled = scale_boxes(corners, (250, 300), (800, 960))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, golden["boxes_resized_300x250_to_960x800"], rtol=1e-6)


def test_each_axis_scales_by_its_own_factor() -> None:
    # 10 x 20 (w x h) becomes 20 x 60: x doubles, y triples.
    np.testing.assert_array_equal(
        scale_boxes(np.array([[1.0, 2, 3, 4]]), (20, 10), (60, 20)), [[2, 6, 6, 12]]
    )


def test_flipping_twice_gives_the_boxes_back() -> None:
    boxes = np.array([[1.0, 2, 30, 40], [0, 0, 96, 96]])
    np.testing.assert_array_equal(flip_boxes(flip_boxes(boxes, 96), 96), boxes)
