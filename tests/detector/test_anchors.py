import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detector.config import Anchors
from detector.geometry.anchors import Level, anchor_grid

STRIDES = (8, 16, 32, 64, 128)
SIZES_96X128 = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
NINE = Anchors(scale=4, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))


def test_cell_anchors_equal_the_reference(authors: Path) -> None:
    names = json.loads((authors / "anchors.json").read_text())
    with np.load(authors / "anchors.npz") as golden:
        for name, settings in names.items():
            config = Anchors(
                scale=settings["sizes"][0] / STRIDES[0],
                scales_per_octave=settings["scales_per_octave"],
                ratios=tuple(settings["ratios_h_over_w"]),
            )
            cells = torch.stack(anchor_grid(config, STRIDES, [(1, 1)] * 5, "cpu").cells)
            assert torch.equal(cells, torch.from_numpy(golden[f"cell__{name}"])), name


@pytest.mark.parametrize(
    ("config", "name"), [(Anchors(), "grid_96x128_S8"), (NINE, "grid_96x128_retinanet9")]
)
def test_all_anchors_of_an_image_equal_the_reference(authors: Path, config: Anchors, name: str) -> None:
    grid = anchor_grid(config, STRIDES, SIZES_96X128, "cpu")
    with np.load(authors / "anchors.npz") as golden:
        assert torch.equal(grid.boxes_A4, torch.from_numpy(golden[name]))
        points = torch.from_numpy(golden["fcos_points_96x128"])
    assert torch.equal(grid.centers_A2, points.repeat_interleave(config.num_per_location, dim=0))


def test_anchors_are_ordered_by_level_then_row_then_column_then_shape() -> None:
    grid = anchor_grid(NINE, STRIDES, SIZES_96X128, "cpu")
    level, row, column, shape = 1, 4, 5, 7
    index = 12 * 16 * 9 + (row * 8 + column) * 9 + shape
    shift = torch.tensor([column, row, column, row]) * 16.0
    assert_close(grid.boxes_A4[index], grid.cells[level][shape] + shift)
    assert grid.centers_A2[index].tolist() == [(column + 0.5) * 16, (row + 0.5) * 16]
    assert grid.strides_A[index] == 16


def test_levels_tile_all_anchors() -> None:
    grid = anchor_grid(NINE, STRIDES, SIZES_96X128, "cpu")
    assert grid.levels[1] == Level(stride=16, height=6, width=8, start=1728, num_per_location=9)
    ends = [level.start + level.num_anchors for level in grid.levels]
    assert [level.start for level in grid.levels] == [0, *ends[:-1]]
    assert ends[-1] == len(grid.boxes_A4) == len(grid.centers_A2) == len(grid.strides_A)


def test_shapes_at_small_strides_are_those_of_the_paper_in_proportion() -> None:
    """Rounding on a 2 x 2 base window would leave 3 x 2 for the ratio 0.5 of 2.83 x 1.41."""
    config = Anchors(ratios=(0.25, 0.5, 1.0, 2.0, 4.0), scales_per_octave=3)
    paper = anchor_grid(config, STRIDES, [(1, 1)] * 5, "cpu")
    small = anchor_grid(config, (2, 4, 8, 16, 32), [(1, 1)] * 5, "cpu")
    for cell, cell_small in zip(paper.cells, small.cells, strict=True):
        assert_close(cell_small * 4, cell)


def test_a_square_anchor_has_exactly_scale_times_stride_as_its_side() -> None:
    grid = anchor_grid(Anchors(scale=5), (2, 4, 8, 16, 32), SIZES_96X128, "cpu")
    sides = grid.boxes_A4[:, 2:] - grid.boxes_A4[:, :2]
    assert torch.equal(sides, (5 * grid.strides_A)[:, None].expand(-1, 2))


def test_equal_arguments_share_one_grid_whatever_their_sequence_type() -> None:
    first = anchor_grid(Anchors(), STRIDES, SIZES_96X128, "cpu")
    assert anchor_grid(Anchors(), list(STRIDES), list(SIZES_96X128), torch.device("cpu")) is first


def test_a_grid_first_made_for_inference_serves_training() -> None:
    with torch.inference_mode():
        grid = anchor_grid(Anchors(scale=3.25), STRIDES, SIZES_96X128, "cpu")
    weight = torch.ones(1, requires_grad=True)
    (weight * grid.boxes_A4).sum().backward()
    assert weight.grad is not None


def test_strides_and_sizes_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 for 5"):
        anchor_grid(Anchors(), STRIDES, [(1, 1)], "cpu")
