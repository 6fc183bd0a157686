"""COCO evaluation of a split of 5,000 images: the judge, pycocotools, against the quick way, hotcoco.

35,000 boxes of 80 classes and 460,000 detections, half of them near a box; both ways get the same columns
and must give the same numbers. Measured in CPU seconds of all threads, from columns to numbers.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import laps_of, report
from detector.evaluation.coco_eval import Results, Scores, evaluate, fast_evaluate

WAYS = {"pycocotools": evaluate, "hotcoco": fast_evaluate}
IMAGES, CLASSES = 5_000, 80
BOXES_PER_IMAGE, DETECTIONS_PER_IMAGE = 7, 92
WIDTH, HEIGHT = 640, 480

Array = npt.NDArray[Any]


def _boxes(rng: np.random.Generator, count: int) -> Array:
    """(count, 4) float64 xywh, sides of 7 to 245 pixels."""
    corners = rng.uniform(0, (WIDTH, HEIGHT), size=(count, 2))
    return np.concatenate([corners, np.exp(rng.uniform(2, 5.5, size=(count, 2)))], axis=1)


def make_split(images: int, seed: int = 0) -> tuple[dict[str, Any], Results]:
    """Ground truth and detections; few classes have most of the boxes and one box in 100 is a crowd."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, CLASSES + 1)
    count = images * BOXES_PER_IMAGE
    image = rng.integers(1, images + 1, count)
    category = 1 + rng.choice(CLASSES, count, p=frequency / frequency.sum())
    boxes, crowd = _boxes(rng, count), (rng.uniform(size=count) < 0.01).astype(int)
    columns = (image, category, boxes, boxes[:, 2:].prod(axis=1), crowd)
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    ground_truth = {
        "images": [{"id": n} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
        "annotations": [{"id": n, **dict(zip(names, row, strict=True))} for n, row in enumerate(rows, 1)],
    }
    return ground_truth, _detections(rng, images, image, category, boxes)


def _detections(
    rng: np.random.Generator, images: int, image: Array, category: Array, boxes: Array
) -> Results:
    """Half near a box and of its class, a little off or far off; half anywhere, with lower scores."""
    half = images * DETECTIONS_PER_IMAGE // 2
    hit = rng.integers(len(boxes), size=half)
    near = boxes[hit] + rng.normal(size=(half, 4)) * rng.choice([2, 10, 40], (half, 1))
    order = rng.permutation(2 * half)
    return Results(
        np.concatenate([image[hit], rng.integers(1, images + 1, half)])[order],
        np.concatenate([category[hit], rng.integers(1, CLASSES + 1, half)])[order],
        np.concatenate([near.clip(0), _boxes(rng, half)])[order].astype(np.float32),
        np.concatenate([rng.beta(2, 3, half), rng.beta(1, 5, half)])[order].astype(np.float32),
    )


def _measure(ground_truth: dict[str, Any], results: Results, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round, taken in turns.

    Raises:
        AssertionError: the two ways differ in any number.
    """
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    found: dict[str, Scores] = {}

    def score(name: str) -> None:
        found[name] = WAYS[name](ground_truth, results)

    for _ in range(rounds):
        for name in WAYS:
            seconds[name].append(laps_of(partial(score, name))["time"])
        assert found["pycocotools"] == found["hotcoco"], "the two ways give different numbers"
    return seconds


def compare(images: int, rounds: int) -> None:
    """Print the table."""
    _measure(*make_split(10), rounds=1)  # imports both libraries
    ground_truth, results = make_split(images)
    medians = {
        name: statistics.median(times) for name, times in _measure(ground_truth, results, rounds).items()
    }
    ratio = medians["pycocotools"] / medians["hotcoco"]
    report(
        "evaluation",
        f"COCO evaluation: {images:,} images, {len(ground_truth['annotations']):,} boxes, "
        f"{CLASSES} classes, {len(results):,} detections",
        [{"by": name, "CPU s": median} for name, median in medians.items()],
        {"pycocotools / hotcoco": ratio, "numbers": "identical", "rounds": rounds},
    )


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES, help=f"default {IMAGES}")
    parser.add_argument("--rounds", type=int, default=1, help="medians of so many (default 1)")
    arguments = parser.parse_args()
    if find_spec("hotcoco") is None:
        parser.error("hotcoco is not installed: there is nothing to compare")
    compare(arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
