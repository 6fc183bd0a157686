import json
from pathlib import Path

import numpy as np
import pytest

from detector.coco_eval import METRIC_NAMES, Results, evaluate, judge
from detector.errors import DataError

BOX = [10.0, 10.0, 40.0, 40.0]


def truth(*objects: tuple[int, int, list[float]], images: int = 2, **extra: int) -> dict:
    return {
        "images": [
            {"id": n, "width": 200, "height": 200, "file_name": f"{n}.jpg"} for n in range(1, images + 1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0, **extra}
            for n, (i, c, b) in enumerate(objects)
        ],
    }


def found(*detections: tuple[int, int, list[float], float]) -> Results:
    names = ("image_id", "category_id", "bbox", "score")
    return Results.from_coco([dict(zip(names, row, strict=True)) for row in detections])


def test_the_twelve_published_numbers_of_coco_come_out_to_all_printed_digits(shared: Path) -> None:
    folder = shared / "data" / "eval_refs" / "val2014_100"
    expected = json.loads((folder / "expected.json").read_text())
    detections = Results.from_coco(json.loads((folder / "dets.json").read_text()))
    metrics = evaluate(json.loads((folder / "gt.json").read_text()), detections).metrics
    assert tuple(metrics) == METRIC_NAMES
    fractions = {name: value / 100 for name, value in metrics.items()}
    assert [round(v, 3) for v in fractions.values()] == list(expected["published"].values())
    assert [round(v, 6) for v in fractions.values()] == list(expected["pycocotools_bbox"].values())


def test_a_perfect_detection_scores_100_and_a_missed_class_0() -> None:
    scores = evaluate(truth((1, 3, BOX), (2, 7, BOX)), found((1, 3, BOX, 0.9)))
    assert scores.class_ap == pytest.approx({"cat": 100.0, "dog": 0.0})
    assert scores.metrics["AP"] == pytest.approx(50.0)


def test_an_object_with_annotation_id_0_can_be_found() -> None:
    # pycocotools itself reads a match with id 0 as no match; the first annotation here has it.
    ground_truth = truth((1, 3, BOX))
    assert ground_truth["annotations"][0]["id"] == 0
    assert evaluate(ground_truth, found((1, 3, BOX, 0.9))).metrics["AP"] == pytest.approx(100.0)


def test_no_detections_at_all_score_zero() -> None:
    scores = evaluate(truth((1, 3, BOX)), found())
    assert set(scores.metrics.values()) == {0.0}
    assert scores.class_ap == {"cat": 0.0}


def test_numbers_without_any_object_in_their_area_range_are_left_out() -> None:
    metrics = evaluate(truth((1, 3, BOX)), found((1, 3, BOX, 0.9))).metrics
    assert {"APS", "APL", "ARS", "ARL"}.isdisjoint(metrics)
    assert metrics["APM"] == pytest.approx(100.0)


def test_the_sides_that_bound_the_area_ranges_can_be_set() -> None:
    metrics = evaluate(truth((1, 3, BOX)), found((1, 3, BOX, 0.9)), small_side=41, medium_side=50).metrics
    assert "APS" in metrics
    assert "APM" not in metrics


def test_the_ground_truth_is_left_as_it_was() -> None:
    ground_truth = truth((1, 3, BOX))
    before = json.dumps(ground_truth)
    evaluate(ground_truth, found((1, 3, BOX, 0.9)))
    assert json.dumps(ground_truth) == before


def test_evaluating_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(truth((1, 3, BOX)), found((1, 3, BOX, 0.9)))
    assert capsys.readouterr() == ("", "")


def test_detections_on_a_crowd_are_neither_right_nor_wrong() -> None:
    ground_truth = truth((1, 3, BOX), (2, 3, BOX))
    ground_truth["annotations"][1]["iscrowd"] = 1
    scores = evaluate(ground_truth, found((2, 3, BOX, 0.9), (2, 3, BOX, 0.8), (1, 3, BOX, 0.7)))
    assert scores.metrics["AP"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        ((1, 3, BOX, float("nan")), "scores must be finite, got nan in row 0"),
        ((1, 3, [0.0, 0.0, float("inf"), 1.0], 0.5), "boxes_xywh must be finite"),
        ((1, 3, [0.0, 0.0, -1.0, 1.0], 0.5), "widths and heights must be >= 0"),
    ],
)
def test_a_detection_that_is_no_box_with_a_score_is_refused(detection: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(detection)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="columns must have shapes"):
        Results(np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros((2, 4)), np.zeros(3))


def test_a_detection_of_an_unknown_image_or_category_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image ids that the annotations do not have: \[9\]"):
        judge(truth((1, 3, BOX)), found((9, 3, BOX, 0.5)))
    with pytest.raises(ValueError, match=r"category ids that the annotations do not have: \[0\]"):
        judge(truth((1, 3, BOX)), found((1, 0, BOX, 0.5)))


def test_a_split_without_anything_to_find_is_refused() -> None:
    with pytest.raises(DataError, match="AP is undefined"):
        evaluate(truth(), found())
    with pytest.raises(DataError, match="AP is undefined"):
        evaluate(truth((1, 3, BOX), iscrowd=1), found())


def test_area_limits_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="small_side < medium_side"):
        judge(truth((1, 3, BOX)), found(), small_side=96, medium_side=32)


def float32_results() -> Results:
    generator = np.random.default_rng(0)
    return Results(
        generator.integers(1, 3, size=50),
        generator.choice([3, 7], size=50),
        generator.uniform(0, 100, size=(50, 4)).astype(np.float32),
        generator.uniform(size=50).astype(np.float32),
    )


@pytest.mark.parametrize("results", [float32_results(), found((1, 3, BOX, 0.1)), found()])
def test_saved_detections_are_read_back_bit_for_bit(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "a" / "detections.npz")
    loaded = Results.load(tmp_path / "a" / "detections.npz")
    for name in ("image_ids", "category_ids", "boxes_xywh", "scores"):
        assert getattr(loaded, name).dtype == getattr(results, name).dtype
        np.testing.assert_array_equal(getattr(loaded, name), getattr(results, name))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["detections.npz"]


def test_equal_detections_are_saved_as_equal_bytes(tmp_path: Path) -> None:
    float32_results().save(tmp_path / "a.npz")
    float32_results().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_coco_results_file_holds_exactly_the_same_detections(tmp_path: Path) -> None:
    results = float32_results()
    results.write_json(tmp_path / "results.json")
    again = Results.from_coco(json.loads((tmp_path / "results.json").read_text()))
    np.testing.assert_array_equal(again.boxes_xywh, results.boxes_xywh.astype(np.float64))
    np.testing.assert_array_equal(again.scores, results.scores.astype(np.float64))
    ground_truth = truth((1, 3, [20.0, 20.0, 60.0, 60.0]), (2, 7, [30.0, 5.0, 50.0, 70.0]))
    assert evaluate(ground_truth, again) == evaluate(ground_truth, results)


def test_a_truncated_or_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "detections.npz"
    float32_results().save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"detections\.npz: expected an \.npz with image_ids"):
        Results.load(path)
    np.savez(path, other=np.zeros(1))
    with pytest.raises(DataError, match=r"detections\.npz"):
        Results.load(path)
    with pytest.raises(DataError, match=r"absent\.npz"):
        Results.load(tmp_path / "absent.npz")
