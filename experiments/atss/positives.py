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
from detector.anchors import anchor_grid, feature_sizes
from detector.build import build_assigner
from detector.coco import read_split
from detector.config import ATSS, Anchors, Assigner, MaxIoU, SpatialScale
from detector.dataset import load_batch, open_packed
from experiments.atss.presets import Recipe, atss

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
    images = open_packed(split, "train", trial.data, context.cache)
    count = min(IMAGES, len(images))
    batch = load_batch(images, range(count), [False] * count)
    strides = trial.detector.strides
    height, width = batch.images.shape[-2:]
    grid = anchor_grid(Anchors(), strides, feature_sizes(height, width, strides), "cpu")
    valid = batch.valid_NG
    sides = batch.boxes_NG4[valid]
    areas = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
    counts = {}
    for name, rule in rules.items():
        match_NA = build_assigner(rule)(grid, batch.boxes_NG4, valid)
        one_hot = torch.zeros(*valid.shape, dtype=torch.int64)
        one_hot.scatter_add_(1, match_NA.clamp(min=0), (match_NA >= 0).long())
        counts[name] = one_hot[valid].numpy()
    return areas.double().sqrt().numpy(), counts
