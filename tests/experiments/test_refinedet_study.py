"""The RefineDet study says what the paper says, and each row changes what it names."""

from itertools import pairwise

import pytest

from ablation.claim import Better, Chain, references
from detector.config import AnchorRefinement, SingleShot, Trial
from detector.presets import REFINEDET320, REFINEDET512, SSD300, SSD512
from experiments.detection.recipe import Recipe
from experiments.detection.small import Scale, size
from experiments.refinedet.claims import CLAIMS, fewer_boxes
from experiments.refinedet.presets import ABLATION
from experiments.refinedet.profiles import SHAPES, SMOKE
from experiments.refinedet.study import study
from experiments.refinedet.tables import TABLES

SYSTEMS = {
    "YOLO": (63.4, 45, 98, 448),
    "YOLOv2": (78.6, 40, 845, 544),
    "Faster R-CNN": (73.2, 7, 6000, 600),
    "SSD300*": (77.2, 46, 8732, 300),
    "SSD512*": (79.8, 19, 24564, 512),
    "RefineDet320": (80.0, 40, 6375, 320),
    "RefineDet512": (81.8, 24, 16320, 512),
}
"""The paper's Table 1 and the slides: mAP, images a second on a Titan X, boxes, input."""

PARTS = {
    "RefineDet320": ((True, True, True), 80.0),
    "without filtering": ((False, True, True), 79.5),
    "without filtering, cascade": ((False, False, True), 77.3),
    "without filtering, cascade, TCB": ((False, False, False), 76.2),
}
"""The paper's Table 2 (Sec. 5.1): check marks and mAP."""


def test_every_number_beside_a_row_is_the_papers() -> None:
    systems, parts = TABLES
    assert {row.label: tuple(cell.paper for cell in row.cells) for row in systems.rows} == SYSTEMS
    assert {row.label: (row.headers[1:], row.cells[0].paper) for row in parts.rows} == PARTS


def test_nine_rows_are_eight_trainings_and_two_rows_are_reported() -> None:
    variants = {cell.variant for table in TABLES for row in table.trained for cell in row.cells}
    assert len(variants) == len({variant.training for variant in variants if variant}) == 8
    assert [row.label for row in TABLES[0].rows if row.source] == ["YOLO", "YOLOv2"]


def test_neighbouring_columns_of_table_2_differ_in_one_part() -> None:
    changed = [
        [name for name in ("backbone", "levels", "refinement", "transfer", "match_iou", "input_size")
         if getattr(before, name) != getattr(after, name)]
        for before, after in pairwise(ABLATION.values())
    ]  # fmt: skip
    assert changed == [["refinement"], ["refinement"], ["refinement", "transfer"]]
    whole, unfiltered, uncascaded, head = (detector.refinement for detector in ABLATION.values())
    assert (whole, head) == (AnchorRefinement(objectness=0.01), None)
    assert unfiltered == AnchorRefinement(objectness=0.0)
    assert uncascaded == AnchorRefinement(objectness=0.0, cascade=False), "the ARM is still trained"


def test_the_paper_itself_supports_each_claim_of_its_tables() -> None:
    whole = study()
    for claim in CLAIMS:
        reported = [whole.cell(ref).paper or 0.0 for ref in references(claim)]
        if isinstance(claim, Better):
            assert reported[0] > reported[1], claim.id
        elif isinstance(claim, Chain):
            assert all(before < after for before, after in pairwise(reported)), claim.id


def test_the_slides_gain_of_two_points_and_five_images_a_second_is_that_of_the_large_input() -> None:
    def gain(ours: str, theirs: str) -> tuple[float, float]:
        return round(SYSTEMS[ours][0] - SYSTEMS[theirs][0], 1), SYSTEMS[ours][1] - SYSTEMS[theirs][1]

    assert gain("RefineDet512", "SSD512*") == (2.0, 5)
    assert gain("RefineDet320", "SSD300*") == (2.8, -6)


@pytest.mark.parametrize("scale", [SHAPES, SMOKE], ids=lambda scale: scale.name)
@pytest.mark.parametrize(
    "paper", [SSD300, SSD512, REFINEDET320, REFINEDET512], ids=lambda d: str(d.input_size)
)
def test_a_small_system_has_the_papers_boxes_and_a_quarter_of_its_input(
    scale: Scale, paper: SingleShot
) -> None:
    small = scale.networks.small(paper, 6)
    assert isinstance(small, SingleShot)
    assert (small.num_anchors, small.input_size * 4) == (paper.num_anchors, paper.input_size)


def test_the_claim_on_boxes_counts_those_of_the_profile() -> None:
    class Small:
        def trial(self, training: Recipe, seed: int) -> Trial:
            return Trial(
                SMOKE.networks.small(training.detector, 6), SMOKE.schedule, size(SMOKE, own=False), seed
            )

    result = fewer_boxes(Small())  # type: ignore[arg-type]
    assert result.holds
    assert result.detail == "6,375 against 8,732; 16,320 against 24,564"
