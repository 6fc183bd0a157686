"""A trained detector over a whole split: from packed images to detections in original pixels.

Images of a batch are padded to its largest. Padding is seen by norms and counted by no one else, so a
detection can depend slightly on the neighbours in its batch; batches are the same in every evaluation.
Multi-scale testing resizes the packed images, not the originals as the authors do: a larger size holds no
more detail than training saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import numpy as np
import torch

from detector.coco import CheckedSplit
from detector.coco_eval import Results
from detector.config import Evaluation, MultiScale, SingleScale
from detector.dataset import PackedImages, load_batch
from detector.dense_detector import DenseDetector
from detector.postprocess import Detections, detect, multi_scale_detect
from detector.precision import autocast

BATCH_PIXELS = 32 * 128 * 128
"""Pixels of a batch, at least one image: what fits the smallest devices whatever the image size."""


@torch.no_grad()
def detect_split(
    model: DenseDetector, images: PackedImages, split: CheckedSplit, evaluation: Evaluation, precision: str
) -> Results:
    """Detections on every image of a split.

    Args:
        model: in eval mode.
        images: the split at the model's training size.
        split: names the category ids.
        evaluation: thresholds and sizes.
        precision: "fp32" or "bf16", as in training.

    Returns:
        Columns in original pixels, images in the split's order and best first in each.
    """
    device = next(model.parameters()).device
    with autocast(precision, device.type):
        match evaluation.scales:
            case SingleScale():
                found = list(_single_scale(model, images, evaluation, device))
            case MultiScale() as scales:
                found = list(_multi_scale(model, images, evaluation, scales, device))
            case _:
                assert_never(evaluation.scales)
    return _results(found, images, split)


def _single_scale(
    model: DenseDetector, images: PackedImages, evaluation: Evaluation, device: torch.device
) -> Iterator[Detections]:
    largest = max(height * width for height, width in images.sizes)
    count = max(1, BATCH_PIXELS // largest)
    for start in range(0, len(images), count):
        indices = range(start, min(start + count, len(images)))
        batch = load_batch(images, indices, [False] * len(indices))
        outputs = model(batch.images.to(device), batch.sizes.to(device))
        yield from detect(outputs, batch.sizes, evaluation, model.coder)


def _multi_scale(
    model: DenseDetector,
    images: PackedImages,
    evaluation: Evaluation,
    scales: MultiScale,
    device: torch.device,
) -> Iterator[Detections]:
    for index in range(len(images)):
        image_CHW = torch.from_numpy(images[index].copy()).permute(2, 0, 1).to(device)
        yield multi_scale_detect(model, image_CHW, evaluation, scales, images.short_side)


def _results(found: list[Detections], images: PackedImages, split: CheckedSplit) -> Results:
    """Boxes from resized to original pixels, labels to category ids."""
    counts = [len(detections) for detections in found]
    records = images.records
    scales = [
        (record.width / width, record.height / height)
        for record, (height, width) in zip(records, images.sizes, strict=True)
    ]
    scale_D2 = np.repeat(np.array(scales), counts, axis=0)
    boxes = torch.cat([detections.boxes for detections in found]).double().cpu().numpy()
    low, high = boxes[:, :2] * scale_D2, boxes[:, 2:] * scale_D2
    labels = torch.cat([detections.labels for detections in found]).cpu().numpy()
    return Results(
        image_ids=np.repeat([record.id for record in records], counts),
        category_ids=np.array(split.category_ids)[labels],
        boxes_xywh=np.concatenate((low, high - low), axis=1),
        scores=torch.cat([detections.scores for detections in found]).float().cpu().numpy(),
    )
