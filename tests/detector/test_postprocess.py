"""Detections against hand-made scenes, naive loops and the paper authors' outputs."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.config import Anchors, Evaluation, MultiScale, ScalePass
from detector.evaluation import postprocess
from detector.evaluation.postprocess import (
    Detections,
    merge_passes,
    multi_scale_detect,
    of_area,
    soft_vote,
    suppress,
)
from detector.geometry.anchors import AnchorGrid, anchor_grid
from detector.geometry.box_coders import BoxCoder, Coder, PointCoder
from detector.geometry.boxes import pairwise_iou
from detector.model.candidates import dense_candidates
from detector.outputs import Candidates, Outputs

COLD = -20.0
"""A logit whose probability is far below every threshold."""


def scene(num_classes: int = 2, centerness: bool = True, cells: int = 4) -> Outputs:
    """One image of `cells` x `cells` points of stride 8, nothing in it, every box 16 px wide."""
    grid = anchor_grid(Anchors(), (8,), ((cells, cells),), "cpu")
    shape = (1, cells * cells)
    ctr = torch.zeros(shape) if centerness else None
    return Outputs(torch.full((*shape, num_classes), COLD), torch.ones(*shape, 4), ctr, grid)


def detect(
    outputs: Outputs, sizes: Tensor | list[tuple[int, int]], evaluation: Evaluation, coder: Coder
) -> list[Detections]:
    return postprocess.detect(dense_candidates(outputs, evaluation, coder), sizes, evaluation)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def random_detections(seed: int, count: int, num_classes: int = 3) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    low = 60 * torch.rand(count, 2, generator=generator)
    size = 5 + 30 * torch.rand(count, 2, generator=generator)
    labels = torch.randint(num_classes, (count,), generator=generator)
    return Detections(torch.cat((low, low + size), 1), torch.rand(count, generator=generator), labels)


def naive_nms(found: Detections, iou: float) -> list[int]:
    kept: list[int] = []
    overlap = pairwise_iou(found.boxes, found.boxes)
    for i in found.scores.argsort(descending=True, stable=True).tolist():
        if not any(found.labels[i] == found.labels[j] and overlap[i, j] > iou for j in kept):
            kept.append(i)
    return kept


# --- one size --------------------------------------------------------------------------------------


def test_the_score_is_the_root_of_probability_times_centerness_and_the_box_is_clipped() -> None:
    outputs = scene()
    assert outputs.ctr_NA is not None
    outputs.cls_NAK[0, 0, 1] = logit(0.8)
    outputs.ctr_NA[0, 0] = logit(0.2)
    (found,) = detect(outputs, [(10, 11)], Evaluation(), PointCoder())
    # Centre (4, 4), one stride to each side: (-4, -4, 12, 12).
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 11, 10]]))
    torch.testing.assert_close(found.scores, torch.tensor([0.4]))
    assert found.labels.tolist() == [1]


def test_without_centerness_the_score_is_the_probability() -> None:
    outputs = scene(centerness=False)
    outputs.cls_NAK[0, 5, 0] = logit(0.3)
    (found,) = detect(outputs, torch.tensor([[32, 32]]), Evaluation(), PointCoder())
    torch.testing.assert_close(found.scores, torch.tensor([0.3]))


def test_the_threshold_is_on_the_probability_before_centerness_and_strict() -> None:
    outputs = scene()
    assert outputs.ctr_NA is not None
    outputs.ctr_NA[0, 0], outputs.ctr_NA[0, 15] = -3.0, 20.0
    outputs.cls_NAK[0, 0, 0] = logit(0.3)  # 0.3 x 0.047 is below 0.25, but 0.3 is not
    outputs.cls_NAK[0, 15, 0] = logit(0.25)
    (found,) = detect(outputs, [(32, 32)], Evaluation(score_threshold=0.25), PointCoder())
    torch.testing.assert_close(found.scores, torch.tensor([math.sqrt(0.3 / (1 + math.exp(3)))]))


def test_every_level_gives_its_best_pairs_ranked_with_centerness() -> None:
    grid = anchor_grid(Anchors(), (8, 16), ((4, 4), (2, 2)), "cpu")
    outputs = Outputs(torch.full((1, 20, 2), 1.0), torch.zeros(1, 20, 4), torch.zeros(1, 20), grid)
    assert outputs.ctr_NA is not None
    outputs.ctr_NA[0, 7], outputs.ctr_NA[0, 18] = 3.0, 2.0
    everything = Evaluation(pre_nms_topk=2, nms_iou=1.0)
    (found,) = detect(outputs, [(32, 32)], everything, PointCoder())
    centers = found.boxes[:, :2]
    # Both classes of the best anchor of each level: 7 is cell (3, 1) of P3, 18 is cell (0, 1) of P4.
    expected = torch.tensor([[28.0, 12], [28, 12], [8, 24], [8, 24]])
    torch.testing.assert_close(centers, expected)
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1]


def test_an_image_without_a_candidate_has_no_detection() -> None:
    outputs = scene()
    two = Outputs(outputs.cls_NAK.repeat(2, 1, 1), outputs.reg_NA4.repeat(2, 1, 1), None, outputs.grid)
    two.cls_NAK[1, 3, 0] = 2.0
    empty, one = detect(two, [(32, 32), (32, 32)], Evaluation(), PointCoder())
    assert (len(empty), len(one)) == (0, 1)
    assert empty.boxes.shape == (0, 4)
    assert empty.labels.dtype == torch.int64


def test_candidates_that_are_not_finite_are_dropped_and_the_others_stay() -> None:
    outputs = scene()
    assert outputs.ctr_NA is not None
    outputs.cls_NAK[0, :4, 0] = 2.0
    outputs.cls_NAK[0, 0, 0] = math.nan
    outputs.ctr_NA[0, 1] = math.nan
    outputs.reg_NA4[0, 2, 3] = math.inf
    (found,) = detect(outputs, [(32, 32)], Evaluation(), PointCoder())
    assert len(found) == 1
    torch.testing.assert_close(found.boxes, torch.tensor([[20.0, 0, 32, 12]]))


def test_infinite_logits_are_certain_and_impossible_classes() -> None:
    outputs = scene(centerness=False)
    outputs.cls_NAK[0, 0] = torch.tensor([math.inf, -math.inf])
    (found,) = detect(outputs, [(32, 32)], Evaluation(), PointCoder())
    assert found.labels.tolist() == [0]
    assert found.scores.tolist() == [1.0]


@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
def test_suppression_equals_a_naive_loop_over_all_candidates(limit: int) -> None:
    for seed in range(10):
        found = random_detections(seed, 150)
        expected = found[torch.tensor(naive_nms(found, 0.4)[:limit])]
        torch.testing.assert_close(vars(suppress(found, 0.4, limit)), vars(expected), rtol=0, atol=0)


def test_a_box_goes_only_above_the_overlap_and_only_within_its_class() -> None:
    # The second overlaps the first by 50 / 100 exactly, the third is the first again, of another class.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]))
    assert len(suppress(found, 0.5, 100)) == 3
    assert suppress(found, 0.49, 100).labels.tolist() == [0, 1]


def test_no_more_than_the_limit_is_kept_also_where_scores_tie() -> None:
    boxes = torch.arange(10.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    found = Detections(boxes, torch.full((10,), 0.5), torch.zeros(10).long())
    kept = suppress(found, 0.6, 4)
    torch.testing.assert_close(kept.boxes, boxes[:4])  # of equals, the earlier


def test_suppression_far_from_the_origin_is_not_rounded_by_the_number_of_classes() -> None:
    # Side 1 px at 4000 px with the highest of 1000 classes: 0.5 px apart, IoU 1 / 3.
    boxes = torch.tensor([[4000.0, 4000, 4001, 4001], [4000.5, 4000, 4001.5, 4001]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([999, 999]))
    assert len(suppress(found, 0.334, 100)) == 2
    assert len(suppress(found, 0.332, 100)) == 1


# --- several sizes ---------------------------------------------------------------------------------


def naive_soft_vote(found: Detections, vote_iou: float, threshold: float) -> set[tuple[float, ...]]:
    left, result = found, []
    while len(left):
        best = left.scores.argmax()
        overlap = pairwise_iou(left.boxes[best][None], left.boxes)[0]
        overlap[best] = 1
        members = overlap >= vote_iou
        weights = left.scores[members] / left.scores[members].sum()
        mean = (left.boxes[members] * weights[:, None]).sum(0)
        result.append((*mean.tolist(), left.scores[best].item()))
        members[best] = False
        for box, score in zip(
            left.boxes[members], (left.scores * (1 - overlap))[members].tolist(), strict=True
        ):
            if score >= threshold:
                result.append((*box.tolist(), score))
        members[best] = True
        left = left[~members]
    return {tuple(round(value, 3) for value in row) for row in result}


@pytest.mark.parametrize("vote_iou", [0.3, 0.66])
def test_soft_voting_equals_a_naive_loop(vote_iou: float) -> None:
    for seed in range(5):
        found = random_detections(seed, 60, num_classes=1)
        boxes, scores = soft_vote(found.boxes, found.scores, vote_iou, 0.05)
        rows = {tuple(round(v, 3) for v in row) for row in torch.cat((boxes, scores[:, None]), 1).tolist()}
        assert rows == naive_soft_vote(found, vote_iou, 0.05)


def test_soft_voting_of_two_boxes_by_hand() -> None:
    # IoU 80 / 100 = 0.8: mean weighted 0.6 to 0.4, score 0.6; the second stays with 0.4 * 0.2 = 0.08.
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]]), torch.tensor([0.6, 0.4])
    voted = soft_vote(boxes, scores, 0.66, 0.05)
    torch.testing.assert_close(voted[0], torch.tensor([[0.0, 0, 10, 9.2], [0, 0, 10, 8]]))
    torch.testing.assert_close(voted[1], torch.tensor([0.6, 0.08]))
    assert len(soft_vote(boxes, scores, 0.66, 0.09)[0]) == 1
    assert soft_vote(boxes, scores, 0.81, 0.05)[1].tolist() == pytest.approx([0.6, 0.4])


def test_soft_voting_of_boxes_without_area_and_of_none_ends() -> None:
    boxes, scores = soft_vote(torch.zeros(3, 4), torch.tensor([0.1, 0.3, 0.2]), 0.66, 0.05)
    assert scores.tolist() == pytest.approx([0.3, 0.2, 0.1])
    assert len(soft_vote(boxes[:0], scores[:0], 0.66, 0.05)[0]) == 0


def test_merging_keeps_classes_apart_and_the_best_first() -> None:
    one, two = random_detections(1, 20), random_detections(2, 30)
    scales = MultiScale(passes=(ScalePass(),), max_detections=25)
    merged = merge_passes([one, two], scales, 0.05)
    assert len(merged) == 25
    assert (merged.scores.diff() <= 0).all()
    both = torch.cat((one.boxes, two.boxes)), torch.cat((one.scores, two.scores))
    labels = torch.cat((one.labels, two.labels))
    best = [soft_vote(both[0][labels == k], both[1][labels == k], 0.66, 0.05)[1].max() for k in range(3)]
    assert merged.scores[0] == max(best)
    assert len(merge_passes([one[:0], two[:0]], scales, 0.05)) == 0


def test_the_range_of_areas_excludes_its_ends_and_may_be_open() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 0], [0, 0, 5, 5], [0, 0, 7, 7], [0, 0, 10, 10]])
    found = Detections(boxes, torch.ones(4), torch.arange(4))
    assert of_area(found, ScalePass(), 10).labels.tolist() == [0, 1, 2, 3]
    assert of_area(found, ScalePass(min_side=0.5), 10).labels.tolist() == [2, 3]
    assert of_area(found, ScalePass(max_side=1.0), 10).labels.tolist() == [0, 1, 2]
    assert of_area(found, ScalePass(min_side=0.5, max_side=1.0), 10).labels.tolist() == [2]


class BrightSpot:
    """A detector of one class that boxes the brightest pixel by a square of 8 px, and knows its inputs."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images_N3HW: Tensor) -> Outputs:
        num_images, _, height, width = images_N3HW.shape
        self.sizes.append((height, width))
        rows, columns = -(-height // 8), -(-width // 8)
        grid = anchor_grid(Anchors(), (8,), ((rows, columns),), "cpu")
        cls = torch.full((num_images, rows * columns, 1), COLD)
        reg = torch.zeros(num_images, rows * columns, 4)
        for n, image in enumerate(images_N3HW):
            y, x = divmod(int(image[0].argmax()), width)
            anchor = y // 8 * columns + x // 8
            cls[n, anchor] = 4.0
            # The square's centre is the pixel's centre: offsets from the cell's centre, in strides.
            dx, dy = ((x + 0.5) % 8 - 4) / 8, ((y + 0.5) % 8 - 4) / 8
            reg[n, anchor] = torch.tensor([0.5 - dx, 0.5 - dy, 0.5 + dx, 0.5 + dy])
        return Outputs(cls, reg, None, grid)

    def candidates(self, outputs: Outputs, evaluation: Evaluation) -> Candidates:
        return dense_candidates(outputs, evaluation, PointCoder())


def test_every_pass_is_resized_mirrored_and_mapped_back() -> None:
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    image[:, 20:22, 40:42] = 255  # centre (41, 21)
    model = BrightSpot()
    scales = MultiScale(passes=(ScalePass(scale=0.5), ScalePass(scale=1.0), ScalePass(scale=2.0)))
    found = multi_scale_detect(model, image, Evaluation(scales=scales), scales, short_side=48)
    # The last would be 96 x 128, but a long side ends at 1333 / 800 * 48 = 80.
    assert model.sizes == [(24, 32), (48, 64), (60, 80)]
    centers = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    torch.testing.assert_close(centers, torch.tensor([[41.0, 21.0]]).expand_as(centers), rtol=0, atol=1.1)
    sides = {round(side) for side in (found.boxes[:, 2] - found.boxes[:, 0]).tolist()}
    assert sides == {6, 8, 16}  # 8 px of each pass's image
    assert found.scores.max() == torch.tensor(4.0).sigmoid()


def test_a_pass_counts_boxes_of_its_own_range_only() -> None:
    image = torch.zeros(3, 48, 64)
    image[:, 20:22, 40:42] = 255
    # 8 px boxes in every pass: 64 square pixels are not above (0.25 * 48)^2 = 144.
    passes = (ScalePass(scale=0.5, min_side=0.25), ScalePass(scale=1.0, max_side=0.25))
    scales = MultiScale(passes=passes)
    found = multi_scale_detect(BrightSpot(), image, Evaluation(), scales, short_side=48)
    torch.testing.assert_close(
        found.boxes[:, 2] - found.boxes[:, 0], torch.full((len(found),), 8.0), atol=1, rtol=0
    )


# --- the authors' outputs --------------------------------------------------------------------------


def golden_outputs(folder: Path, point: bool) -> tuple[Outputs, list[tuple[int, int]]]:
    z = np.load(folder / "loss_A.npz")
    images = [np.load(folder / f"img_{i:02d}.npz") for i in z["image_indices"]]
    feature_sizes = [(int(h), int(w)) for h, w in images[0]["feat_hw"]]
    grid = anchor_grid(Anchors(), (8, 16, 32, 64, 128), feature_sizes, "cpu")
    reg = torch.from_numpy(z["reg_q"]).float()
    cls = torch.from_numpy(z["cls_q8"]).float() / 8 - 1
    ctr = torch.from_numpy(z["ctr_q32"]).float() / 32 + 0.0005 * torch.arange(reg.shape[1])
    outputs = Outputs(cls, reg.abs() / 16 if point else reg / 32, ctr, grid)
    return outputs, [(int(image["img_hw"][0]), int(image["img_hw"][1])) for image in images]


def one_level(outputs: Outputs, index: int) -> Outputs:
    """The outputs of a level as though it were the only one."""
    grid = outputs.grid
    level = grid.levels[index]
    part = slice(level.start, level.start + level.num_anchors)
    alone = AnchorGrid(
        grid.boxes_A4[part],
        grid.centers_A2[part],
        grid.strides_A[part],
        (replace(level, start=0),),
        (grid.cells[index],),
    )
    assert outputs.ctr_NA is not None
    return Outputs(outputs.cls_NAK[:, part], outputs.reg_NA4[:, part], outputs.ctr_NA[:, part], alone)


def as_rows(found: Detections) -> Tensor:
    """x1, y1, x2, y2, score, the authors' label (from 1), sorted as theirs: score, then label, then x1."""
    rows = torch.cat((found.boxes, found.scores[:, None], found.labels[:, None] + 1), dim=1)
    order = np.lexsort((rows[:, 0], rows[:, 5], -rows[:, 4]))
    return rows[torch.from_numpy(order)]


def assert_same_rows(found: Tensor, expected: Tensor) -> None:
    """Equal rows; scores of 1e-6 apart may stand in either order, so rows are matched by what they are."""
    assert found.shape == expected.shape
    order_found, order_expected = (
        np.lexsort(tuple(rows[:, i].round(decimals=2) for i in (3, 2, 1, 0, 5))) for rows in (found, expected)
    )
    torch.testing.assert_close(found[order_found], expected[order_expected], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("regression", ["box", "point"])
@pytest.mark.parametrize("image", [0, 1])
def test_candidates_of_every_level_equal_the_authors(authors: Path, regression: str, image: int) -> None:
    golden = np.load(authors / "postproc.npz")
    coder: Coder = BoxCoder() if regression == "box" else PointCoder()
    outputs, sizes = golden_outputs(authors, regression == "point")
    everything = Evaluation(nms_iou=1.0, max_detections=1000)
    for index in range(5):
        key = f"{regression}__im{image}__L{index}__"
        found = detect(one_level(outputs, index), sizes, everything, coder)[image]
        assert len(found) == golden[f"{key}count"]
        assert found.scores.double().sum().item() == pytest.approx(
            float(golden[f"{key}sum_scores"]), rel=1e-6
        )
        top = torch.from_numpy(golden[f"{key}top40"])
        # Where more than one pair has the 40th score, which of them is listed is chance.
        clear = top[:, 4] > top[-1, 4] + 1e-6
        assert_same_rows(as_rows(found)[: int(clear.sum())], top[clear])


@pytest.mark.parametrize("regression", ["box", "point"])
@pytest.mark.parametrize("image", [0, 1])
def test_final_detections_equal_the_authors(authors: Path, regression: str, image: int) -> None:
    golden = np.load(authors / "postproc.npz")
    coder: Coder = BoxCoder() if regression == "box" else PointCoder()
    outputs, sizes = golden_outputs(authors, regression == "point")
    found = detect(outputs, sizes, Evaluation(), coder)[image]
    assert_same_rows(as_rows(found), torch.from_numpy(golden[f"{regression}__im{image}__final"]))


def test_soft_votes_merging_and_area_ranges_equal_the_authors(authors: Path) -> None:
    z = {k: torch.from_numpy(v) for k, v in np.load(authors / "voting.npz").items()}

    def rows(boxes: Tensor, scores: Tensor, labels: Tensor | None = None) -> Tensor:
        return as_rows(
            Detections(boxes, scores, torch.zeros(len(scores)).long() if labels is None else labels)
        )

    for percent in (66, 50):
        key = f"softvote_{percent}"
        voted = soft_vote(z["det_boxes"], z["det_scores"], percent / 100, 0.05)
        assert_same_rows(rows(*voted), rows(z[f"{key}_boxes"], z[f"{key}_scores"]))

    everything = Detections(z["det_boxes"], z["det_scores"], z["merge_labels_in"])
    scales = MultiScale(passes=(ScalePass(),))
    parts = [everything[:40], everything[40:]]
    merged = merge_passes(parts, scales, Evaluation().score_threshold)
    expected = rows(z["merge_boxes"], z["merge_scores"], z["merge_labels"])
    assert_same_rows(rows(merged.boxes, merged.scores, merged.labels), expected)

    large = of_area(everything, ScalePass(min_side=96.0, max_side=10_000.0), 1)
    small = of_area(everything, ScalePass(min_side=0.0, max_side=96.0), 1)
    torch.testing.assert_close(large.boxes, z["remove_boxes_96_10000"], rtol=0, atol=0)
    torch.testing.assert_close(small.boxes, z["remove_boxes_0_96"], rtol=0, atol=0)
