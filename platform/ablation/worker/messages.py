"""What a trial's process tells the driver: the reports of the train function, and one message at the end.

They travel as they are, pickled. A Python exception is such a message too, and the process goes on to the
next trial; only a process that dies makes the driver start the trial again.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from ablation.credentials import hidden
from ablation.errors import last_line
from ablation.protocol import DeviceError, OutOfMemoryError, Report
from ablation.worker import quarantine
from ablation.worker.quarantine import Fault


@dataclass(frozen=True, slots=True)
class Ended:
    """The training and all evaluations are done."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The training was asked to stop, and has written a checkpoint."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The train function raised; `error` is the traceback."""

    error: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The train function ran out of memory; `smaller` is the micro-batch to try next, if there is one."""

    error: str
    smaller: int | None


@dataclass(frozen=True, slots=True)
class DeviceFailed:
    """The device failed under the training; `usable` says whether a new process can use it."""

    error: str
    fault: Fault
    usable: bool


Failure = Failed | OutOfMemory | DeviceFailed
End = Ended | Stopped | Failure
Message = Report | End


def failure_of(error: BaseException, workers: int = 1) -> Failure:
    """The message for an exception that is being handled, without passwords of addresses in it.

    Args:
        workers: of the trial on this machine.
    """
    text = hidden(traceback.format_exc())
    if isinstance(error, OutOfMemoryError):
        return OutOfMemory(text, error.smaller)
    if isinstance(error, DeviceError):
        return DeviceFailed(text, Fault(quarantine.this_device(workers), last_line(str(error))), error.usable)
    return Failed(text)
