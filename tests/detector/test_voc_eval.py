"""VOC's mean average precision against a plain loop over the devkit's rules, and scenes computed by hand."""

import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from mean_average_precision.mean_average_precision_2d import MeanAveragePrecision2d
from mean_average_precision.utils import (
    compute_average_precision,
    compute_average_precision_with_recall_thresholds,
)

from detector.data.coco import CheckedSplit, ImageRecord, Split
from detector.errors import DataError
from detector.evaluation.bootstrap import image_weights
from detector.evaluation.coco_eval import Results
from detector.evaluation.voc_eval import VOCMatch, class_aps, match_voc, mean_aps, voc_scores

Object = tuple[int, tuple[float, float, float, float], bool]
"""Label, xyxy, whether it is difficult."""
Detection = tuple[int, int, tuple[float, float, float, float], float]
"""Index of the image, label, xyxy, score."""

CLASSES = ("cat", "dog", "owl")
CATEGORY_IDS = (3, 7, 20)


def split_of(images: Sequence[Sequence[Object]], ids: Sequence[int] | None = None) -> CheckedSplit:
    records = [
        ImageRecord(
            id=10 * index if ids is None else ids[index],
            file_name=f"{index}.jpg",
            width=500,
            height=400,
            xywh=np.array([(x, y, X - x, Y - y) for _, (x, y, X, Y), _ in own], dtype=np.float64).reshape(
                -1, 4
            ),
            labels=np.array([label for label, _, _ in own], dtype=np.int64),
            areas=np.ones(len(own)),
            crowd=np.array([difficult for *_, difficult in own], dtype=bool),
            difficult=np.array([difficult for *_, difficult in own], dtype=bool),
        )
        for index, own in enumerate(images)
    ]
    return CheckedSplit(Split(Path("none"), Path("none")), tuple(records), CATEGORY_IDS, CLASSES, {})


def results_of(split: CheckedSplit, found: Sequence[Detection]) -> Results:
    return Results(
        np.array([split.images[index].id for index, *_ in found], dtype=np.int64),
        np.array([CATEGORY_IDS[label] for _, label, _, _ in found], dtype=np.int64),
        np.array([(x, y, X - x, Y - y) for _, _, (x, y, X, Y), _ in found], dtype=np.float64).reshape(-1, 4),
        np.array([score for *_, score in found], dtype=np.float64),
    )


# --- the plain loop --------------------------------------------------------------------------------


def plain_iou(a: Sequence[float], b: Sequence[float]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def plain_ap(
    images: Sequence[Sequence[Object]], found: Sequence[Detection], label: int
) -> tuple[float, float] | None:
    """AP by 11 points and by area as in `voc_eval.py` of Fast R-CNN; None without an object that counts."""
    objects = [[(box, difficult) for own, box, difficult in image if own == label] for image in images]
    positives = sum(not difficult for image in objects for _, difficult in image)
    if positives == 0:
        return None
    ranked = sorted((d for d in found if d[1] == label), key=lambda d: (-d[3], d[0]))
    taken: set[tuple[int, int]] = set()
    true, false, curve = 0, 0, []
    for image, _, box, _ in ranked:
        overlaps = [plain_iou(box, other) for other, _ in objects[image]]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] > 0.5:
            if objects[image][best][1]:
                continue
            true, false = (true, false + 1) if (image, best) in taken else (true + 1, false)
            taken.add((image, best))
        else:
            false += 1
        curve.append((Fraction(true, positives), Fraction(true, true + false)))
    points = [max((p for r, p in curve if r >= Fraction(n, 10)), default=Fraction(0)) for n in range(11)]
    area, before = Fraction(0), Fraction(0)
    for index, (recall, _) in enumerate(curve):
        area += (recall - before) * max(p for _, p in curve[index:])
        before = recall
    return float(sum(points, Fraction(0)) / 11), float(area)


def plain_means(images: Sequence[Sequence[Object]], found: Sequence[Detection]) -> list[float]:
    of_class = [plain_ap(images, found, label) for label in range(len(CLASSES))]
    known = [aps for aps in of_class if aps is not None]
    return [100 * float(np.mean([aps[n] for aps in known])) for n in (0, 1)]


def scene(
    seed: int, images: int = 25, *, ties: bool = False, without: int | None = None
) -> tuple[list[list[Object]], list[Detection]]:
    """Random objects, a fifth of them difficult, and jittered, doubled and stray detections of them.

    Args:
        ties: scores have one digit.
        without: a label of which there is no object, but detections.
    """
    r = np.random.default_rng(seed)
    truth: list[list[Object]] = []
    found: list[Detection] = []
    for image in range(images):
        own: list[Object] = []
        for _ in range(r.integers(0, 6)):
            x, y = r.integers(0, 250, size=2)
            w, h = r.integers(10, 120, size=2)
            label = int(r.choice([k for k in range(3) if k != without]))
            own.append((label, (x, y, x + w, y + h), bool(r.random() < 0.2)))
        truth.append(own)
        for label, box, _ in own:
            for _ in range(r.integers(0, 4)):
                moved = np.array(box) + np.round(r.normal(size=4) * r.choice([0, 3, 12]))
                near = (*np.minimum(moved[:2], moved[2:]), *np.maximum(moved[:2], moved[2:]))
                seen = label if r.random() < 0.8 else int(r.integers(3))
                found.append((image, seen, tuple(map(float, near)), float(r.random())))  # type: ignore[arg-type]
        found += [(image, int(r.integers(3)), (1.0, 1.0, 30.0, 40.0), float(r.random()))]
    return truth, [(i, k, b, round(s, 1) if ties else s) for i, k, b, s in found]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_means_are_those_of_a_plain_loop_over_the_devkits_rules(seed: int, ties: bool) -> None:
    truth, found = scene(seed, ties=ties, without=seed % 4 if seed % 4 < 3 else None)
    split = split_of(truth)
    scores = voc_scores(split, match_voc(split, results_of(split, found)))
    ours = [scores.metrics["mAP"], scores.metrics["mAP_area"]]
    assert 5 < ours[0] < 95
    np.testing.assert_allclose(ours, plain_means(truth, found), rtol=0, atol=1e-10)
    by_class = [plain_ap(truth, found, label) for label in range(3)]
    expected = {
        name: np.nan if aps is None else 100 * aps[0] for name, aps in zip(CLASSES, by_class, strict=True)
    }
    assert scores.class_ap == pytest.approx(expected, abs=1e-10, nan_ok=True)


# --- by hand ---------------------------------------------------------------------------------------

A, B = (0.0, 0.0, 10.0, 10.0), (100.0, 100.0, 120.0, 120.0)


def aps(truth: Sequence[Sequence[Object]], found: Sequence[Detection]) -> list[float]:
    split = split_of(truth)
    of_class = class_aps(match_voc(split, results_of(split, found)), np.ones((len(truth), 1)))
    return [round(float(ap), 6) for ap in of_class[:, 0, 0]]


def test_one_of_two_objects_found_first_gives_six_of_eleven_points_and_half_the_area() -> None:
    # Recall 1/2 at precision 1: the points 0 to 0.5 have 1, the others 0.
    assert aps([[(0, A, False), (0, B, False)]], [(0, 0, A, 0.9)]) == [round(100 * 6 / 11, 6), 50.0]


def test_a_false_detection_before_the_true_one_halves_the_precision() -> None:
    assert aps([[(0, A, False)]], [(0, 0, B, 0.9), (0, 0, A, 0.8)]) == [50.0, 50.0]


def test_a_false_detection_after_the_last_object_costs_nothing() -> None:
    assert aps([[(0, A, False)]], [(0, 0, A, 0.9), (0, 0, B, 0.8)]) == [100.0, 100.0]


def test_the_second_detection_of_an_object_is_false() -> None:
    # Ranks: true, duplicate, true; precision 1 up to recall 1/2, then 2/3.
    truth = [[(0, A, False), (0, B, False)]]
    found = [(0, 0, A, 0.9), (0, 0, A, 0.8), (0, 0, B, 0.7)]
    assert aps(truth, found) == [round(100 * (6 + 5 * 2 / 3) / 11, 6), round(100 * (0.5 + 0.5 * 2 / 3), 6)]


def test_a_detection_of_a_difficult_object_is_neither_true_nor_false() -> None:
    truth = [[(0, A, False), (0, B, True)]]
    assert aps(truth, [(0, 0, B, 0.9), (0, 0, B, 0.8), (0, 0, A, 0.7)]) == [100.0, 100.0]


def test_difficult_objects_need_not_be_found() -> None:
    assert aps([[(0, A, False), (0, B, True)]], [(0, 0, A, 0.7)]) == [100.0, 100.0]


def test_a_detection_belongs_to_the_object_that_it_overlaps_most_even_when_that_is_difficult() -> None:
    # IoU with the difficult one is 9/11, with the other 8/12 = 0.67: it is ignored, and the other not found.
    near = (1.0, 0.0, 11.0, 10.0)
    other = (3.0, 0.0, 13.0, 10.0)
    assert aps([[(0, A, True), (0, other, False)]], [(0, 0, near, 0.9)]) == [0.0, 0.0]


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    assert aps([[(0, A, False)]], [(0, 0, (0.0, 0.0, 10.0, 5.0), 0.9)]) == [0.0, 0.0]
    assert aps([[(0, A, False)]], [(0, 0, (0.0, 0.0, 10.0, 5.1), 0.9)]) == [100.0, 100.0]


def test_a_box_of_whole_pixels_overlaps_as_in_the_devkit_which_counts_pixels() -> None:
    # Pixels 1 to 4 and 2 to 6 of a row, 10 rows: in common 3 columns, in all 6. Pixel i covers i-1 to i. With
    # 4 columns of 6 the IoU is over a half, and the devkit's (x2 - x1 + 1) gives the same.
    def pixels(first: int, last: int) -> tuple[float, float, float, float]:
        return (first - 1.0, 0.0, float(last), 10.0)

    assert aps([[(0, pixels(1, 4), False)]], [(0, 0, pixels(2, 6), 0.9)]) == [0.0, 0.0]
    assert aps([[(0, pixels(1, 5), False)]], [(0, 0, pixels(2, 6), 0.9)]) == [100.0, 100.0]


def test_a_recall_of_three_tenths_reaches_the_point_of_three_tenths() -> None:
    boxes = [(20.0 * n, 0.0, 20.0 * n + 10, 10.0) for n in range(10)]
    truth = [[(0, box, False) for box in boxes]]
    for count in range(1, 11):
        found = [(0, 0, box, 0.9) for box in boxes[:count]]
        assert aps(truth, found)[0] == round(100 * (count + 1) / 11, 6)


def test_of_equal_scores_the_earlier_image_and_then_the_earlier_detection_ranks_first() -> None:
    truth: list[list[Object]] = [[], [(0, A, False)]]
    assert aps(truth, [(1, 0, A, 0.5), (0, 0, A, 0.5)])[1] == 50.0
    assert aps(truth[::-1], [(1, 0, A, 0.5), (0, 0, A, 0.5)])[1] == 100.0
    assert aps([truth[1]], [(0, 0, B, 0.5), (0, 0, A, 0.5)])[1] == 50.0
    assert aps([truth[1]], [(0, 0, A, 0.5), (0, 0, B, 0.5)])[1] == 100.0


def test_of_two_objects_that_a_detection_overlaps_alike_the_first_is_matched() -> None:
    left, right, middle = (0.0, 0.0, 10.0, 10.0), (4.0, 0.0, 14.0, 10.0), (2.0, 0.0, 12.0, 10.0)
    first_difficult = [[(0, left, True), (0, right, False)]]
    assert aps(first_difficult, [(0, 0, middle, 0.9)])[1] == 0.0
    assert aps([first_difficult[0][::-1]], [(0, 0, middle, 0.9)])[1] == 100.0


def test_no_detection_gives_zero_and_a_class_without_objects_is_left_out_of_the_mean() -> None:
    split = split_of([[(0, A, False)], [(2, B, True)]])
    scores = voc_scores(split, match_voc(split, results_of(split, [])))
    assert scores.metrics == {"mAP": 0.0, "mAP_area": 0.0}
    assert scores.class_ap == pytest.approx({"cat": 0.0, "dog": np.nan, "owl": np.nan}, nan_ok=True)


def test_a_split_with_only_difficult_objects_is_refused() -> None:
    split = split_of([[(0, A, True)]])
    with pytest.raises(DataError, match="no object that is not difficult: mAP is undefined"):
        match_voc(split, results_of(split, []))


def test_a_detection_of_an_unknown_image_or_category_is_refused() -> None:
    split = split_of([[(0, A, False)]])
    for ids, what in (((5, 3), "image"), ((0, 4), "category")):
        one = Results(np.array(ids[:1]), np.array(ids[1:]), np.array([[0.0, 0, 1, 1]]), np.array([0.5]))
        with pytest.raises(ValueError, match=f"{what} ids that the annotations lack"):
            match_voc(split, one)


# --- under image weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_weights_give_what_literally_repeated_images_give(seed: int) -> None:
    truth, found = scene(seed, without=1)
    split = split_of(truth)
    weights = image_weights(len(truth), 1, seed)[0]
    copies = [index for index, weight in enumerate(weights) for _ in range(weight)]
    repeated = [(new, *d[1:]) for new, old in enumerate(copies) for d in found if d[0] == old]
    expected = plain_means([truth[old] for old in copies], repeated)  # type: ignore[arg-type]
    match = match_voc(split, results_of(split, found))
    np.testing.assert_allclose(mean_aps(match, weights), expected, rtol=0, atol=1e-10)


def test_all_replicates_at_once_are_those_one_by_one_and_undefined_ones_are_nan() -> None:
    split = split_of([[(0, A, False)], [(1, B, False)], []])
    match = match_voc(split, results_of(split, [(0, 0, A, 0.9), (1, 1, A, 0.9)]))
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 3]])
    expected = np.array([[50, 50], [100, 100], [0, 0], [np.nan, np.nan]])
    np.testing.assert_allclose(mean_aps(match, weights), expected)
    np.testing.assert_allclose([mean_aps(match, row) for row in weights], expected)
    with pytest.raises(ValueError, match="one weight for each of 3 images"):
        mean_aps(match, np.ones(2, dtype=np.int64))


def test_blocks_of_replicates_do_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = scene(3)
    split = split_of(truth)
    match = match_voc(split, results_of(split, found))
    weights = image_weights(len(truth), 20, 0)
    whole = mean_aps(match, weights)
    monkeypatch.setattr("detector.evaluation.voc_eval._BLOCK", 100)
    np.testing.assert_array_equal(mean_aps(match, weights), whole)


def test_a_saved_match_is_read_as_it_was(tmp_path: Path) -> None:
    truth, found = scene(1)
    split = split_of(truth)
    match = match_voc(split, results_of(split, found))
    match.save(tmp_path / "m.npz")
    again = VOCMatch.load(tmp_path / "m.npz")
    for name in VOCMatch.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(match, name))


@pytest.mark.slow
def test_voc_2007_test_with_a_hundred_detections_an_image_takes_seconds() -> None:
    truth, found = scene(0, images=300)
    r = np.random.default_rng(0)
    many = split_of([truth[n % 300] for n in range(4952)])
    part = results_of(split_of(truth), found)
    copies = 4952 // 300 * 6
    results = Results(
        np.concatenate([part.image_ids + 3000 * (n % 16) for n in range(copies)]),
        np.tile(part.category_ids, copies),
        np.tile(part.boxes_xywh, (copies, 1)),
        r.random(copies * len(part)),
    )
    assert len(results) > 100_000
    began = time.perf_counter()
    match = match_voc(many, results)
    assert np.isfinite(mean_aps(match, image_weights(len(many.images), 200, 0))).all()
    assert time.perf_counter() - began < 60


# --- against a library ---------------------------------------------------------------------------------


def library_aps(truth: list[list[Object]], found: list[Detection], label: int) -> tuple[float, float] | None:
    """AP by 11 points and by area of `mean-average-precision`, which counts pixels as VOC does.

    It counts difficult objects among those to be found, so recalls are taken of those that count; and it
    mixes up which of several objects of an image are difficult, so all must be or none.
    """
    objects = [[(own, box, difficult) for own, box, difficult in image if own == label] for image in truth]
    every, counted = sum(map(len, objects)), sum(not d for image in objects for *_, d in image)
    if not counted:
        return None
    metric = MeanAveragePrecision2d(num_classes=1)
    for index, image in enumerate(objects):
        own = [(x, y, X - 1, Y - 1, 0, s) for i, k, (x, y, X, Y), s in found if (i, k) == (index, label)]
        gt = [(x, y, X - 1, Y - 1, 0, int(difficult), 0) for _, (x, y, X, Y), difficult in image]
        metric.add(np.array(own).reshape(-1, 6), np.array(gt).reshape(-1, 7))
    one = metric.value(0.5)[0.5][0]
    precision, recall = one["precision"], one["recall"] * every / counted
    tenths = np.linspace(0, 1, 11) - 1e-9  # not a recall of 0.3 beside 0.30000000000000004
    eleven = compute_average_precision_with_recall_thresholds(precision, recall, tenths)
    return float(eleven), float(compute_average_precision(precision, recall))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(6))
def test_the_aps_are_those_of_an_independent_library(seed: int) -> None:
    mixed, found = scene(seed, images=12, without=seed % 4 if seed % 4 < 3 else None)
    truth = [[(label, box, index % 4 == 0) for label, box, _ in own] for index, own in enumerate(mixed)]
    split = split_of(truth)
    ours = class_aps(match_voc(split, results_of(split, found)), np.ones((len(truth), 1)))[..., 0]
    theirs = [library_aps(truth, found, label) or (np.nan, np.nan) for label in range(3)]
    np.testing.assert_allclose(ours.T, 100 * np.array(theirs), rtol=0, atol=1e-6)
