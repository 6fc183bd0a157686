"""The numbers that stored detections give today, for checking what the store says of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ablation.errors import UserError
from ablation.study import Setting
from detector.coco import DataPaths, read_data, to_coco_dict
from detector.coco_eval import Results, evaluate
from detector.config import Evaluation, Trial
from detector.errors import DataError


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
    if evaluation.split == "test":
        raise UserError("the annotations of the test images are not public")
    try:
        ground_truth = _ground_truth(setting.context.paths)
        results, data = Results.load(detections), trial.data
        return evaluate(ground_truth, results, data.small_side, data.medium_side).metrics
    except (DataError, ValueError) as error:
        raise UserError(str(error)) from error


@lru_cache(maxsize=1)
def _ground_truth(paths: DataPaths) -> dict[str, Any]:
    """The validation split, read once for all evaluations on it."""
    _, val = read_data(paths)
    return to_coco_dict(val)
