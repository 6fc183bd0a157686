import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from detector.geometry.box_coders import BoxCoder, Coder, PointCoder

CODERS: list[Coder] = [BoxCoder(), PointCoder()]


@pytest.fixture(scope="module")
def golden(authors: Path) -> dict[str, Tensor]:
    with np.load(authors / "coders_iou.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.mark.parametrize("prefix", ["retina", "atss_box"])
def test_box_coder_equals_the_reference(golden: dict[str, Tensor], prefix: str) -> None:
    coder, anchors, strides = BoxCoder(), golden["anchors"], torch.ones(200)
    encoded = coder.encode(golden["gts"], anchors, strides)
    assert_close(encoded, golden[f"{prefix}_encode"], rtol=1e-5, atol=1e-6)
    decoded = coder.decode(golden["deltas"], anchors, strides)
    assert_close(decoded, golden[f"{prefix}_decode"], rtol=1e-5, atol=1e-6)


def test_point_coder_equals_the_reference(golden: dict[str, Tensor]) -> None:
    # The reference takes the stride from the width of an 8S anchor.
    coder, anchors = PointCoder(), golden["anchors"]
    strides = (anchors[:, 2] - anchors[:, 0]) / 8
    assert_close(
        coder.encode(golden["gts"], anchors, strides), golden["atss_point_encode"], rtol=1e-5, atol=0
    )
    assert_close(
        coder.decode(golden["ltrb"], anchors, strides), golden["atss_point_decode"], rtol=1e-5, atol=0
    )


def test_encoding_computed_by_hand() -> None:
    anchor, stride = torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([2.0])
    box = torch.tensor([[4.0, 0.0, 20.0, 32.0]])
    # Centre (12, 16) from (8, 8): 10 * 4 / 16 and 10 * 8 / 16; sides 16 and 32: 5 ln 1 and 5 ln 2.
    assert_close(BoxCoder().encode(box, anchor, stride), torch.tensor([[2.5, 5.0, 0.0, 5 * math.log(2)]]))
    assert_close(PointCoder().encode(box, anchor, stride), torch.tensor([[2.0, 4.0, 6.0, 12.0]]))


@pytest.mark.parametrize("coder", CODERS, ids=["box", "point"])
@given(st.lists(st.tuples(*[st.integers(1, 400)] * 4), min_size=1, max_size=4))
def test_decoding_undoes_encoding(coder: Coder, rows: list[tuple[int, ...]]) -> None:
    boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=torch.float32)
    anchors = torch.tensor([[10.0, 20.0, 74.0, 84.0]]).expand(len(rows), 4)
    strides = torch.full((len(rows),), 8.0)
    deltas = coder.encode(boxes, anchors, strides)
    assert_close(coder.decode(deltas, anchors, strides), boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("coder", CODERS, ids=["box", "point"])
def test_leading_axes_broadcast_over_one_set_of_anchors(coder: Coder) -> None:
    generator = torch.Generator().manual_seed(0)
    low, size = torch.rand(2, 3, 5, 2, generator=generator) * 50 + 1
    boxes, anchors, strides = (
        torch.cat((low, low + size), dim=-1),
        torch.tensor([[0.0, 0.0, 9, 9]] * 5),
        torch.ones(5),
    )
    deltas = coder.encode(boxes, anchors, strides)
    assert deltas.shape == (3, 5, 4)
    assert_close(deltas[1], coder.encode(boxes[1], anchors, strides))
    assert_close(coder.decode(deltas, anchors, strides)[1], coder.decode(deltas[1], anchors, strides))


def test_an_untrained_head_starts_at_the_size_of_the_anchor() -> None:
    anchors, strides = torch.tensor([[-28.0, -28.0, 36.0, 36.0]]), torch.tensor([8.0])
    for coder in CODERS:
        start = coder.activate(torch.full((1, 4), coder.initial_bias))
        assert_close(coder.decode(start, anchors, strides), anchors)


def test_sides_stop_growing_so_that_no_output_overflows() -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0.0, 1e4, 1e4]]), anchors, torch.ones(1))
    assert_close(decoded, torch.tensor([[5 - 312.5, 5 - 312.5, 5 + 312.5, 5 + 312.5]]))


def test_only_distances_are_made_non_negative() -> None:
    raw = torch.tensor([-1.0, 2.0])
    assert PointCoder().activate(raw).tolist() == [0.0, 2.0]
    assert BoxCoder().activate(raw).tolist() == [-1.0, 2.0]
