"""The train function of the study: one attempt at one trial, from data set to evaluations.

It joins the detector, which knows nothing of trials, to the platform, which knows nothing of detectors.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from ablation.protocol import (
    Checkpointed,
    DeviceError,
    Evaluated,
    EvaluationRequest,
    Noticed,
    OutOfMemoryError,
    Progress,
    Report,
    Request,
)
from detector import device_check
from detector.config import Evaluation, Trial, Weights
from detector.data.coco import CheckedSplit, DataPaths, read_data, read_test
from detector.data.dataset import SplitImages, open_split
from detector.evaluation.coco_eval import Results, save_arrays
from detector.evaluation.evaluators import evaluator_of
from detector.evaluation.inference import detect_split
from detector.geometry.transforms import scale_boxes, xywh_to_xyxy
from detector.model.detector import AnyModel
from detector.model.weights import download
from detector.pictures import contact_sheet, draw_detections
from detector.presets import usual_test
from detector.training.train import (
    CheckpointReport,
    Notice,
    RunOptions,
    StepReport,
    TrainReport,
    Validate,
    train,
)
from experiments.detection.data import Context

SUBMISSION = "detections_test-dev2017_atss_results.json"
"""COCO's server wants detections_<images>_<method>_results.json, zipped."""

_WANT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What other errors than `torch.OutOfMemoryError` say: of PyTorch's CPU allocator and of CUDA's libraries."""

_OF_DEVICE = ("CUDA error", "CUBLAS_STATUS_", "cuDNN error", "CUDNN_STATUS_", "ncclUnhandledCudaError")
"""What errors say when a GPU or its libraries gave up, beside `torch.AcceleratorError`."""
_OF_CODE = "device-side assert"
"""But this is said where code asks for what cannot be, an index out of range say: it would ask again."""

PICTURED_IMAGES = 6
PICTURE_SIDE = 384
"""Pixels that the short side of a pictured image is enlarged to, at least about."""


def train_trial(request: Request) -> Generator[Report, None, None]:
    """Train the request's trial, then run the evaluations it asks for.

    A trial whose training is finished goes straight to its evaluations, from its last checkpoint.

    Raises:
        OutOfMemoryError: of the device or the machine.
        DeviceError: the GPU failed, or cannot be used.
    """
    trial: Trial = request.config
    context: Context = request.context
    with _failures_named(trial, request):
        splits = _read(context.paths)
        images = open_split(splits["train"], "train", trial.data, context.cache)
        validate = _validation(trial, splits["val"], request) if context.validate_every else None
        training = train(trial, splits["train"], images, _options(request), validate)
        model = yield from _reports(training, trial)
        for wanted in request.evaluations:
            yield _evaluate(model, trial, wanted, splits, request)


@contextmanager
def _failures_named(trial: Trial, request: Request) -> Iterator[None]:
    """Says of an error that it is want of memory, and what would need half as much, or of the GPU."""
    index = 0
    try:
        if request.gpus != 0 and torch.cuda.is_available():
            index = torch.cuda.current_device()
        yield
    except (MemoryError, RuntimeError) as error:
        if _is_want_of_memory(error):
            raise _out_of_memory(error, trial, request) from error
        if _is_of_device(error):
            raise _device_error(error, index, request) from error
        raise


def _out_of_memory(error: Exception, trial: Trial, request: Request) -> OutOfMemoryError:
    share = -(-trial.schedule.total_batch // request.workers)
    now = min(share, request.micro_batch or share)
    smaller = now // 2 if now > 1 else None
    return OutOfMemoryError(f"out of memory with {now} images at a time: {error}", smaller)


def _device_error(error: Exception, index: int, request: Request) -> DeviceError:
    request.heartbeat()  # a check may take longer than a step
    fault = device_check.fault(index)
    first = str(error).partition("\n")[0]
    said = f"{first}; asked again by a new process: {fault}" if fault else first
    return DeviceError(said, usable=not fault)


def _is_want_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(mark in str(error) for mark in _WANT_OF_MEMORY)


def _is_of_device(error: Exception) -> bool:
    of_device = isinstance(error, torch.AcceleratorError) or any(mark in str(error) for mark in _OF_DEVICE)
    return of_device and _OF_CODE not in str(error)


def _reports(
    training: Generator[TrainReport, None, AnyModel], trial: Trial
) -> Generator[Report, None, AnyModel]:
    """The training's reports as the platform's; the trained model when it ends."""
    with closing(training):
        while True:
            try:
                report = next(training)
            except StopIteration as finished:
                model: AnyModel = finished.value
                return model
            yield _report(report, trial)


def _options(request: Request) -> RunOptions:
    context: Context = request.context
    return RunOptions(
        directory=request.directory / "checkpoints",
        device=_device(request.gpus),
        report_every=context.report_every,
        checkpoint_every=context.checkpoint_every,
        micro_batch=request.micro_batch,
        loaders=context.loaders,
        weights=partial(_weights_file, request.config.weights, context),
        validate_every=context.validate_every,
    )


def _device(gpus: float | None) -> str:
    """What a trial trains on: GPUs if it holds any, or where nobody counts them if there are any.

    Raises:
        RuntimeError: it holds GPUs, and PyTorch is one for CPUs.
        DeviceError: it holds GPUs that PyTorch cannot use here.
    """
    there = torch.cuda.is_available()
    if gpus and not there:
        holds = f"the trial holds a GPU that PyTorch {torch.__version__} cannot use"
        instead = "To train on the CPUs instead, run with --resources all=gpus:0."
        if torch.version.cuda is None:
            raise RuntimeError(f"{holds}: it is built without CUDA. {instead}")
        older = f"CUDA {torch.version.cuda} may want a newer driver than the machine has"
        raise DeviceError(f"{holds}: {older}. {instead}", usable=False)
    return "cuda" if there and gpus != 0 else "cpu"


def _weights_file(weights: Weights, context: Context) -> Path:
    """Where pretrained weights lie, downloaded where they are torchvision's."""
    source = context.weights[weights.sha256]
    return source if isinstance(source, Path) else download(source, context.cache)


@lru_cache(maxsize=2)
def _read(paths: DataPaths) -> dict[str, CheckedSplit]:
    """All splits; a process that trains several trials of one data set reads it once."""
    train_split, val = read_data(paths)
    test = {"test": read_test(paths.test, train_split)} if paths.test else {}
    return {"train": train_split, "val": val, **test}


def _validation(trial: Trial, split: CheckedSplit, request: Request) -> Validate:
    """The paper's test of the unfinished model, by the quick evaluator: tables never show its numbers."""
    context: Context = request.context
    images = open_split(split, "val", trial.data, context.cache)
    test = usual_test(trial.detector)
    evaluator = evaluator_of(test, trial.data)

    def validate(model: AnyModel) -> dict[str, float]:
        results = detect_split(
            model, images, split, test, trial.schedule.precision, context.loaders, request.heartbeat
        )
        if results is None:
            return {}
        found = evaluator.quick_scores(split, results)
        return {f"val_{name}": value for name, value in found.metrics.items()}

    return validate


def _report(report: TrainReport, trial: Trial) -> Report:
    match report:
        case StepReport(step=step, metrics=metrics):
            return Progress(step, trial.schedule.iterations, metrics)
        case CheckpointReport(file=file):
            return Checkpointed(file.step, str(file.path), file.sha256)
        case Notice(message=message):
            return Noticed(message)


def _evaluate(
    model: AnyModel,
    trial: Trial,
    wanted: EvaluationRequest,
    splits: dict[str, CheckedSplit],
    request: Request,
) -> Evaluated:
    """One evaluation and the files behind it; all ranks detect, the first one scores."""
    evaluation: Evaluation = wanted.config
    context: Context = request.context
    split = splits[evaluation.split]
    data = trial.data
    if evaluation.split == "test":
        data = replace(data, fingerprint=evaluation.test_fingerprint or "")
    images = open_split(split, evaluation.split, data, context.cache)
    results = detect_split(
        model, images, split, evaluation, trial.schedule.precision, context.loaders, request.heartbeat
    )
    if results is None:
        return Evaluated(wanted.key, {})
    folder = request.directory / "evaluations" / wanted.key
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"detections": folder / "detections.npz", "picture": folder / "detections.png"}
    results.save(paths["detections"])
    _picture(images, results, split, paths["picture"], request.trial_key)
    if evaluation.split == "test":
        paths["submission"] = folder / SUBMISSION
        results.write_json(paths["submission"])
        return Evaluated(wanted.key, {}, _as_text(paths))
    judged = evaluator_of(evaluation, trial.data).judge(split, results)
    for kind, match in judged.matches.items():
        paths[kind] = folder / f"{kind}.npz"
        match.save(paths[kind])
    paths["bootstrap"] = folder / "bootstrap.npz"
    columns = np.array(judged.columns)
    save_arrays(paths["bootstrap"], {"replicates": judged.replicates, "metrics": columns})
    return Evaluated(wanted.key, judged.scores.metrics, _as_text(paths))


def _as_text(paths: dict[str, Path]) -> dict[str, str]:
    return {kind: str(path) for kind, path in paths.items()}


def _picture(images: SplitImages, results: Results, split: CheckedSplit, path: Path, name: str) -> None:
    """A few validation images with their ground truth and the detections worth a look."""
    drawn = []
    for index in range(min(PICTURED_IMAGES, len(images))):
        record, (height, width) = images.records[index], images.sizes[index]
        own = results.image_ids == record.id
        boxes = xywh_to_xyxy(results.boxes_xywh[own])
        drawn.append(
            draw_detections(
                images.at(index),
                scale_boxes(boxes, (record.height, record.width), (height, width)),
                results.scores[own],
                np.searchsorted(split.category_ids, results.category_ids[own]),
                images.boxes_at(index),
                images.labels[index],
                split.class_names,
                scale=max(1, PICTURE_SIDE // min(height, width)),
                min_score=0.5,
            )
        )
    contact_sheet(drawn, columns=3, path=path, title=f"{name}: validation images")
