"""ATSS assignment on the CPU, one thread: 16 images of 800x1344 with 182 boxes, 22,400 anchors each.

Ours, mmdet's assigner (which takes image by image), and the rule written down densely for the whole batch.
All are asked for the index of every anchor's ground truth, and their answers are compared.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import (
    PEERS_PYTHON,
    Laps,
    Notes,
    Row,
    Stopwatch,
    Worker,
    interleaved,
    make_batch,
    report,
    serve,
)

MODULE = "benchmarks.assignment"
HEIGHT, WIDTH = 800, 1344
BOXES = (4, 2, 25, 7, 11, 3, 18, 9, 14, 6, 31, 5, 12, 8, 20, 7)
"""Of each image; 182 in all, as unevenly spread as COCO's."""
STRIDES = (8, 16, 32, 64, 128)
FEATURE_SIZES = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
TOPK = 9
REPEATS = {"ours": 20, "dense": 2, "mmdet": 1}

Assign = Callable[[], Tensor]


def _boxes() -> tuple[Tensor, Tensor, Tensor]:
    """(16, 31, 4) boxes, (16, 31) labels and (16, 31) bool, which are there."""
    batch = make_batch(len(BOXES), HEIGHT, WIDTH, max(BOXES))
    valid_NG = torch.arange(max(BOXES)) < torch.tensor(BOXES)[:, None]
    return batch.boxes_NG4, batch.labels_NG, valid_NG


def _ours() -> Assign:
    from detector.config import ATSS, Anchors
    from detector.geometry.anchors import anchor_grid
    from detector.objectives.assigners import ATSSAssigner

    boxes_NG4, _, valid_NG = _boxes()
    grid, assigner = anchor_grid(Anchors(), STRIDES, FEATURE_SIZES, "cpu"), ATSSAssigner(ATSS(TOPK))
    return lambda: assigner(grid, boxes_NG4, valid_NG)


def _dense() -> Assign:
    from detector.config import Anchors
    from detector.geometry.anchors import anchor_grid

    boxes_NG4, _, valid_NG = _boxes()
    grid = anchor_grid(Anchors(), STRIDES, FEATURE_SIZES, "cpu")
    per_level = [level.num_anchors for level in grid.levels]
    image_B, boxes_B4 = valid_NG.nonzero()[:, 0], boxes_NG4[valid_NG]
    return lambda: dense_atss(grid.boxes_A4, per_level, boxes_B4, image_B)


def _mmdet() -> Assign:
    from benchmarks.peers.mmdet_atss import MmdetAssigner

    boxes_NG4, labels_NG, valid_NG = _boxes()
    assigner = MmdetAssigner(FEATURE_SIZES, TOPK)
    images = [(boxes_NG4[n, valid], labels_NG[n, valid]) for n, valid in enumerate(valid_NG)]
    return lambda: torch.stack([assigner(*image) for image in images])


def dense_atss(anchors_A4: Tensor, per_level: list[int], boxes_B4: Tensor, image_B: Tensor) -> Tensor:
    """Algorithm 1 with the distance of every anchor to every box of the batch.

    Args:
        anchors_A4: (A, 4) float32, xyxy, level by level.
        per_level: number of anchors of each level.
        boxes_B4: (B, 4) float32, xyxy, of all images, none padding.
        image_B: (B,) int64, the image of each box; every image has one.

    Returns:
        (N, A) int64, index of the ground truth, -1 for none.
    """
    centers_A2 = (anchors_A4[:, :2] + anchors_A4[:, 2:]) / 2
    distance_BA = torch.cdist((boxes_B4[:, :2] + boxes_B4[:, 2:]) / 2, centers_A2)
    first, nearest = 0, []
    for distance in torch.split(distance_BA, per_level, dim=1):
        nearest.append(distance.topk(TOPK, dim=1, largest=False).indices + first)
        first += distance.shape[1]
    anchor_BC = torch.cat(nearest, dim=1)
    iou_BC = _iou(boxes_B4[:, None], anchors_A4[anchor_BC])
    threshold_B1 = iou_BC.mean(dim=1, keepdim=True) + iou_BC.std(dim=1, keepdim=True)
    low, high = boxes_B4[:, None].chunk(2, dim=-1)
    center_BC2 = centers_A2[anchor_BC]
    inside_BC = torch.cat((center_BC2 - low, high - center_BC2), dim=-1).amin(-1) > 0.01
    positive_BC = inside_BC & (iou_BC >= threshold_B1)
    best_BA = torch.full_like(distance_BA, -1.0).scatter_(1, anchor_BC, iou_BC.where(positive_BC, -1.0))
    found = [best.max(dim=0) for best in torch.split(best_BA, image_B.bincount().tolist())]
    return torch.stack([index.where(best >= 0, -1) for best, index in found])


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes (..., 4) that broadcast."""
    low = torch.maximum(boxes[..., :2], others[..., :2])
    inter = (torch.minimum(boxes[..., 2:], others[..., 2:]) - low).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, others)]
    return inter / (areas[0] + areas[1] - inter)


def _work(name: str, answers: Path) -> None:
    torch.set_num_threads(1)
    assign = {"ours": _ours, "dense": _dense, "mmdet": _mmdet}[name]()
    np.save(answers / f"{name}.npy", assign().numpy())

    def measure() -> Laps:
        watch = Stopwatch()
        for _ in range(REPEATS[name]):
            assign()
        watch.mark("time")
        return {"time": watch.laps["time"] / REPEATS[name]}

    serve(measure)


def compare(rounds: int, peers: Path) -> None:
    """Print the table; without mmdet the dense way is what ours is compared with."""
    names = ["ours", "dense", *(["mmdet"] if peers.exists() else [])]
    reference = names[-1]
    with tempfile.TemporaryDirectory() as answers:
        workers = [
            Worker.start(
                name, MODULE, ["--worker", name, "--answers", answers], peers if name == "mmdet" else None
            )
            for name in names
        ]
        medians = interleaved(workers, rounds)
        matches = {name: np.load(Path(answers) / f"{name}.npy") for name in names}
    rows: list[Row] = [
        {
            "contender": name,
            "CPU ms": 1000 * medians[name]["time"],
            "times ours": medians[name]["time"] / medians["ours"]["time"],
            "positives": int((matches[name] >= 0).sum()),
            f"anchors unlike {reference}": int((matches[name] != matches[reference]).sum()),
        }
        for name in names
    ]
    notes: Notes = {"unit": "CPU time of one thread for the batch, median", "rounds": rounds}
    report("assignment", "ATSS assignment, 16 images of 800x1344, 22,400 anchors, 182 boxes", rows, notes)


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each contender (default 15)")
    parser.add_argument("--peers", type=Path, default=PEERS_PYTHON, help="python that has mmdet")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker, options.answers)
    else:
        compare(options.rounds, options.peers)


if __name__ == "__main__":
    main()
