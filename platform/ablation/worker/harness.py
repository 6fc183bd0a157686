"""The process of a trial, which Ray Tune starts and the next trial uses again.

Each step of the process is one round trip to the driver and brings it messages of `ablation.worker.messages`.
A trial of one worker trains in this process; for a trial of several the process starts a Ray Train group and
passes on what its first rank reports.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

from ablation.protocol import Described, Evaluated, Request
from ablation.storage import StorageError
from ablation.worker import quarantine
from ablation.worker.group import WorkersLostError, group_messages
from ablation.worker.messages import DeviceFailed, End, Ended, Failed, Message, failure_of
from ablation.worker.training import WorkerConfig, reports


def trial_process() -> type[Any]:
    """Tune's class of trial processes. Its config holds a `Request` as "request"."""
    import ray
    from ray import tune

    class TrialProcess(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], workers: WorkerConfig) -> None:
            self._workers = workers
            self._preempted = False
            self._process = ray.get_runtime_context().current_actor
            self._begin(config["request"])
            with suppress(ValueError):  # not in the main thread: then Ray's own handler ends the process
                self._before = signal.signal(signal.SIGTERM, self._on_sigterm)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._begin(new_config["request"])
            return True

        def _begin(self, request: Request) -> None:
            self._has_gpu = request.workers == 1 and bool(request.gpus)
            self._last: Message | None = None
            self._batches = batches(messages(self._workers, request, lambda: self._preempted), request)

        def step(self) -> dict[str, Any]:
            batch = next(self._batches, None)
            if batch is None:  # the driver has the last message, and this process must not be used again
                if isinstance(self._last, DeviceFailed) and not self._last.usable:
                    quarantine.hold_until_killed()
                os._exit(0)
            self._last = batch[-1] if batch else None
            return {"messages": batch, "process": self._process, "done": self._reusable()}

        def _reusable(self) -> bool:
            """Whether the attempt has ended and the next trial may use the process."""
            # An error of CUDA may break the process for every trial after this one.
            broken = isinstance(self._last, DeviceFailed) or (
                self._has_gpu and isinstance(self._last, Failed)
            )
            return isinstance(self._last, End) and not (broken or self._preempted)

        def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
            self._preempted = True
            if isinstance(self._last, End) and callable(self._before):
                self._before(number, frame)

    return TrialProcess


def batches(messages: Iterator[Message], request: Request) -> Iterator[list[Message]]:
    """The messages in lists that travel together: one that is followed by another at once waits for it.

    The first list is empty, and comes before anything is done: the driver can end a process that it gave up.
    In a group the first report waits for no other, because it says that the workers run. What waits when an
    error ends the messages comes before the error.
    """
    yield []
    if request.workers > 1:
        yield [next(messages)]
    batch: list[Message] = []
    evaluations = len(request.evaluations)
    try:
        for message in messages:
            batch.append(message)
            evaluations -= isinstance(message, Evaluated)
            if isinstance(message, Described) or (isinstance(message, Evaluated) and evaluations == 0):
                continue
            yield batch
            batch = []
    except (WorkersLostError, StorageError):
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def messages(
    config: WorkerConfig, request: Request, preempted: Callable[[], bool] = lambda: False
) -> Iterator[Message]:
    """All messages of an attempt; the last one says how it ended.

    Args:
        preempted: whether this process has been asked to end.

    Raises:
        WorkersLostError: a process of the trial's group died; the trial goes on from its last checkpoint.
        StorageError: the storage is away, which is no fault of the trial.
    """

    def stop() -> bool:
        return preempted() or config.storage.stop_asked(request.trial_key)

    try:
        if request.workers > 1:
            running = group_messages(config, request, preempted)
        else:
            running = reports(config, request, stop)
        last: Message | None = None
        for last in running:
            yield last
        if not isinstance(last, End):
            yield Ended()
    except (WorkersLostError, StorageError):
        raise
    except (Exception, SystemExit) as error:
        yield failure_of(error)
