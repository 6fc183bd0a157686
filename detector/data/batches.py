"""The images of a training step, as a function of the trial, the step and the part of the batch.

Nothing else decides them: a resumed run, another number of workers and another micro-batch see the same.
"""

from __future__ import annotations

import numpy as np
import torch

from detector.config import Augmentation, Data, SquareData, Trial
from detector.data.augment import boxes_in, draw_view, pixels_in
from detector.data.dataset import Batch, SplitImages, largest, load_batch, padded
from detector.data.sampler import Draw, Pool, Stream, draw_batch
from detector.geometry.transforms import flip_boxes, resized_size


def step_batch(images: SplitImages, pool: Pool, trial: Trial, step: int, own: slice) -> Batch:
    """A part of the batch of a step.

    Args:
        images: the training split.
        pool: its training images.
        trial: its data, batch size and seed are used.
        step: 0-based.
        own: the places in the whole batch.

    Returns:
        The batch, on the CPU; for `Data` padded as the whole batch is.
    """
    data = trial.data
    draw = draw_batch(pool, data, trial.schedule.total_batch, trial.seed, step)
    match data:
        case SquareData(augmentation=Augmentation() as augmentation):
            return _augmented(images, draw, own, data.side, augmentation, (trial.seed, step))
        case SquareData():
            return load_batch(images, draw.indices[own], draw.flips[own])
        case Data():
            return _resized(images, draw, own, data.max_long_side)


def _resized(images: SplitImages, draw: Draw, own: slice, max_long_side: int) -> Batch:
    records = [images.records[i] for i in draw.indices]
    sizes = [
        resized_size(record.width, record.height, int(side), max_long_side)
        for record, side in zip(records, draw.short_sides, strict=True)
    ]
    return load_batch(images, draw.indices[own], draw.flips[own], largest(sizes), sizes[own])


def _augmented(
    images: SplitImages, draw: Draw, own: slice, side: int, augmentation: Augmentation, key: tuple[int, int]
) -> Batch:
    """Images seen through a window of each; `key` is seed and step."""
    places = range(*own.indices(len(draw.indices)))
    squares = np.empty((len(places), side, side, 3), dtype=np.uint8)
    boxes, labels = [], []
    for square, place in zip(squares, places, strict=True):
        index, flip = int(draw.indices[place]), bool(draw.flips[place])
        objects = images.boxes_at(index)
        view = draw_view(Stream(*key, place), images.sizes[index], objects, augmentation)
        seen, stays = boxes_in(view.window, objects, side)
        pixels = pixels_in(view, images.at(index), side, augmentation.fill)
        square[:] = pixels[:, ::-1] if flip else pixels
        boxes.append(flip_boxes(seen, float(side)) if flip else seen)
        labels.append(images.labels[index][stays])
    boxes_NG4, labels_NG, valid_NG = padded(boxes, labels)
    return Batch(
        images=torch.from_numpy(squares).permute(0, 3, 1, 2),
        sizes=torch.full((len(places), 2), side, dtype=torch.int64),
        boxes_NG4=torch.from_numpy(boxes_NG4),
        labels_NG=torch.from_numpy(labels_NG),
        valid_NG=torch.from_numpy(valid_NG),
        image_ids=torch.tensor([images.records[i].id for i in draw.indices[own]]),
    )
