"""The train function of the study: one attempt at one trial, from data set to evaluations.

It joins the detector, which knows nothing of trials, to the platform, which knows nothing of detectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ablation.protocol import Checkpointed, Evaluated, EvaluationRequest, Noticed, Progress, Report, Request
from detector.bootstrap import bootstrap, match_data
from detector.coco import CheckedSplit, DataPaths, read_data, to_coco_dict
from detector.coco_eval import Results, judge, save_arrays, scores
from detector.config import Evaluation, Trial
from detector.dataset import PackedImages, open_packed
from detector.dense_detector import DenseDetector
from detector.inference import detect_split
from detector.pictures import contact_sheet, draw_detections
from detector.train import CheckpointReport, Notice, Ranks, RunOptions, StepReport, TrainReport, train
from detector.transforms import scale_boxes, xywh_to_xyxy
from experiments.profiles import Context

PICTURED_IMAGES = 6
PICTURE_SIDE = 384
"""Pixels that the short side of a pictured image is enlarged to, at least about."""


def train_trial(request: Request) -> Iterator[Report]:
    """Train the request's trial, then run the evaluations it asks for.

    A trial whose training is finished goes straight to its evaluations, from its last checkpoint.
    """
    trial: Trial = request.config
    context: Context = request.context
    splits = _read(context.paths)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = open_packed(splits[0], "train", trial.data, context.cache)
    options = RunOptions(
        request.directory / "checkpoints", device, context.report_every, context.checkpoint_every
    )
    training = train(trial, splits[0], images, options)
    while True:
        try:
            yield _report(next(training), trial)
        except StopIteration as finished:
            model: DenseDetector = finished.value
            break
    held_out = open_packed(splits[1], "val", trial.data, context.cache)
    for wanted in request.evaluations:
        yield _evaluate(model, trial, wanted, splits[1], held_out, request.directory)


@lru_cache(maxsize=2)
def _read(paths: DataPaths) -> tuple[CheckedSplit, CheckedSplit]:
    """Both splits; a process that trains several trials of one data set reads it once."""
    return read_data(paths)


def _report(report: TrainReport, trial: Trial) -> Report:
    match report:
        case StepReport(step=step, metrics=metrics):
            return Progress(step, trial.schedule.iterations, metrics)
        case CheckpointReport(file=file):
            return Checkpointed(file.step, str(file.path), file.sha256)
        case Notice(message=message):
            return Noticed(message)


def _evaluate(
    model: DenseDetector,
    trial: Trial,
    wanted: EvaluationRequest,
    split: CheckedSplit,
    images: PackedImages,
    directory: Path,
) -> Evaluated:
    """One evaluation and the files behind it. Only rank 0 of a worker group does the work."""
    if Ranks.current().rank != 0:
        return Evaluated(wanted.key, {})
    evaluation: Evaluation = wanted.config
    results = detect_split(model, images, split, evaluation, trial.schedule.precision)
    judged = judge(to_coco_dict(split), results, trial.data.small_side, trial.data.medium_side)
    folder = directory / "evaluations" / wanted.key
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        "detections": folder / "detections.npz",
        "matches": folder / "matches.npz",
        "bootstrap": folder / "bootstrap.npz",
        "picture": folder / "detections.png",
    }
    results.save(paths["detections"])
    matches = match_data(judged)
    matches.save(paths["matches"])
    save_arrays(paths["bootstrap"], {"replicates": bootstrap(matches)})
    _picture(images, results, split, paths["picture"])
    return Evaluated(wanted.key, scores(judged).metrics, {kind: str(path) for kind, path in paths.items()})


def _picture(images: PackedImages, results: Results, split: CheckedSplit, path: Path) -> None:
    """A few validation images with their ground truth and the detections worth a look."""
    drawn = []
    for index in range(min(PICTURED_IMAGES, len(images))):
        record, (height, width) = images.records[index], images.sizes[index]
        own = results.image_ids == record.id
        boxes = xywh_to_xyxy(results.boxes_xywh[own])
        drawn.append(
            draw_detections(
                images[index],
                scale_boxes(boxes, (record.height, record.width), (height, width)),
                results.scores[own],
                np.searchsorted(split.category_ids, results.category_ids[own]),
                images.boxes[index],
                images.labels[index],
                split.class_names,
                scale=max(1, PICTURE_SIDE // min(height, width)),
                min_score=0.5,
            )
        )
    contact_sheet(drawn, columns=3, path=path, title=f"{path.parent.parent.parent.name}: validation images")
