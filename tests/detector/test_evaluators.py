"""Which benchmarks judge a test, and what is kept of their numbers."""

from pathlib import Path

import numpy as np
import pytest

from detector.config import Data, Evaluation, SquareData, VOCEvaluation
from detector.data.coco import CheckedSplit, read_data
from detector.data.shapes import ShapesSpec, draw_dataset
from detector.evaluation.coco_eval import AP_NAMES, METRIC_NAMES, Results
from detector.evaluation.evaluators import COCOEvaluator, VOCEvaluator, evaluator_of

COCO, VOC = COCOEvaluator(), VOCEvaluator(COCOEvaluator())


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CheckedSplit:
    spec = ShapesSpec(image_size=64, num_train=2, num_val=30, max_objects=5, min_size=8)
    return read_data(draw_dataset(spec, tmp_path_factory.mktemp("drawn")))[1]


@pytest.fixture(scope="module")
def results(split: CheckedSplit) -> Results:
    """Each object found, more or less, and a wrong detection in each image."""
    r = np.random.default_rng(0)
    rows = []
    for record in split.images:
        for xywh, label in zip(record.xywh, record.labels, strict=True):
            box = xywh * (1 + 0.1 * r.normal(size=4))
            rows.append((record.id, split.category_ids[label], np.abs(box), r.random()))
        rows.append((record.id, split.category_ids[0], np.array([1.0, 1, 9, 9]), r.random()))
    ids, categories, boxes, scores = zip(*rows, strict=True)
    return Results(np.array(ids), np.array(categories), np.array(boxes), np.array(scores))


def test_the_class_of_a_test_decides_who_judges_it() -> None:
    data, square = Data("0" * 12, small_side=8, medium_side=24), SquareData("0" * 12, 64)
    assert evaluator_of(Evaluation(), data) == COCOEvaluator(8, 24)
    assert evaluator_of(VOCEvaluation(min_iou=0.6), square) == VOCEvaluator(COCOEvaluator(32, 96), 0.6)
    with pytest.raises(ValueError, match=r"min_iou must be in \[0, 1\), got 1"):
        VOCEvaluation(min_iou=1)
    with pytest.raises(ValueError, match="score_threshold must be in"):
        VOCEvaluation(score_threshold=1)


def test_vocs_numbers_stand_beside_cocos_which_stay_as_they_are(
    split: CheckedSplit, results: Results
) -> None:
    coco, voc = COCO.scores(split, results), VOC.scores(split, results)
    assert list(coco.metrics) == [name for name in METRIC_NAMES if name in coco.metrics]
    assert voc.metrics == {**{name: voc.metrics[name] for name in ("mAP", "mAP_area")}, **coco.metrics}
    assert 20 < voc.metrics["mAP"] < 100
    known = [ap for ap in voc.class_ap.values() if not np.isnan(ap)]
    assert np.mean(known) == pytest.approx(voc.metrics["mAP"], abs=1e-9)
    assert voc.class_ap.keys() == coco.class_ap.keys() and voc.class_ap != coco.class_ap


@pytest.mark.parametrize("evaluator", [COCO, VOC])
def test_all_three_ways_give_the_same_numbers(
    evaluator: COCOEvaluator | VOCEvaluator, split: CheckedSplit, results: Results
) -> None:
    plain = evaluator.scores(split, results)
    assert evaluator.quick_scores(split, results) == plain
    assert evaluator.judge(split, results).scores == plain


def test_mean_ap_is_resampled_with_the_images_of_cocos_ap(
    split: CheckedSplit, results: Results, tmp_path: Path
) -> None:
    coco, voc = COCO.judge(split, results), VOC.judge(split, results)
    assert voc.columns == ("mAP", "mAP_area", *AP_NAMES) and voc.replicates.shape == (200, 8)
    np.testing.assert_array_equal(voc.replicates[:, 2:], coco.replicates)
    # One AP50 by VOC and one by COCO: of the same resampled images, so they rise and fall together.
    area, ap50 = voc.replicates[:, 1], voc.replicates[:, 2 + AP_NAMES.index("AP50")]
    assert np.corrcoef(area, ap50)[0, 1] > 0.9
    assert abs(area.mean() - voc.scores.metrics["mAP_area"]) < 4 * area.std()
    assert list(coco.matches) == ["matches"] and list(voc.matches) == ["matches", "voc_matches"]
    for kind, match in voc.matches.items():
        match.save(tmp_path / f"{kind}.npz")
        assert (tmp_path / f"{kind}.npz").stat().st_size > 0


def test_replicates_of_two_detectors_are_of_the_same_images(split: CheckedSplit, results: Results) -> None:
    """So that the interval of a difference is that of a paired one."""
    worse = Results(results.image_ids, results.category_ids, results.boxes_xywh * 1.04, results.scores)
    one, two = (VOC.judge(split, found).replicates[:, 0] for found in (results, worse))
    shuffled = np.random.default_rng(1).permutation(two)
    assert (one - two).std() < 0.8 * (one - shuffled).std()
