"""The train function of the study: one attempt at one trial, from data set to evaluations.

It joins the detector, which knows nothing of trials, to the platform, which knows nothing of detectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from ablation.protocol import Checkpointed, Evaluated, EvaluationRequest, Noticed, Progress, Report, Request
from detector import bootstrap, coco_eval, pictures
from detector.coco import CheckedSplit, DataPaths, read_split
from detector.config import Evaluation, Trial
from detector.dataset import PackedImages, open_packed
from detector.dense_detector import DenseDetector
from detector.inference import detect_split, packed_detections
from detector.train import CheckpointReport, Notice, Ranks, RunOptions, StepReport, TrainReport, train
from experiments.profiles import Context

PICTURED_IMAGES = 6


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
    training = train(trial, images, options)
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
    return read_split(paths.train), read_split(paths.val)


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
    scores = coco_eval.evaluate(
        split.to_coco_dict(), results, trial.data.small_side, trial.data.medium_side
    )
    folder = directory / "evaluations" / wanted.key
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = {
        "detections": results.save(folder / "detections.npz"),
        "bootstrap": bootstrap.save_replicates(scores, folder / "bootstrap.npz"),
        "picture": _picture(images, results, folder / "detections.png"),
    }
    return Evaluated(wanted.key, scores.metrics, {kind: str(path) for kind, path in artifacts.items()})


def _picture(images: PackedImages, results: coco_eval.Results, path: Path) -> Path:
    """A few validation images with their ground truth and the most confident detections."""
    drawn = []
    for index in range(min(PICTURED_IMAGES, len(images))):
        detections = packed_detections(images, results, index)
        drawn.append(pictures.draw_detections(images.image(index), detections, images.ground_truth(index)))
    return pictures.contact_sheet(drawn, columns=3, path=path)
