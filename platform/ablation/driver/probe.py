"""Measures the pace of this machine by a few steps of one training."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from ablation.calibration import Measured
from ablation.cluster.connection import OF_THREADS, environment
from ablation.plan import PlannedTrial
from ablation.protocol import Progress, Request, TrainFunction
from ablation.resources import Resources

REPORTS = 5
"""Reports after the first one from which the pace is computed."""
LIMIT_S = 120.0


def probe(
    train: TrainFunction, trials: Sequence[PlannedTrial], context: Any, limit_s: float = LIMIT_S
) -> Measured | None:
    """The pace of the trial of median cost, trained for a moment in a process and a temporary folder.

    The time before the first report includes the start of the process; it counts only where there is no
    second.

    Args:
        train: the study's.
        trials: that are to be run.
        context: of the setting.
        limit_s: seconds after which the process is ended.

    Returns:
        The pace; None where there is no trial, or nothing was reported in time.
    """
    if not trials:
        return None
    trial = sorted(trials, key=lambda one: one.cost)[len(trials) // 2]
    held = trial.resources or Resources()
    with (
        tempfile.TemporaryDirectory(prefix="ablation-probe-") as folder,
        environment({**OF_THREADS, "OMP_NUM_THREADS": str(max(1, int(held.cpus)))}),  # as in a run
    ):
        request = Request(trial.key, trial.config, (), Path(folder), context, replace(held, workers=1))
        seen = _seen(train, request, limit_s)
    last, first = seen[-1], seen[1] if len(seen) > 2 else seen[0]
    if last.step <= first.step:
        return None
    return Measured(trial.key, (last.seconds - first.seconds) / (last.step - first.step), last.total)


class _Reached(NamedTuple):
    """A step, of so many, and the seconds from the start."""

    step: int
    total: int
    seconds: float


def _seen(train: TrainFunction, request: Request, limit_s: float) -> list[_Reached]:
    """The start as step 0, and the first reports."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_tell, args=(train, request, sender), daemon=False)
    seen, deadline = [_Reached(0, 0, 0.0)], time.monotonic() + limit_s
    process.start()
    sender.close()
    try:
        while len(seen) < REPORTS + 2 and receiver.poll(max(0.0, deadline - time.monotonic())):
            seen.append(receiver.recv())
    except EOFError:  # the training ended or failed; the run itself will report why
        pass
    finally:
        process.terminate()
        process.join()
    return seen


def _tell(train: TrainFunction, request: Request, sender: Connection) -> None:
    """Runs in the process: trains, and sends each step reached and its time."""
    began = time.monotonic()
    for report in train(request):
        if isinstance(report, Progress):
            sender.send(_Reached(report.step, report.total, time.monotonic() - began))
