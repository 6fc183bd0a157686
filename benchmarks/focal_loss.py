"""Sigmoid focal loss, forward and backward, of 182,574 anchors and 91 classes on the CPU, one thread.

Ours against `torchvision.ops.sigmoid_focal_loss` on one-hot targets; each in a process of its own, whose
peak memory above its inputs is measured too. 182,574 is RetinaNet's anchors of an 800x1088 image.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Laps, Notes, Row, Stopwatch, Worker, interleaved, report, serve

MODULE = "benchmarks.focal_loss"
ANCHORS, CLASSES, POSITIVES = 182_574, 91, 200
ALPHA, GAMMA = 0.25, 2.0
CONTENDERS = ("ours", "torchvision")

Loss = Callable[[Tensor], Tensor]


def _classes() -> Tensor:
    """(ANCHORS,) int64: a few positives, the others background."""
    generator = torch.Generator().manual_seed(0)
    classes_M = torch.full((ANCHORS,), -1)
    chosen = torch.randperm(ANCHORS, generator=generator)[:POSITIVES]
    classes_M[chosen] = torch.randint(CLASSES, (POSITIVES,), generator=generator)
    return classes_M


def _ours() -> Loss:
    from detector.objectives.losses import focal_loss_sum

    classes_M = _classes()
    return lambda logits_MK: focal_loss_sum(logits_MK, classes_M, ALPHA, GAMMA)


def _torchvision() -> Loss:
    from torchvision.ops import sigmoid_focal_loss

    classes_M = _classes()
    onehot_MK = torch.zeros(ANCHORS, CLASSES)
    positive = classes_M >= 0
    onehot_MK[positive, classes_M[positive]] = 1.0
    return partial(sigmoid_focal_loss, targets=onehot_MK, alpha=ALPHA, gamma=GAMMA, reduction="sum")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _work(name: str) -> None:
    torch.set_num_threads(1)
    loss = {"ours": _ours, "torchvision": _torchvision}[name]()
    generator = torch.Generator().manual_seed(1)
    logits_MK = (torch.randn(ANCHORS, CLASSES, generator=generator) - 4.6).requires_grad_()
    # Both are in the baseline: the logits and what backward must give, their gradient.
    logits_MK.grad = torch.zeros_like(logits_MK)
    before = _peak_mib()

    def measure() -> Laps:
        logits_MK.grad = None
        watch = Stopwatch()
        total = loss(logits_MK)
        watch.mark("forward")
        total.backward()  # type: ignore[no-untyped-call]
        watch.mark("backward")
        return watch.laps | {"loss": total.item(), "peak": _peak_mib() - before}

    serve(measure)


def compare(rounds: int) -> None:
    """Print the table."""
    workers = [Worker.start(name, MODULE, ["--worker", name]) for name in CONTENDERS]
    medians = interleaved(workers, rounds)
    times = {name: laps["forward"] + laps["backward"] for name, laps in medians.items()}
    rows: list[Row] = [
        {
            "contender": name,
            "forward ms": 1000 * medians[name]["forward"],
            "backward ms": 1000 * medians[name]["backward"],
            "both ms": 1000 * times[name],
            "/ torchvision": times[name] / times["torchvision"],
            "peak MiB": medians[name]["peak"],
            "loss": medians[name]["loss"],
        }
        for name in CONTENDERS
    ]
    notes: Notes = {"unit": "CPU time of one thread, median", "rounds": rounds}
    report("focal_loss", "Focal loss, 182,574 x 91, forward and backward", rows, notes)


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="measurements of each contender (default 11)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker)
    else:
        compare(options.rounds)


if __name__ == "__main__":
    main()
