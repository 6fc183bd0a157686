"""Evaluators: what judges the detections of a test. The config of the test decides which one does.

An evaluator gives the numbers of tables, the same by class, how they vary with the images tested, and what it
matched. Training, `ablation verify` and the tables by class call nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from detector.config import AnyData, Evaluation, VOCEvaluation
from detector.data.coco import CheckedSplit, to_coco_dict
from detector.evaluation.bootstrap import bootstrap, image_weights, match_data
from detector.evaluation.coco_eval import (
    AP_NAMES,
    Results,
    Scores,
    evaluate,
    fast_evaluate,
    run_cocoeval,
    scores,
)
from detector.evaluation.voc_eval import VOC_NAMES, match_voc, mean_aps, voc_scores

Floats = npt.NDArray[np.float64]

REPLICATES = 200
"""Resampled data sets of an evaluation."""


class Saved(Protocol):
    """Something that can be kept in a file."""

    def save(self, path: Path) -> None:
        """Write it."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Everything that one evaluation keeps.

    Attributes:
        scores: the numbers of tables.
        columns: names of the metrics that were resampled.
        replicates: (R, columns) float64, percent: the metrics of resampled data sets, the same images in row
            r for every detector on the split; NaN where undefined.
        matches: what was matched, by the name of its file.
    """

    scores: Scores
    columns: tuple[str, ...]
    replicates: Floats
    matches: Mapping[str, Saved]


class Evaluator(Protocol):
    """Judges detections by the rules of one or several benchmarks.

    Metrics are in percent, by name; an undefined one is absent. Every method raises ValueError for a
    detection of an unknown image or category, and `DataError` for a split in which no object counts.
    """

    def scores(self, split: CheckedSplit, results: Results) -> Scores:
        """The numbers of tables, and the main one of them by class."""

    def quick_scores(self, split: CheckedSplit, results: Results) -> Scores:
        """The same numbers by the quickest code, for validation during a training."""

    def judge(self, split: CheckedSplit, results: Results) -> Judged:
        """The numbers of tables with all that is kept beside them."""


def evaluator_of(evaluation: Evaluation, data: AnyData) -> Evaluator:
    """The evaluator of a trial's test: the class of the test decides."""
    coco = COCOEvaluator(data.small_side, data.medium_side)
    match evaluation:
        case VOCEvaluation(min_iou=min_iou):
            return VOCEvaluator(coco, min_iou)
        case _:
            return coco


@dataclass(frozen=True, slots=True)
class COCOEvaluator:
    """COCO's twelve numbers, and AP by class; see `coco_eval`. Difficult objects of VOC are crowds to it.

    Attributes:
        small_side, medium_side: see `config.Data`.
    """

    small_side: float = 32.0
    medium_side: float = 96.0

    def scores(self, split: CheckedSplit, results: Results) -> Scores:
        """By pycocotools."""
        return evaluate(to_coco_dict(split), results, self.small_side, self.medium_side)

    def quick_scores(self, split: CheckedSplit, results: Results) -> Scores:
        """By hotcoco where it is installed; bit for bit the same."""
        return fast_evaluate(to_coco_dict(split), results, self.small_side, self.medium_side)

    def judge(self, split: CheckedSplit, results: Results) -> Judged:
        """By pycocotools; the six APs are resampled."""
        judged: Any = run_cocoeval(to_coco_dict(split), results, self.small_side, self.medium_side)
        matches = match_data(judged)
        return Judged(scores(judged), AP_NAMES, bootstrap(matches, REPLICATES), {"matches": matches})


@dataclass(frozen=True, slots=True)
class VOCEvaluator:
    """VOC's mAP by 11 points and by area, and COCO's numbers besides; AP by 11 points of each class.

    Attributes:
        coco: gives COCO's numbers of the same detections.
        min_iou: see `config.VOCEvaluation`.
    """

    coco: COCOEvaluator
    min_iou: float = 0.5

    def scores(self, split: CheckedSplit, results: Results) -> Scores:
        """mAP, and COCO's numbers by pycocotools."""
        voc = voc_scores(split, match_voc(split, results, self.min_iou))
        return _both(voc, self.coco.scores(split, results))

    def quick_scores(self, split: CheckedSplit, results: Results) -> Scores:
        """mAP, and COCO's numbers by hotcoco where it is installed."""
        voc = voc_scores(split, match_voc(split, results, self.min_iou))
        return _both(voc, self.coco.quick_scores(split, results))

    def judge(self, split: CheckedSplit, results: Results) -> Judged:
        """mAP and COCO's six APs are resampled with the same images."""
        coco = self.coco.judge(split, results)
        match = match_voc(split, results, self.min_iou)
        means_R2 = mean_aps(match, image_weights(len(match.image_ids), REPLICATES, seed=0))
        return Judged(
            _both(voc_scores(split, match), coco.scores),
            (*VOC_NAMES, *coco.columns),
            np.concatenate([means_R2, coco.replicates], axis=1),
            {**coco.matches, "voc_matches": match},
        )


def _both(voc: Scores, coco: Scores) -> Scores:
    """All numbers; those by class are VOC's."""
    return Scores({**voc.metrics, **coco.metrics}, voc.class_ap)
