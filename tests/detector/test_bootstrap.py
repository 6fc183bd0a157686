import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.errors import DataError
from detector.evaluation.bootstrap import MatchData, average_precision, bootstrap, image_weights, match_data
from detector.evaluation.coco_eval import AP_NAMES, Results, run_cocoeval

EXACT = {"rtol": 0, "atol": 1e-12}


def scene(
    seed: int, images: int = 40, classes: int = 3, per_image: int = 20, ties: bool = False
) -> tuple[dict[str, Any], Results]:
    """Random objects (a few of them crowds) and jittered detections of them, in original pixels."""
    r = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    rows = []
    for image in range(1, images + 1):
        objects = []
        for _ in range(r.integers(1, 8)):
            w, h = np.exp(r.uniform(np.log(8), np.log(150), size=2))
            x, y = r.uniform(0, 200, size=2)
            objects.append((np.array([x, y, w, h]), int(r.integers(1, classes + 1))))
            annotation = {"image_id": image, "category_id": objects[-1][1], "bbox": [x, y, w, h]}
            more = {"id": len(annotations) + 1, "area": w * h * 0.8, "iscrowd": int(r.random() < 0.05)}
            annotations.append(annotation | more)
        for _ in range(per_image):
            box, category = objects[r.integers(len(objects))]
            spread = r.choice([0.03, 0.1, 0.4])
            jitter = box[[2, 3, 2, 3]] * r.normal(size=4) * spread
            box = np.concatenate([(box + jitter)[:2], np.abs((box + jitter)[2:])])
            category = category if r.random() < 0.9 else int(r.integers(1, classes + 1))
            score = 1 / (1 + np.exp(6 * spread - 2 + r.normal()))
            rows.append((image, category, box, round(score, 1) if ties else score))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    ground_truth = {
        "images": [{"id": n} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)],
        "annotations": annotations,
    }
    return ground_truth, Results(*columns)


def repeated(ground_truth: dict[str, Any], results: Results, weights: Any) -> tuple[dict[str, Any], Results]:
    """The data set with image i literally there `weights[i]` times, each copy under an id of its own."""
    copies = [
        (n, image["id"]) for image, w in zip(ground_truth["images"], weights, strict=True) for n in range(w)
    ]
    new_ids = {(n, old): new for new, (n, old) in enumerate(copies, start=1)}
    annotations = [
        {**annotation, "image_id": new}
        for (_, old), new in new_ids.items()
        for annotation in ground_truth["annotations"]
        if annotation["image_id"] == old
    ]
    rows = [np.flatnonzero(results.image_ids == old) for _, old in copies]
    image_ids = np.repeat(np.arange(1, len(copies) + 1), [len(r) for r in rows])
    row = np.concatenate(rows)
    truth = {**ground_truth, "images": [{"id": n} for n in new_ids.values()], "annotations": annotations}
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return truth, Results(image_ids, results.category_ids[row], results.boxes_xywh[row], results.scores[row])


def six(judged: Any) -> Any:
    stats = judged.stats[: len(AP_NAMES)]
    return np.where(stats == -1, np.nan, 100 * stats)


def ones(match: MatchData) -> Any:
    return np.ones(len(match.image_ids), dtype=np.int64)


def test_unit_weights_give_the_published_aps(shared: Path) -> None:
    folder = shared / "data" / "eval_refs" / "val2014_100"
    truth = json.loads((folder / "gt.json").read_text())
    judged = run_cocoeval(truth, Results.from_coco(json.loads((folder / "dets.json").read_text())))
    match = match_data(judged)
    np.testing.assert_allclose(average_precision(match, ones(match)), six(judged), **EXACT)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_unit_weights_give_what_pycocotools_gives(seed: int, ties: bool) -> None:
    judged = run_cocoeval(*scene(seed, ties=ties))
    match = match_data(judged)
    np.testing.assert_allclose(average_precision(match, ones(match)), six(judged), **EXACT)


@pytest.mark.parametrize("seed", range(6))
def test_weights_give_what_pycocotools_gives_for_literally_repeated_images(seed: int) -> None:
    truth, results = scene(seed)
    match = match_data(run_cocoeval(truth, results))
    weights = image_weights(len(match.image_ids), 1, seed)[0]
    assert weights.max() > 1
    judged = run_cocoeval(*repeated(truth, results, weights))
    np.testing.assert_allclose(average_precision(match, weights), six(judged), **EXACT)


def test_a_weight_of_two_everywhere_is_not_a_weight_of_one() -> None:
    # Repeating everything moves the places where recall thresholds fall: no weighting may be normalised.
    truth, results = scene(0)
    match = match_data(run_cocoeval(truth, results))
    judged = run_cocoeval(*repeated(truth, results, 2 * ones(match)))
    np.testing.assert_allclose(average_precision(match, 2 * ones(match)), six(judged), **EXACT)


def test_no_detections_give_zero() -> None:
    truth, _ = scene(0)
    match = match_data(run_cocoeval(truth, Results.from_coco([])))
    np.testing.assert_array_equal(average_precision(match, ones(match)), np.zeros(6))


def test_an_area_range_without_objects_is_nan() -> None:
    truth, results = scene(0)
    match = match_data(run_cocoeval(truth, results, small_side=1, medium_side=2))
    np.testing.assert_array_equal(np.isnan(average_precision(match, ones(match))), [0, 0, 0, 1, 1, 0])


def test_a_class_that_the_weights_leave_out_is_left_out_of_the_mean() -> None:
    truth, results = scene(1, images=12)
    match = match_data(run_cocoeval(truth, results))
    of_class_1 = {a["image_id"] for a in truth["annotations"] if a["category_id"] == 1}
    weights = np.array([int(i not in of_class_1) for i in match.image_ids])
    assert 0 < weights.sum() < len(weights)
    judged = run_cocoeval(*repeated(truth, results, weights))
    np.testing.assert_allclose(average_precision(match, weights), six(judged), **EXACT)


def test_rows_of_weights_are_independent_of_each_other() -> None:
    match = match_data(run_cocoeval(*scene(2)))
    weights = image_weights(len(match.image_ids), 5, seed=1)
    one_by_one = np.stack([average_precision(match, row) for row in weights])
    np.testing.assert_allclose(average_precision(match, weights), one_by_one, **EXACT)


def test_every_replicate_draws_as_many_images_as_there_are() -> None:
    weights = image_weights(30, replicates=50, seed=0)
    assert weights.shape == (50, 30)
    np.testing.assert_array_equal(weights.sum(axis=1), 30)


def test_replicates_depend_on_the_seed_and_the_number_of_images_alone() -> None:
    np.testing.assert_array_equal(image_weights(30, 10, seed=3), image_weights(30, 50, seed=3)[:10])
    assert (image_weights(30, 10, seed=3) != image_weights(30, 10, seed=4)).any()


def test_paired_differences_vary_less_than_unpaired_ones() -> None:
    truth, results = scene(3)
    worse = Results(results.image_ids, results.category_ids, results.boxes_xywh * 1.01, results.scores)
    match, other = match_data(run_cocoeval(truth, results)), match_data(run_cocoeval(truth, worse))
    paired = bootstrap(match, seed=0)[:, 0] - bootstrap(other, seed=0)[:, 0]
    unpaired = bootstrap(match, seed=0)[:, 0] - bootstrap(other, seed=1)[:, 0]
    assert paired.std() < 0.5 * unpaired.std()


def test_the_same_seed_gives_the_same_replicates_after_saving_and_loading(tmp_path: Path) -> None:
    match = match_data(run_cocoeval(*scene(4)))
    match.save(tmp_path / "match.npz")
    loaded = MatchData.load(tmp_path / "match.npz")
    for field in fields(MatchData):
        kept, read = getattr(match, field.name), getattr(loaded, field.name)
        assert kept.dtype == read.dtype
        np.testing.assert_array_equal(kept, read)
    np.testing.assert_array_equal(bootstrap(loaded, 20, seed=5), bootstrap(match, 20, seed=5))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "match.npz"
    match_data(run_cocoeval(*scene(0, images=3))).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"match\.npz"):
        MatchData.load(path)


def test_weights_of_another_data_set_are_refused() -> None:
    match = match_data(run_cocoeval(*scene(0, images=5)))
    with pytest.raises(ValueError, match=r"one weight for each of 5 images, got \(2, 6\)"):
        average_precision(match, np.ones((2, 6), dtype=np.int64))


def test_two_hundred_replicates_of_a_validation_split_take_a_moment() -> None:
    match = match_data(run_cocoeval(*scene(0, images=500, classes=6, per_image=40)))
    start = time.process_time()
    assert bootstrap(match, replicates=200).shape == (200, 6)
    assert time.process_time() - start < 5.0  # 0.7 on a quiet core
