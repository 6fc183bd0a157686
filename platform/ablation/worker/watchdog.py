"""Beside a training: its log, the watchdog that ends a hang, and the guard process for a frozen one."""

from __future__ import annotations

import faulthandler
import itertools
import mmap
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from ablation.protocol import Checkpointed, Evaluated, Noticed, Progress, Report
from ablation.storage.names import HANG, LOG
from ablation.worker import guard

FACTOR = 20
"""A training hangs when it reports nothing for so many times the median time between its reports ..."""
START = 6
"""... or, before its first reports, for so many times the least silence that counts as hanging."""


@contextmanager
def logged(directory: Path, *, writes: bool = True) -> Iterator[Callable[[Report | str], None]]:
    """Writes a log of the attempt in the trial's directory, with all that the process prints.

    Args:
        directory: the trial's.
        writes: False for ranks but the first: only what they print is written.
    """
    path = directory / LOG
    with (
        # A training may print what no encoding has, such as the name of a file.
        path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):

        def log(what: Report | str) -> None:
            if writes and (text := what if isinstance(what, str) else _line(what)):
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {text}\n")

        log(f"started on {socket.gethostname()}, process {os.getpid()}")
        try:
            yield log
        except (Exception, SystemExit) as error:
            log(f"failed: {type(error).__name__}: {error}")
            raise


def _line(report: Report) -> str:
    """A report as a line of the log; empty where the log has none."""
    match report:
        case Progress(step, total, metrics):
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            return f"{step}/{total}  {numbers}".rstrip()
        case Checkpointed(step, path, _):
            return f"checkpoint of step {step}: {Path(path).name}"
        case Evaluated(key, metrics, _):
            return f"evaluation {key}: " + "  ".join(f"{n} {v:.4g}" for n, v in metrics.items())
        case Noticed(message):
            return message
        case _:
            return ""


class Watch:
    """Ends the process when the training in it reports nothing for too long; then another attempt can begin.

    Python's `faulthandler` does it, which needs no lock that a hanging library may hold, and writes the stack
    of every thread to `HANG`. Where no thread of this process runs, the guard process kills it.

    Args:
        directory: the trial's.
        least: shorter silences, in seconds, never count as hanging; 0 turns the watchdog off.
    """

    def __init__(self, directory: Path, least: float) -> None:
        self._path = _hang_file(directory)
        self._least = least
        self._paces: deque[float] = deque(maxlen=51)

    def __enter__(self) -> Self:
        self._file = self._path.open("w")
        if _Guard.own:
            _Guard.own.leave_at(self._path)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._disarm()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def over(self, reports: Iterator[Report]) -> Iterator[Report]:
        """The same reports; time counts only while the next one is being made."""
        while True:
            began = time.monotonic()
            try:
                with self.armed():
                    report = next(reports)
            except StopIteration:
                return
            if isinstance(report, Progress):
                self._paces.append(time.monotonic() - began)
            yield report

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Counts while the block runs."""
        self.arm()
        try:
            yield
        finally:
            self._disarm()

    def arm(self) -> None:
        """Starts counting anew."""
        if self._least:
            limit = self.limit
            faulthandler.dump_traceback_later(limit, file=self._file, exit=True)
            if _Guard.own:
                _Guard.own.expect(limit)

    def _disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if _Guard.own:
            _Guard.own.expect(0)

    @property
    def limit(self) -> float:
        """Seconds of silence that count as hanging now."""
        if len(self._paces) < 2:
            return START * self._least
        return max(self._least, FACTOR * statistics.median(self._paces))


def _hang_file(directory: Path) -> Path:
    """The file of this process."""
    return directory / f"{HANG}.{socket.gethostname()}.{os.getpid()}"


def hang_of(directory: Path) -> str | None:
    """The stacks of a process that hung, moved to the log; None when none hung since the last call."""
    for path in directory.glob(f"{HANG}.*"):
        with suppress(FileNotFoundError):  # of a process that ends at this moment
            if text := path.read_text(errors="replace").strip():  # an empty one may be in use
                with (directory / LOG).open("a") as log:
                    log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  hung\n{text}\n")
                path.unlink()
                return text
    return None


# --- from outside ------------------------------------------------------------------------------------


def guarded(directory: Path, least: float) -> None:
    """Starts the guard process: from now on it kills this process once that is frozen.

    Does nothing but on Linux with a Python that has `os.memfd_create`.

    Args:
        directory: the trial's, for a line in `HANG`; need not exist.
        least: seconds without a heartbeat of a thread that does nothing else, after which the process counts
            as frozen. While a `Watch` is armed its limit counts instead. 0 turns the guard off.
    """
    if not least or sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return
    if _Guard.own is None or not _Guard.own.lives():
        with suppress(OSError, RuntimeError):  # no other process or thread can start: it runs unguarded
            _Guard.own = _Guard()
    if _Guard.own:
        _Guard.own.leave_at(_hang_file(directory))
        _Guard.own.beat_within(least)


class _Guard:
    """The process of `guard.py`, which lives as long as this one, and the memory shared with it.

    Writing there takes less than a microsecond and never waits.
    """

    own: ClassVar[_Guard | None] = None

    def __init__(self) -> None:
        memory = os.memfd_create("heartbeats")
        try:
            os.ftruncate(memory, guard.SIZE)
            self._shared = mmap.mmap(memory, guard.SIZE)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())],
                stdin=memory,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(memory)
        self._numbers = itertools.count(1)
        self._least = 0.0
        try:
            threading.Thread(target=self._beat, name="guard", daemon=True).start()
        except RuntimeError:
            self._process.kill()
            raise

    def lives(self) -> bool:
        """Whether the guard process runs."""
        return self._process.poll() is None

    def leave_at(self, path: Path) -> None:
        """Sets the file to which the guard writes a line before it kills this process."""
        name = os.fsencode(path.absolute())[: guard.SIZE - guard.PATH - 1] + b"\0"
        self._shared[guard.PATH : guard.PATH + len(name)] = name

    def expect(self, seconds: float) -> None:
        """Announces the next heartbeat of the training within so many seconds; 0 for none."""
        self._sign(guard.WATCH, seconds)

    def beat_within(self, seconds: float) -> None:
        """Announces heartbeats of the process within so many seconds each; 0 for none."""
        self._least = seconds
        self._sign(guard.BEAT, seconds)

    def _sign(self, place: int, seconds: float) -> None:
        guard.SIGN.pack_into(self._shared, place, next(self._numbers), seconds)

    def _beat(self) -> None:
        while self.lives():
            time.sleep(guard.TICK_S)
            self._sign(guard.BEAT, self._least)
