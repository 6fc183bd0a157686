"""The numbers that stored detections give today: those that the store keeps, and AP by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from ablation.errors import UserError
from ablation.setting import Setting
from detector.config import Evaluation, Trial
from detector.data.coco import CheckedSplit, DataPaths, read_data
from detector.errors import DataError
from detector.evaluation.coco_eval import Results, Scores
from detector.evaluation.evaluators import Evaluator, evaluator_of


def rescore(setting: Setting, trial: Trial, evaluation: Evaluation, detections: Path) -> Mapping[str, float]:
    """Score detections again, as the training's own evaluation did.

    Args:
        setting: names the data set.
        detections: what `Results.save` wrote.

    Returns:
        The evaluator's numbers, in percent.

    Raises:
        UserError: the data set or the detections cannot be read, do not belong together, or are of test
            images, whose annotations only an evaluation server has.
    """

    def score(evaluator: Evaluator, split: CheckedSplit, results: Results) -> Scores:
        return evaluator.scores(split, results)

    return _scored(score, setting, trial, evaluation, detections).metrics


def by_class(setting: Setting, trial: Trial, evaluation: Evaluation, detections: Path) -> Mapping[str, float]:
    """AP in percent by class, NaN where the images hold none; arguments and errors as `rescore`."""

    def score(evaluator: Evaluator, split: CheckedSplit, results: Results) -> Scores:
        return evaluator.quick_scores(split, results)

    return _scored(score, setting, trial, evaluation, detections).class_ap


def _scored(
    score: Callable[[Evaluator, CheckedSplit, Results], Scores],
    setting: Setting,
    trial: Trial,
    evaluation: Evaluation,
    detections: Path,
) -> Scores:
    if evaluation.split == "test":
        raise UserError("the annotations of the test images are not public")
    try:
        split = _tested(setting.context.paths)
        return score(evaluator_of(evaluation, trial.data), split, Results.load(detections))
    except (DataError, ValueError) as error:
        raise UserError(str(error)) from error


@lru_cache(maxsize=1)
def _tested(paths: DataPaths) -> CheckedSplit:
    """The validation split, read once for all evaluations on it."""
    _, val = read_data(paths)
    return val
