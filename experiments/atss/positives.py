"""How many positives each rule gives an object, by its size: the paper's claim of fairness.

Sec. 3.3: with ATSS an object has about 0.2 k L positives whatever its scale, ratio and position, while
the IoU rule and the spatial and scale constraint give larger objects more. Assignment alone decides it,
so nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import detector
from ablation import fingerprint
from ablation.claim import StatisticResult
from ablation.setting import Setting
from detector.config import ATSS, Assigner, MaxIoU, SpatialScale
from experiments.atss.presets import atss
from experiments.detection.recipe import Recipe
from experiments.detection.remembered import remembered

IMAGES = 400
LEVELS = 5
TOPK = 9
FAIR_RATIO = 2.0
"""Largest allowed ratio between the quarters of objects (by size) with most and fewest positives."""

RULES: Mapping[str, Assigner] = {"ATSS": ATSS(TOPK), "IoU": MaxIoU(inside_gt=True), "SSC": SpatialScale()}

_CODE = sorted(Path(detector.__file__).parent.rglob("*.py")) + sorted(Path(__file__).parent.glob("*.py"))


def fair_positives(setting: Setting) -> StatisticResult:
    """Mean positives per object in each quarter of object sizes, for the three rules.

    Counted once for a data set at a size, and again when the code has changed.
    """
    trial, context = setting.trial(Recipe(atss()), 0), setting.context

    def count() -> tuple[dict[str, Any], Iterable[Path]]:
        from experiments.atss.counting import count_positives  # imports torch

        return asdict(fairness(*count_positives(trial, context, RULES, IMAGES))), ()

    record = context.cache / "known" / f"positives-{fingerprint.key(trial)}.json"
    return StatisticResult(**remembered(record, _CODE, count))


def fairness(sizes: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]) -> StatisticResult:
    """Whether ATSS is fair and the other rules are not.

    Holds when ATSS's quarters differ by less than a factor of `FAIR_RATIO`, and both other rules give
    the largest quarter more than ATSS's ratio times what they give the smallest.

    Args:
        sizes: (O,) square roots of the objects' areas, pixels.
        counts: for each of `RULES` (O,) positives.
    """
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
