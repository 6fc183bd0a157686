"""A training step on the CPU, one thread, against torchvision's RetinaNet and FCOS and mmdet's ATSS.

Each contender lives in a process of its own, and they step in turns. All have ResNet-50 with the stride in
the 3x3, frozen batch norm, stem and C2, 80 classes, 20 boxes an image, and torch's
default SGD with momentum. Ours is in the channels-last format, which `build_detector` chooses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.common import (
    PEERS_PYTHON,
    Batch,
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

MODULE = "benchmarks.training_step"
BOXES = 20
SIZES = ("2x320x320", "1x800x1216")
LARGE_SIZE = "1x320x320"
MMDET, OURS, OURS_BF16 = "mmdet ATSS", "ours ATSS", "ours ATSS bf16"
CONTENDERS = ("torchvision RetinaNet", "torchvision FCOS", MMDET, OURS, OURS_BF16)
BACKBONES = ("R-50", "R-50-DCN", "X-101-32x8d", "X-101-64x4d")
PARTS = ("backbone + FPN", "head", "targets", "losses", "backward", "optimiser")
"""The peers find their targets while they compute their losses."""

LEARNING_RATE = 1e-6
"""So small that fresh weights stay where they are: a diverging net would be timed on infinities."""


class Contender(Protocol):
    """What the benchmark asks of a detector.

    Attributes:
        parameters: those that learn.
    """

    parameters: list[torch.nn.Parameter]

    def loss(self, watch: Stopwatch) -> Tensor:
        """Sum of the batch's losses; marks its parts."""


class Ours:
    """This project's ATSS in training.

    Attributes:
        parameters: those that learn.

    Args:
        backbone: one of `BACKBONES`.
        batch: what it trains on.
        bf16: under autocast.
    """

    def __init__(self, backbone: str, batch: Batch, bf16: bool) -> None:
        from detector.config import Detector, ResNet
        from detector.model.build import build_detector
        from experiments.atss import presets

        base = presets.atss()
        backbones = {
            "R-50": ResNet(),
            "R-50-DCN": ResNet(deformable=(False, True, True, True)),
            "X-101-32x8d": presets.RESNEXT_101_32X8D,
            "X-101-64x4d": presets.RESNEXT_101_64X4D,
        }
        head = replace(base.head, deformable=backbone.endswith("DCN"))
        config: Detector = replace(base, backbone=backbones[backbone], head=head)
        self._model = build_detector(config)
        self._batch = batch
        self._sizes_N2 = batch.sizes_N2
        self._valid_NG = torch.ones_like(batch.labels_NG, dtype=torch.bool)
        self._bf16 = bf16
        self.parameters = [p for p in self._model.parameters() if p.requires_grad]

    def loss(self, watch: Stopwatch) -> Tensor:
        """Sum of the batch's losses; marks its parts."""
        images_N3HW, boxes_NG4, labels_NG = self._batch
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            hook = self._model.head.register_forward_pre_hook(lambda *_: watch.mark("backbone + FPN"))
            outputs = self._model(images_N3HW, self._sizes_N2)
            hook.remove()
            watch.mark("head")
        canvas = (images_N3HW.shape[2], images_N3HW.shape[3])
        targets = self._model.targets(canvas, boxes_NG4, labels_NG, self._valid_NG)
        watch.mark("targets")
        losses = self._model.losses(outputs, targets, targets.counts())
        watch.mark("losses")
        return torch.stack(list(losses.values())).sum()


def _contender(name: str, batch: Batch) -> Contender:
    if name == MMDET:
        from benchmarks.peers.mmdet_atss import MmdetPeer

        return MmdetPeer(batch)
    if name.startswith("torchvision"):
        from benchmarks.peers.torchvision_models import TorchvisionPeer

        return TorchvisionPeer(name.removeprefix("torchvision "), batch)
    backbone = name.removesuffix(" bf16").removeprefix("ours ")
    return Ours("R-50" if backbone == "ATSS" else backbone, batch, name.endswith("bf16"))


def _work(name: str, size: str) -> None:
    """A worker's life: build the contender, then a step whenever asked."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, height, width = map(int, size.split("x"))
    contender = _contender(name, make_batch(images, height, width, BOXES))
    optimizer = torch.optim.SGD(contender.parameters, LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    serve(partial(_step, contender, optimizer))


def _step(contender: Contender, optimizer: torch.optim.Optimizer) -> Laps:
    watch = Stopwatch()
    loss = contender.loss(watch)
    loss.backward()  # type: ignore[no-untyped-call]
    watch.mark("backward")
    optimizer.step()
    optimizer.zero_grad()
    watch.mark("optimiser")
    if not loss.isfinite():
        raise RuntimeError("the loss is not finite")
    return watch.laps


def _measure(names: Sequence[str], size: str, rounds: int, peers: Path) -> dict[str, Laps]:
    workers = [
        Worker.start(name, MODULE, ["--worker", name, "--size", size], peers if name == MMDET else None)
        for name in names
    ]
    return interleaved(workers, rounds)


def _rows(size: str, measured: dict[str, Laps], reference: str) -> list[Row]:
    """A row per contender: CPU milliseconds of a step and its parts, and the ratio to the reference."""
    return [
        {
            "size": size,
            "contender": name,
            "step ms": 1000 * laps["total"],
            f"/ {reference}": laps["total"] / measured[reference]["total"],
            **{part: 1000 * laps[part] if part in laps else "" for part in PARTS},
        }
        for name, laps in measured.items()
    ]


def compare(sizes: Sequence[str], rounds: int, peers: Path) -> None:
    """The table against the peers; without their environment mmdet's row is left out."""
    names = [name for name in CONTENDERS if name != MMDET or peers.exists()]
    reference = MMDET if peers.exists() else "torchvision FCOS"
    if reference != MMDET:
        print(f"No mmdet: {peers} is not there (`make bench` makes it).")
    rows = [row for size in sizes for row in _rows(size, _measure(names, size, rounds, peers), reference)]
    notes: Notes = {"unit": "CPU time of one thread, median", "rounds": rounds, "boxes an image": BOXES}
    report("training_step", "Training step, ATSS R-50 and its peers", rows, notes)


def compare_backbones(rounds: int) -> None:
    """The table of the backbones with grouped and deformable convolutions."""
    names = [f"ours {backbone}{precision}" for precision in ("", " bf16") for backbone in BACKBONES]
    measured = _measure(names, LARGE_SIZE, rounds, PEERS_PYTHON)
    rows = _rows(LARGE_SIZE, measured, "ours R-50")
    notes: Notes = {"unit": "CPU time of one thread, median", "rounds": rounds, "boxes an image": BOXES}
    report("training_step_backbones", "Training step, grouped and deformable convolutions", rows, notes)


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="steps of each contender (default 7)")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="images x height x width")
    parser.add_argument("--all", action="store_true", help="also grouped and deformable convolutions")
    parser.add_argument("--peers", type=Path, default=PEERS_PYTHON, help="python that has mmdet")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker, options.size)
        return
    compare(options.sizes, options.rounds, options.peers)
    if options.all:
        compare_backbones(options.rounds)


if __name__ == "__main__":
    main()
