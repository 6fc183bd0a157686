"""SSD and RefineDet as configs: levels and numbers of boxes by hand, and what is refused."""

from dataclasses import replace

import pytest

from detector.config import (
    VGG,
    AnyDetector,
    Data,
    Extra,
    Level,
    Schedule,
    TransferConnection,
    Trial,
)
from detector.presets import FASTER_RCNN, REFINEDET320, REFINEDET512, SSD300, SSD512, shrunk, shrunk_two_stage
from detector.serialization import from_dict, to_dict

PRESETS = {
    "SSD300": SSD300,
    "SSD512": SSD512,
    "RefineDet320": REFINEDET320,
    "RefineDet512": REFINEDET512,
    "a small SSD": shrunk(SSD300, 2, 16),
    "a small RefineDet": shrunk(REFINEDET320, 1, 8),
}

BOXES = {
    "SSD300": 4 * 38**2 + 6 * (19**2 + 10**2 + 5**2) + 4 * (3**2 + 1),
    "SSD512": 4 * 64**2 + 6 * (32**2 + 16**2 + 8**2 + 4**2) + 4 * (2**2 + 1),
    "RefineDet320": 3 * (40**2 + 20**2 + 10**2 + 5**2),
    "RefineDet512": 3 * (64**2 + 32**2 + 16**2 + 8**2),
}


def test_the_papers_numbers_of_boxes_are_those_of_their_grids() -> None:
    assert list(BOXES.values()) == [8732, 24564, 6375, 16320]


@pytest.mark.parametrize("name", BOXES)
def test_a_config_counts_its_boxes(name: str) -> None:
    assert PRESETS[name].num_anchors == BOXES[name]


@pytest.mark.parametrize("halvings", [1, 2])
@pytest.mark.parametrize("name", BOXES)
def test_a_shrunk_detector_keeps_its_cells_and_its_anchors_in_strides(name: str, halvings: int) -> None:
    paper, small = PRESETS[name], shrunk(PRESETS[name], halvings, 16)
    assert small.input_size == paper.input_size // 2**halvings
    assert small.sides == paper.sides and small.num_anchors == BOXES[name]
    for own, level in zip(small.levels, paper.levels, strict=True):
        assert own.size / own.stride == pytest.approx(level.size / level.stride)
        assert own.num_per_location == level.num_per_location


def test_ssd_has_the_sizes_of_its_scripts_for_voc() -> None:
    assert [level.size for level in SSD300.levels] == [30, 60, 111, 162, 213, 264]
    assert [level.next_size for level in SSD300.levels] == [60, 111, 162, 213, 264, 315]
    assert [level.size for level in SSD512.levels] == [35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8]


def test_refinedets_anchors_are_four_strides() -> None:
    assert [(level.stride, level.size) for level in REFINEDET320.levels] == [
        (8, 32),
        (16, 64),
        (32, 128),
        (64, 256),
    ]


@pytest.mark.parametrize("detector", [*PRESETS.values(), FASTER_RCNN, shrunk_two_stage(FASTER_RCNN, 1, 8)])
def test_a_preset_comes_back_equal_from_plain_data(detector: AnyDetector) -> None:
    trial = Trial(detector, Schedule(), Data("0" * 12), seed=1)
    assert from_dict(to_dict(trial), Trial) == trial


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": 300}, r"a TCB needs levels of half the size .*\(38, 19, 10, 5\)"),
        ({"levels": ()}, "at least one"),
        ({"levels": (Level(Extra(8, 8), 8, 16),)}, "levels of the backbone must stand before extra ones"),
        ({"match_iou": 0.0}, "match_iou"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(REFINEDET320, **change)  # type: ignore[arg-type]


def test_an_input_too_small_for_the_last_level_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        replace(SSD300, input_size=128)


def test_a_network_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="300 is not divisible by 8"):
        shrunk(SSD300, 3, 8)


def test_an_absent_block_leaves_out_its_pooling() -> None:
    assert VGG().sides(320) == {"conv4": 40, "conv5": 20, "fc7": 20}
    assert VGG((0, 1, 1, 1, 1)).sides(160) == {"conv4": 40, "conv5": 20, "fc7": 20}
    assert VGG(pool5_stride=2).sides(320)["fc7"] == 10


def test_a_tcb_is_a_config_of_its_own() -> None:
    assert replace(REFINEDET320, refinement=None).transfer == TransferConnection(256)
