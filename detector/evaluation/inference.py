"""Detections of a trained detector on a whole split, in original pixels.

The images of a batch are padded to its largest. Norms include the padding, so a detection can depend slightly
on the other images of its batch. Batches are the same in every evaluation and for any number of workers,
which take them in turn. Multi-scale testing resizes the original images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import chain, zip_longest
from typing import assert_never

import numpy as np
import torch

from detector.config import Evaluation, MultiScale, SingleScale
from detector.data.coco import CheckedSplit
from detector.data.dataset import Batch, SplitImages, load_batch
from detector.data.loader import prefetched
from detector.evaluation.coco_eval import Results
from detector.evaluation.postprocess import Detections, detect, multi_scale_detect
from detector.model.detector import AnyModel
from detector.training.precision import autocast
from detector.training.ranks import Ranks

BATCH_PIXELS = 32 * 128 * 128
"""Pixels of a batch (but at least one image), which fit the smallest devices."""


@torch.no_grad()
def detect_split(
    model: AnyModel,
    images: SplitImages,
    split: CheckedSplit,
    evaluation: Evaluation,
    precision: str,
    loaders: int = 0,
    heartbeat: Callable[[], None] = lambda: None,
) -> Results | None:
    """Detections on every image of a split. Every rank must call it.

    Args:
        model: in eval mode.
        images: the split's images at the model's training size.
        split: has the category ids.
        evaluation: thresholds and sizes.
        precision: as in training.
        loaders: threads that read images ahead.
        heartbeat: called before each batch.

    Returns:
        Columns in original pixels, in the split's order of images, the best detection first in each; None on
        all ranks but the first.
    """
    batches, ranks = _batches(images, evaluation), Ranks.current()
    own = range(ranks.rank, len(batches), ranks.size)

    def load(number: int) -> Batch:
        sizes = _original_sizes(images, batches[number]) if _at_many_sizes(evaluation) else None
        return load_batch(images, batches[number], [False] * len(batches[number]), sizes=sizes)

    device = next(model.parameters()).device.type
    with autocast(precision, device), closing(prefetched(load, own, loaders)) as loaded:
        found = []
        for batch in loaded:
            heartbeat()
            found.append(_detections(model, batch.to(device), evaluation, images.short_side))
    parts = ranks.gather(found)
    if ranks.rank != 0:
        return None
    in_order = chain.from_iterable(zip_longest(*parts, fillvalue=[]))
    return _results(list(chain.from_iterable(in_order)), images, split, _at_many_sizes(evaluation))


def _at_many_sizes(evaluation: Evaluation) -> bool:
    return isinstance(evaluation.scales, MultiScale)


def _batches(images: SplitImages, evaluation: Evaluation) -> list[range]:
    """Indices of the images of each batch: up to `BATCH_PIXELS`, or one image for multi-scale testing."""
    largest = max(height * width for height, width in images.sizes)
    count = 1 if _at_many_sizes(evaluation) else max(1, BATCH_PIXELS // largest)
    return [range(start, min(start + count, len(images))) for start in range(0, len(images), count)]


def _original_sizes(images: SplitImages, indices: range) -> list[tuple[int, int]]:
    return [(images.records[i].height, images.records[i].width) for i in indices]


def _detections(model: AnyModel, batch: Batch, evaluation: Evaluation, short_side: int) -> list[Detections]:
    """The detections of each image of a batch, on the CPU, in pixels of the loaded image."""
    match evaluation.scales:
        case SingleScale():
            candidates = model.candidates(model(batch.images, batch.sizes), evaluation)
            found = detect(candidates, batch.sizes, evaluation)
        case MultiScale() as scales:
            found = [multi_scale_detect(model, batch.images[0], evaluation, scales, short_side)]
        case _:
            assert_never(evaluation.scales)
    return [detections.cpu() for detections in found]


def _results(found: list[Detections], images: SplitImages, split: CheckedSplit, original: bool) -> Results:
    """Converts labels to category ids and boxes to original pixels."""
    counts = [len(detections) for detections in found]
    records = images.records
    scales = [
        (1.0, 1.0) if original else (record.width / width, record.height / height)
        for record, (height, width) in zip(records, images.sizes, strict=True)
    ]
    scale_D2 = np.repeat(np.array(scales), counts, axis=0)
    boxes = torch.cat([detections.boxes for detections in found]).double().numpy()
    low, high = boxes[:, :2] * scale_D2, boxes[:, 2:] * scale_D2
    labels = torch.cat([detections.labels for detections in found]).numpy()
    return Results(
        image_ids=np.repeat([record.id for record in records], counts),
        category_ids=np.array(split.category_ids)[labels],
        boxes_xywh=np.concatenate((low, high - low), axis=1),
        scores=torch.cat([detections.scores for detections in found]).float().numpy(),
    )
