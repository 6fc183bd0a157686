"""Beside a training, in its process: the log that a person reads, and the watch that ends a hang."""

from __future__ import annotations

import faulthandler
import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from ablation.protocol import Checkpointed, Evaluated, Noticed, Progress, Report

LOG, HANG = "log.txt", "hang.txt"
"""In a trial's directory: what its attempts said, and where each thread stood when one hung."""

FACTOR = 20
"""A training hangs when it says nothing for so many times the median time between its reports ..."""
START = 6
"""... or, before its first reports, for so many times the least time that counts as hanging."""


@contextmanager
def logged(directory: Path, *, writes: bool = True) -> Iterator[Callable[[Report | str], None]]:
    """A log of the attempt in the trial's directory; what it prints goes there too.

    Args:
        directory: the trial's.
        writes: False writes only what is printed, for ranks whose reports another tells.
    """
    with (directory / LOG).open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):

        def log(what: Report | str) -> None:
            if writes and (text := what if isinstance(what, str) else _line(what)):
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {text}\n")

        log(f"started on {socket.gethostname()}, process {os.getpid()}")
        try:
            yield log
        except Exception as error:
            log(f"failed: {type(error).__name__}: {error}")
            raise


def _line(report: Report) -> str:
    """A report in words; nothing for one that tells a person nothing."""
    match report:
        case Progress(step, total, metrics):
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            return f"{step}/{total}  {numbers}".rstrip()
        case Checkpointed(step, path, _):
            return f"checkpoint of step {step}: {Path(path).name}"
        case Evaluated(key, metrics, _):
            return f"evaluation {key}: " + "  ".join(f"{n} {v:.2f}" for n, v in metrics.items())
        case Noticed(message):
            return message
        case _:
            return ""


class Watch:
    """Ends the process when the training in it goes silent, so that another attempt can begin.

    The interpreter's own watchdog does it, which needs no lock that a hanging library may hold. It leaves
    the stack of every thread in `HANG`.

    Args:
        directory: the trial's.
        least: seconds of silence that never count as hanging; 0 watches nothing.
    """

    _current: ClassVar[Watch | None] = None

    def __init__(self, directory: Path, least: float) -> None:
        self._path = directory / f"{HANG}.{socket.gethostname()}.{os.getpid()}"
        self._least = least
        self._paces: deque[float] = deque(maxlen=51)

    def __enter__(self) -> Self:
        self._file = self._path.open("w")
        Watch._current = self
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        Watch._current = None
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def over(self, reports: Iterator[Report]) -> Iterator[Report]:
        """The same reports; time counts only while the next one is being made."""
        while True:
            began = time.monotonic()
            self.arm()
            try:
                report = next(reports)
            except StopIteration:
                return
            finally:
                faulthandler.cancel_dump_traceback_later()
            if isinstance(report, Progress):
                self._paces.append(time.monotonic() - began)
            yield report

    def arm(self) -> None:
        """Starts counting anew."""
        if self._least:
            faulthandler.dump_traceback_later(self.limit, file=self._file, exit=True)

    @property
    def limit(self) -> float:
        """Seconds of silence that count as hanging now."""
        if len(self._paces) < 2:
            return START * self._least
        return max(self._least, FACTOR * statistics.median(self._paces))


def alive() -> None:
    """Called by a train function in the middle of something long that reports nothing."""
    if Watch._current is not None:
        Watch._current.arm()


def hang_of(directory: Path) -> str | None:
    """Where the last process that hung stood, once: the file goes to the log; None when none did."""
    for path in directory.glob(f"{HANG}.*"):
        with suppress(FileNotFoundError):  # of a process that ends at this moment
            if text := path.read_text(errors="replace").strip():  # an empty one may be in use
                with (directory / LOG).open("a") as log:
                    log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  hung\n{text}\n")
                path.unlink()
                return text
    return None
