"""What every study of detection hands to the platform beside its tables and claims.

Nothing here imports torch: a command that trains nothing answers at once. What trains, or opens images,
imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from ablation.errors import UserError
from ablation.protocol import Report, Request
from detector.errors import DataError
from experiments.detection.options import DetectionOptions

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pycocotools")
"""Packages whose version can change a result of detection."""


def train(request: Request) -> Generator[Report, None, None]:
    """One attempt at one trial, by `experiments.detection.train_trial`."""
    from experiments.detection.train_trial import train_trial

    yield from train_trial(request)


def check_data(options: DetectionOptions, folder: Path) -> str:
    """A report on the user's data set before anything trains on it.

    Pictures of it go into `folder`, and COCO's JSON where it has another layout.

    Raises:
        UserError: none is named, or it cannot be used; lists what is wrong with it.
    """
    from detector.inspect_data import inspect

    if (found := options.data_set(folder)) is None:
        raise UserError("Name the data set to check: --data DIR, or its four files and folders.")
    try:
        return inspect(found.paths, folder, found.report)
    except DataError as error:
        raise UserError(str(error)) from error
