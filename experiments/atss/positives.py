"""How many positives each rule gives an object, by its size: the paper's claim of fairness.

Sec. 3.3: with ATSS an object has about 0.2 k L positives whatever its scale, ratio and position, while
the IoU rule and the spatial and scale constraint give larger objects more. Assignment alone decides it,
so nothing is trained.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ablation.study import Setting, StatisticResult
from detector.config import ATSS, Anchors, Assigner, MaxIoU, SpatialScale
from detector.data.coco import read_split
from detector.data.dataset import open_split
from detector.geometry.anchors import AnchorGrid, anchor_grid, feature_sizes
from detector.model.build import build_assigner
from detector.objectives.assigners import Assigner as RunnableAssigner
from experiments.atss.presets import atss
from experiments.detection.recipe import Recipe

IMAGES = 400
LEVELS = 5
TOPK = 9
FAIR_RATIO = 2.0
"""Largest allowed ratio between the quarters of objects (by size) with most and fewest positives."""


def fair_positives(setting: Setting) -> StatisticResult:
    """Mean positives per object in each quarter of object sizes, for the three rules.

    Holds when ATSS's quarters differ by less than a factor of `FAIR_RATIO`, and both other rules give
    the largest quarter more than ATSS's ratio times what they give the smallest.
    """
    rules: dict[str, Assigner] = {
        "ATSS": ATSS(TOPK),
        "IoU": MaxIoU(inside_gt=True),
        "SSC": SpatialScale(),
    }
    sizes, counts = count_positives(setting, rules)
    quarter = np.searchsorted(np.quantile(sizes, (0.25, 0.5, 0.75)), sizes) if sizes.size else sizes
    if np.unique(quarter).size < 4:
        return StatisticResult(
            None, f"not measurable: no four sizes of objects in the first {IMAGES} training images"
        )
    means = {
        name: np.array([values[quarter == q].mean() for q in range(4)]) for name, values in counts.items()
    }
    fair = means["ATSS"].max() / max(means["ATSS"].min(), 1e-9)
    growth = {name: means[name][3] / max(means[name][0], 1e-9) for name in ("IoU", "SSC")}
    holds = bool(fair < FAIR_RATIO and min(growth.values()) > fair)
    expected = 0.2 * TOPK * LEVELS
    text = "; ".join(f"{name} {', '.join(f'{m:.1f}' for m in values)}" for name, values in means.items())
    return StatisticResult(
        holds,
        f"mean positives per object, smallest to largest quarter: {text} (0.2 k L = {expected:.0f})",
    )


def count_positives(
    setting: Setting, rules: dict[str, Assigner]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Positives of every object in the first training images, under each rule.

    Returns:
        (O,) float64 square roots of the objects' areas in pixels, and for each rule (O,) int64 counts.
    """
    context, trial = setting.context, setting.trial(Recipe(atss()), 0)
    split = read_split(context.paths.train)
    images = open_split(split, "train", trial.data, context.cache)
    boxes = [images.boxes_at(index) for index in range(min(IMAGES, len(images)))]
    corners = np.concatenate(boxes).astype(np.float64)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    strides = trial.detector.strides
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in rules}
    for own, size in zip(boxes, images.sizes, strict=False):
        grid = anchor_grid(Anchors(), strides, feature_sizes(*size, strides), "cpu")
        for name, rule in rules.items():
            counts[name].append(_per_object(build_assigner(rule), grid, own))
    return np.sqrt(areas), {name: np.concatenate(found) for name, found in counts.items()}


def _per_object(rule: RunnableAssigner, grid: AnchorGrid, boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number of anchors matched to each box of one image."""
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    match_A = rule(grid, torch.from_numpy(boxes)[None], valid)[0]
    return np.bincount(match_A[match_A >= 0].numpy(), minlength=len(boxes))
