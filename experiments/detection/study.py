"""What every study of detection hands to the platform.

A study of another detector is a package beside `experiments.atss` with its rows (each a `Recipe` and an
`Evaluation`), its claims and its profiles, and calls `detection_study`. Data, options, training, evaluation
and costs are those of this package.

Nothing here imports torch, so that a command that trains nothing answers at once. The functions that train or
open images import it when they are called.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

from ablation.claim import Claim
from ablation.errors import UserError
from ablation.metric import Metric
from ablation.protocol import JointRequest, JointResult, Report, Request
from ablation.study import ByClass, DataReport, JointMeasurement, Profile, Study, Table
from detector.errors import DataError
from experiments.detection.counts import boxes, input_side
from experiments.detection.metrics import BOXES, COCO_METRICS, INPUT, PROGRESS, SPEED
from experiments.detection.options import DetectionOptions
from experiments.detection.rescore import by_class, rescore
from experiments.detection.server_scores import read_scores


def detection_study(
    name: str,
    title: str,
    tables: tuple[Table, ...],
    claims: tuple[Claim, ...],
    profiles: Iterable[Profile],
    paper_note: str = "",
    metrics: tuple[Metric, ...] = COCO_METRICS,
) -> Study:
    """A study of detection from what it has of its own; the first profile is the default.

    Args:
        name, title, tables, claims, profiles, paper_note: see `Study`.
        metrics: those that evaluations report, the study's main one first, which is given by class too.
            Speed, boxes and input size are there besides where a table cites them.
    """
    cited = {cell.metric for table in tables for row in table.rows for cell in row.cells}
    counted = {BOXES.name: boxes, INPUT.name: input_side}
    by_name = {profile.name: profile for profile in profiles}
    return Study(
        name=name,
        title=title,
        metrics=(*metrics, *(metric for metric in (SPEED, BOXES, INPUT) if metric.name in cited)),
        tables=tables,
        claims=claims,
        profiles=by_name,
        default_profile=next(iter(by_name)),
        train=train,
        progress=PROGRESS,
        options=DetectionOptions,
        check_data=check_data,
        paper_note=paper_note,
        predictions="detections",
        rescore=rescore,
        read_scores=read_scores,
        by_class=ByClass(metrics[0].name, by_class),
        computed={name: count for name, count in counted.items() if name in cited},
        joint=JOINT if SPEED.name in cited else None,
        sources=("detector", "experiments"),
        packages=PACKAGES,
    )


PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pycocotools")
"""Packages whose version can change a result of detection."""


def train(request: Request) -> Generator[Report, None, None]:
    """One attempt at one trial, by `experiments.detection.train_trial`."""
    from experiments.detection.train_trial import train_trial

    yield from train_trial(request)


def speed(request: JointRequest) -> JointResult:
    """The speed of all rows in turns, by `experiments.detection.speed`."""
    from experiments.detection.speed import measure

    return measure(request)


JOINT = JointMeasurement((SPEED.name,), "batch 1, warm, postprocessing included, images in memory", speed)


def check_data(options: DetectionOptions, folder: Path) -> DataReport:
    """A report on the user's data set before anything trains on it.

    Pictures of it go into `folder`, and COCO's JSON where it has another layout.

    Raises:
        UserError: none is named, or it cannot be used; lists what is wrong with it.
    """
    from detector.inspect_data import Seen, inspect
    from experiments.detection.small import SHAPES

    if (found := options.data_set(folder)) is None:
        raise UserError("Name the data set to check: --data DIR, or its four files and folders.")
    seen = Seen(SHAPES.own_short_side, SHAPES.own_max_long_side)  # of the default profile
    try:
        report = inspect(found.paths, folder, found.report, seen)
    except DataError as error:
        raise UserError(str(error)) from error
    return DataReport(report.text, report.data(), len(report.problems))
