"""The numbers that stored detections give today: those that the store keeps, and AP by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ablation.errors import UserError
from ablation.setting import Setting
from detector.config import Evaluation, Trial
from detector.data.coco import DataPaths, read_data, to_coco_dict
from detector.errors import DataError
from detector.evaluation.coco_eval import CocoScores, Results, evaluate, fast_evaluate


def rescore(setting: Setting, trial: Trial, evaluation: Evaluation, detections: Path) -> Mapping[str, float]:
    """Score detections again, as the training's own evaluation did.

    Args:
        setting: names the data set.
        detections: what `Results.save` wrote.

    Returns:
        COCO's numbers in percent, by the names of `METRIC_NAMES`.

    Raises:
        UserError: the data set or the detections cannot be read, do not belong together, or are of test
            images, whose annotations only an evaluation server has.
    """
    return _scored(evaluate, setting, trial, evaluation, detections).metrics


def by_class(setting: Setting, trial: Trial, evaluation: Evaluation, detections: Path) -> Mapping[str, float]:
    """AP in percent by class, NaN where the images hold none; arguments and errors as `rescore`."""
    return _scored(fast_evaluate, setting, trial, evaluation, detections).class_ap


def _scored(
    evaluator: Callable[..., CocoScores],
    setting: Setting,
    trial: Trial,
    evaluation: Evaluation,
    detections: Path,
) -> CocoScores:
    if evaluation.split == "test":
        raise UserError("the annotations of the test images are not public")
    try:
        ground_truth = _ground_truth(setting.context.paths)
        results, data = Results.load(detections), trial.data
        return evaluator(ground_truth, results, data.small_side, data.medium_side)
    except (DataError, ValueError) as error:
        raise UserError(str(error)) from error


@lru_cache(maxsize=1)
def _ground_truth(paths: DataPaths) -> dict[str, Any]:
    """The validation split, read once for all evaluations on it."""
    _, val = read_data(paths)
    return to_coco_dict(val)
