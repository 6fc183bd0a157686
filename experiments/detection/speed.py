"""The speed of trained detectors, all in turns: images a second, one at a time, from pixels to detections.

A turn is some images by one detector, after a few that warm it up; a round is a turn of each; every second
round goes backwards, so that a machine that slows down slows all of them alike. Timed are normalising the
image, the network, decoding and non-maximum suppression, up to detections on the CPU. Reading, decoding and
resizing the image, and copying it to the device, are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from ablation.errors import UserError
from ablation.protocol import JointRequest, JointResult, Trained
from ablation.provenance.record import cpu_model
from detector.data.coco import read_data
from detector.data.dataset import Batch, load_batch, open_split
from detector.errors import CheckpointError, DataError
from detector.evaluation.postprocess import detect
from detector.predict import load_detector
from detector.training.precision import autocast
from experiments.detection.data import Context
from experiments.detection.metrics import SPEED

ROUNDS, IMAGES, WARM_UP = 9, 30, 3
"""Per measurement; per turn; per turn before its clock starts."""

Turn = Callable[[], float]
"""Images a second of one turn."""


def measure(request: JointRequest) -> JointResult:
    """Measures all rows in turns, on the GPU if there is one, in each row's own precision.

    Raises:
        UserError: the data set or a checkpoint cannot be read.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        turns = {row.key: _turn(row, request.context, device) for row in request.rows}
    except (CheckpointError, DataError) as error:
        raise UserError(str(error)) from error
    return JointResult(machine(device), rounds(turns, ROUNDS))


def rounds(turns: dict[str, Turn], number: int) -> dict[str, dict[str, list[float]]]:
    """A turn of each row in every round, by key; odd rounds go backwards."""
    speeds: dict[str, list[float]] = {key: [] for key in turns}
    for one in range(number):
        for key in list(turns)[:: -1 if one % 2 else 1]:
            speeds[key].append(turns[key]())
    return {key: {SPEED.name: values} for key, values in speeds.items()}


def _turn(row: Trained, context: Context, device: str) -> Turn:
    """A turn of the row's trained detector on the first validation images."""
    loaded = load_detector(row.directory / "checkpoints", device)
    model, precision = loaded.model, row.trial.schedule.precision
    _, split = read_data(context.paths)
    images = open_split(split, "val", row.trial.data, context.cache)
    indices = [n % len(images) for n in range(WARM_UP + IMAGES)]
    batches = [load_batch(images, [index], [False]).to(device) for index in indices]

    def one(batch: Batch) -> None:
        candidates = model.candidates(model(batch.images, batch.sizes), row.evaluation)
        for found in detect(candidates, batch.sizes, row.evaluation):
            found.cpu()  # waits for the device

    @torch.inference_mode()
    def turn() -> float:
        with autocast(precision, device):
            return images_per_second([lambda b=b: one(b) for b in batches])  # type: ignore[misc]

    return turn


def images_per_second(steps: Sequence[Callable[[], None]]) -> float:
    """Steps a second, without the first few."""
    for step in steps[:WARM_UP]:
        step()
    began = time.perf_counter()
    for step in steps[WARM_UP:]:
        step()
    return (len(steps) - WARM_UP) / (time.perf_counter() - began)


def machine(device: str) -> str:
    """What computes, for people: the GPU, or the processor with the number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{cpu_model()} ({threads} thread{'s' * (threads > 1)})"
