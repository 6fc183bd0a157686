import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from detector.errors import DataError
from detector.evaluation import coco_eval
from detector.evaluation.coco_eval import (
    METRIC_NAMES,
    Results,
    Scores,
    disambiguate,
    evaluate,
    fast_evaluate,
    load_arrays,
    save_arrays,
)

BOX = [10.0, 10.0, 40.0, 40.0]

Score = Callable[..., Scores]
either_way = pytest.mark.parametrize("score", [evaluate, fast_evaluate])


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


@either_way
def test_the_twelve_published_numbers_of_coco_come_out_to_all_printed_digits(
    shared: Path, score: Score
) -> None:
    folder = shared / "data" / "eval_refs" / "val2014_100"
    expected = json.loads((folder / "expected.json").read_text())
    detections = Results.from_coco(json.loads((folder / "dets.json").read_text()))
    metrics = score(json.loads((folder / "gt.json").read_text()), detections).metrics
    assert tuple(metrics) == METRIC_NAMES
    fractions = {name: value / 100 for name, value in metrics.items()}
    assert [round(v, 3) for v in fractions.values()] == list(expected["published"].values())
    assert [round(v, 6) for v in fractions.values()] == list(expected["pycocotools_bbox"].values())


@either_way
def test_a_perfect_detection_scores_100_and_a_missed_class_0(score: Score) -> None:
    scores = score(truth((1, 3, BOX), (2, 7, BOX)), found((1, 3, BOX, 0.9)))
    assert scores.class_ap == pytest.approx({"cat": 100.0, "dog": 0.0})
    assert scores.metrics["AP"] == pytest.approx(50.0)


@either_way
def test_classes_of_one_name_or_none_are_told_apart_by_their_ids(score: Score) -> None:
    ground_truth = truth((1, 3, BOX), (2, 7, BOX))
    ground_truth["categories"] = [{"id": i, "name": name} for i, name in ((3, "cat"), (7, "cat"), (9, ""))]
    scores = score(ground_truth, found((1, 3, BOX, 0.9)))
    expected = {"cat (id 3)": 100.0, "cat (id 7)": 0.0, "(id 9)": math.nan}
    assert scores.class_ap == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({3: "cat", 4: "dog "}, {3: "cat", 4: "dog "}),
        ({3: "cat", 4: "cat "}, {3: "cat (id 3)", 4: "cat (id 4)"}),
        (
            {1: "a  (id 2)", 2: "a", 3: "a"},
            {1: "a (id 2) (id 1)", 2: "a (id 2)", 3: "a (id 3)"},
        ),
        (
            {3: "cat", 4: "cat", 5: "cat (id 3)"},
            {3: "cat (id 3)", 4: "cat (id 4)", 5: "cat (id 3) (id 5)"},
        ),
    ],
)
def test_no_two_classes_are_called_alike_whatever_their_names(
    names: dict[int, str], labels: dict[int, str]
) -> None:
    assert disambiguate(names) == labels


def test_detections_with_any_byte_changed_are_either_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "detections.npz"
    arrays = {"scores": np.random.default_rng(0).random(40), "ids": np.arange(40)}
    save_arrays(path, arrays)
    whole, harmless = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(DataError):
            read = load_arrays(path, ["scores", "ids"])
            assert all(np.array_equal(read[name], arrays[name]) for name in arrays), place
            harmless += 1
    assert harmless < len(whole) / 2


@either_way
def test_an_object_with_annotation_id_0_can_be_found(score: Score) -> None:
    # pycocotools itself reads a match with id 0 as no match; the first annotation here has it.
    ground_truth = truth((1, 3, BOX))
    assert ground_truth["annotations"][0]["id"] == 0
    assert score(ground_truth, found((1, 3, BOX, 0.9))).metrics["AP"] == pytest.approx(100.0)


@either_way
def test_no_detections_at_all_score_zero(score: Score) -> None:
    scores = score(truth((1, 3, BOX)), found())
    assert set(scores.metrics.values()) == {0.0}
    assert scores.class_ap == pytest.approx({"cat": 0.0, "dog": math.nan}, nan_ok=True)


@either_way
def test_numbers_without_any_object_in_their_area_range_are_left_out(score: Score) -> None:
    metrics = score(truth((1, 3, BOX)), found((1, 3, BOX, 0.9))).metrics
    assert {"APS", "APL", "ARS", "ARL"}.isdisjoint(metrics)
    assert metrics["APM"] == pytest.approx(100.0)


@either_way
def test_the_sides_that_bound_the_area_ranges_can_be_set(score: Score) -> None:
    metrics = score(truth((1, 3, BOX)), found((1, 3, BOX, 0.9)), small_side=41, medium_side=50).metrics
    assert "APS" in metrics
    assert "APM" not in metrics


@either_way
def test_the_ground_truth_is_left_as_it_was(score: Score) -> None:
    ground_truth = truth((1, 3, BOX))
    before = json.dumps(ground_truth)
    score(ground_truth, found((1, 3, BOX, 0.9)))
    assert json.dumps(ground_truth) == before


@either_way
def test_evaluating_prints_nothing(capsys: pytest.CaptureFixture[str], score: Score) -> None:
    score(truth((1, 3, BOX)), found((1, 3, BOX, 0.9)))
    assert capsys.readouterr() == ("", "")


@either_way
def test_detections_on_a_crowd_are_neither_right_nor_wrong(score: Score) -> None:
    ground_truth = truth((1, 3, BOX), (2, 3, BOX))
    ground_truth["annotations"][1]["iscrowd"] = 1
    scores = score(ground_truth, found((2, 3, BOX, 0.9), (2, 3, BOX, 0.8), (1, 3, BOX, 0.7)))
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


@either_way
def test_a_detection_of_an_unknown_image_or_category_is_refused(score: Score) -> None:
    with pytest.raises(ValueError, match=r"image ids that the annotations lack: \[9\]"):
        score(truth((1, 3, BOX)), found((9, 3, BOX, 0.5)))
    with pytest.raises(ValueError, match=r"category ids that the annotations lack: \[0\]"):
        score(truth((1, 3, BOX)), found((1, 0, BOX, 0.5)))


@either_way
def test_a_split_without_anything_to_find_is_refused(score: Score) -> None:
    with pytest.raises(DataError, match="AP is undefined"):
        score(truth(), found())
    with pytest.raises(DataError, match="AP is undefined"):
        score(truth((1, 3, BOX), iscrowd=1), found())


@either_way
def test_area_limits_out_of_order_are_refused(score: Score) -> None:
    with pytest.raises(ValueError, match="small_side < medium_side"):
        score(truth((1, 3, BOX)), found(), small_side=96, medium_side=32)


def random_scene(seed: int) -> tuple[dict, Results]:
    """Few images and classes with everything that makes an evaluation awkward.

    Ids with gaps, below 0 and out of order; crowds; areas that are not the box's; images and a category
    without truth; more than 100 detections of a class in an image; equal scores; boxes of size 0.
    """
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(np.arange(-50, 10**6), size=rng.integers(1, 8), replace=False)
    category_ids = rng.choice(90, size=rng.integers(2, 5), replace=False)
    objects = int(rng.integers(1, 40))
    boxes = boxes_within_100(rng, objects)
    image, category = rng.choice(image_ids, objects), rng.choice(category_ids[1:], objects)
    crowd = rng.uniform(size=objects) < 0.15
    crowd[0] = False
    areas = boxes[:, 2:].prod(axis=1) * rng.choice([1.0, 0.7], objects)
    columns = (image, category, boxes, areas, crowd.astype(int))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    ground_truth = {
        "images": [{"id": n} for n in image_ids.tolist()],
        "categories": [{"id": n, "name": f"class {n}"} for n in category_ids.tolist()],
        "annotations": [
            {"id": n, **dict(zip(names, row, strict=True))}
            for n, row in enumerate(zip(*(column.tolist() for column in columns), strict=True))
        ],
    }
    hits, others = int(rng.choice([0, 20, 400])), int(rng.choice([0, 5, 400]))
    hit = rng.integers(objects, size=hits)
    near = np.clip(boxes[hit] + rng.normal(size=(hits, 4)) * rng.choice([0.0, 2.0, 8.0], (hits, 1)), 0, None)
    order = rng.permutation(hits + others)
    scores = np.round(rng.uniform(size=len(order)), int(rng.choice([1, 9])))
    results = Results(
        np.concatenate([image[hit], rng.choice(image_ids, others)])[order],
        np.concatenate([category[hit], rng.choice(category_ids, others)])[order],
        np.concatenate([near, boxes_within_100(rng, others)])[order].astype(rng.choice(["f4", "f8"])),
        scores.astype(rng.choice(["f4", "f8"])),
    )
    return ground_truth, results


def boxes_within_100(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.round(rng.uniform(0, 100, size=(count, 4)) * rng.choice([0.005, 0.3, 1.0], (count, 1)))


@pytest.mark.parametrize("sides", [(32, 96), (10, 50), (24.5, 60.25)])
@pytest.mark.parametrize("seed", range(25))
def test_the_quick_way_gives_the_judges_numbers_to_the_last_bit(seed: int, sides: tuple) -> None:
    ground_truth, results = random_scene(seed)
    assert fast_evaluate(ground_truth, results, *sides) == evaluate(ground_truth, results, *sides)


@either_way
def test_an_annotation_of_an_image_that_is_not_listed_does_not_count(score: Score) -> None:
    listed, further = truth((1, 3, BOX)), truth((1, 3, BOX), (9, 3, BOX), (2, 5, BOX))
    detections = found((1, 3, BOX, 0.9), (2, 3, BOX, 0.95))
    assert score(further, detections) == score(listed, detections)
    with pytest.raises(DataError, match="AP is undefined"):
        score(truth((9, 3, BOX)), found())


def test_the_quick_way_warns_of_nothing() -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fast_evaluate(truth((1, 3, BOX)), found((1, 3, BOX, 0.9)), 8, 24)
    assert warned == []


def test_without_the_quick_library_the_judge_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_eval, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    ground_truth, results = random_scene(0)
    assert fast_evaluate(ground_truth, results) == evaluate(ground_truth, results)


@pytest.mark.process
def test_neither_library_is_needed_to_import_the_module() -> None:
    program = """
import sys
sys.modules["pycocotools"] = sys.modules["hotcoco"] = None
import detector.evaluation.bootstrap, detector.evaluation.coco_eval
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


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
