"""Measures how much AP varies with the seed, on two baseline rows of a profile.

    python -m experiments.atss.seed_noise --seeds 8

The rows are FCOS and RetinaNet (#A=1) with all five improvements, on drawings and with seeds that no table
uses. The effect of a seed on both rows cancels in their difference, so the standard deviation of one training
is that of the difference divided by the root of 2: the profile's `seed_noise` of AP.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ablation.protocol import Evaluated, EvaluationRequest, Request
from detector.config import Detector
from experiments.atss import presets
from experiments.atss.profiles import SHAPES
from experiments.detection import small
from experiments.detection.options import DetectionOptions
from experiments.detection.recipe import Recipe
from experiments.detection.small import ScaledSetting
from experiments.detection.train_trial import train_trial

FIRST_SEED, DRAWINGS = 101, 7
ROWS: tuple[Detector, ...] = (presets.fcos(), presets.improved())


def average_precision(setting: ScaledSetting, detector: Detector, seed: int) -> float:
    """AP in percent of one training."""
    torch.set_num_threads(1)
    trial = setting.trial(Recipe(detector), seed)
    wanted = (EvaluationRequest("evaluation", setting.evaluation(presets.SINGLE_SCALE)),)
    with tempfile.TemporaryDirectory() as folder:
        request = Request(f"{seed:012x}", trial, wanted, Path(folder), setting.context)
        (found,) = (report for report in train_trial(request) if isinstance(report, Evaluated))
    return found.metrics["AP"]


def spread(numbers: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of one training, from pairs of two rows with the same seed."""
    return float(np.std([left - right for left, right in numbers], ddof=1)) / 2**0.5


def main() -> None:
    """Read the arguments, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=8, help="how many, from 101 on (default: 8)")
    seeds = range(FIRST_SEED, FIRST_SEED + parser.parse_args().seeds)
    with tempfile.TemporaryDirectory() as folder:
        drawn = replace(SHAPES, shapes=replace(SHAPES.shapes, seed=DRAWINGS))
        setting = small.prepare(drawn, Path(folder), DetectionOptions())
        with multiprocessing.get_context("spawn").Pool() as pool:
            asked = [(setting, row, seed) for seed in seeds for row in ROWS]
            found = pool.starmap(average_precision, asked, chunksize=1)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    for seed, (left, right) in zip(seeds, pairs, strict=True):
        print(f"seed {seed}: FCOS {left:.1f}, RetinaNet {right:.1f}, difference {right - left:.1f}")
    print(f"standard deviation of a training: {spread(pairs):.2f} points of AP")
    print(f"degrees of freedom: {len(pairs) - 1}")


if __name__ == "__main__":
    main()
