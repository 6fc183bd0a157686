"""Positives of every object under an assignment rule, counted by assignment alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from detector.config import Anchors, Assigner, Detector, Trial
from detector.data.coco import read_split
from detector.data.dataset import open_split
from detector.geometry.anchors import AnchorGrid, anchor_grid, feature_sizes
from detector.model.build import build_assigner
from detector.objectives.assigners import Assigner as RunnableAssigner
from experiments.detection.data import Context


def count_positives(
    trial: Trial, context: Context, rules: Mapping[str, Assigner], most: int
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Positives of every object in the first training images, under each rule.

    Args:
        trial: its data and strides are used.
        context: says where the data set lies.
        rules: by name.
        most: images.

    Returns:
        (O,) float64 square roots of the objects' areas in pixels, and for each rule (O,) int64 counts.
    """
    split = read_split(context.paths.train)
    images = open_split(split, "train", trial.data, context.cache)
    boxes = [images.boxes_at(index) for index in range(min(most, len(images)))]
    corners = np.concatenate(boxes).astype(np.float64)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    assert isinstance(trial.detector, Detector)
    strides = trial.detector.strides
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in rules}
    for own, size in zip(boxes, images.sizes, strict=False):
        grid = anchor_grid(Anchors(), strides, feature_sizes(*size, strides), "cpu")
        for name, rule in rules.items():
            counts[name].append(_per_object(build_assigner(rule), grid, own))
    return np.sqrt(areas), {name: np.concatenate(found) for name, found in counts.items()}


def _per_object(rule: RunnableAssigner, grid: AnchorGrid, boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """(G,) int64, anchors matched to each box of one image."""
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    match_A = rule(grid, torch.from_numpy(boxes)[None], valid)[0]
    return np.bincount(match_A[match_A >= 0].numpy(), minlength=len(boxes))
