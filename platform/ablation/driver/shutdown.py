"""How a run ends: by itself, by an error, or because a person or the system asked it to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ablation.driver.attempts import AttemptManager

ASK_EVERY_S = 5.0
"""Between two requests to stop, where the storage of trials was away."""


class StopRun(BaseException):
    """Leaves Tune's loop at once; with a cause when an error ends the run.

    Not an Exception: Tune wraps those in errors of its own, and first tries to stop every process for up to
    ten seconds, which `ray.shutdown` does anyway.
    """


@contextmanager
def errors_end_the_run() -> Iterator[None]:
    """Makes any error in Tune's callbacks leave its loop."""
    try:
        yield
    except Exception as error:
        raise StopRun from error


@dataclass(slots=True)
class Shutdown:
    """An interrupted run first lets its trials write a checkpoint.

    Attributes:
        grace: seconds that they get.
        requested: by Ctrl-C or SIGTERM.
    """

    grace: float
    requested: bool = False
    _deadline: float | None = None
    _ask_at: float = 0.0

    def poll(self, manager: AttemptManager) -> None:
        """Asks the running trials to stop.

        Raises:
            StopRun: none of them has started that still runs, or their time is over.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self.grace
            manager.listener.stopping()
        if now >= self._ask_at:
            manager.ask_to_stop(*manager.running.values())
            self._ask_at = time.monotonic() + ASK_EVERY_S
        started = any(attempt.started for attempt in manager.running.values())
        if not started or time.monotonic() > self._deadline:
            raise StopRun

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM request the shutdown; a second one ends the process, and Ray's with it."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.requested:
                os._exit(128 + number)
            self.requested = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
