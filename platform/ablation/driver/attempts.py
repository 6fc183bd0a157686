"""The driver's side of every trial: turns what workers tell into what the store keeps."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablation.driver.display import Listener
from ablation.errors import last_line
from ablation.plan import PlannedTrial
from ablation.protocol import Checkpointed, Evaluated, Noticed, Report, from_wire
from ablation.provenance import record as provenance
from ablation.storage import Storage, StorageError
from ablation.store import SILENCE, AttemptOverError, Store
from ablation.worker import harness as worker
from ablation.worker.quarantine import Fault, Place
from ablation.worker.watchdog import hang_of
from ablation.workspace import Workspace

LATE_S = 10.0
"""A driver's sign of life that comes later than this was held up: by the store, or with the whole machine."""
ASK_EVERY_S = 5.0
"""Between two times that a run which ends asks trials to stop, where their storage was away."""


class StopNow(BaseException):
    """Leaves Tune's loop at once; no handler of Exception holds it up."""


@dataclass(slots=True)
class Desk:
    """Keeps the attempts of this driver.

    An error of the store in here must end the run, but Tune swallows or wraps what its callbacks raise;
    so it is kept in `failure`, for which `check` stops the loop, and which is raised after it.

    Attributes:
        trials: all that the run may start, by key.
        facts: provenance of each attempt.
        max_retries, grace: see `ablation.driver.options.Options`.
        running: id of the attempt, by trial key.
        heard: keys of running trials that have their place, by what their processes did or told.
        done: keys of evaluations that this run did, by trial key.
        losses: processes lost in a row without a new checkpoint, by trial key.
        stopping: running trials that have been asked to stop.
        set_aside: devices that cannot be used, by the attempt that found it out; its process stays there.
    """

    trials: Mapping[str, PlannedTrial]
    store: Store
    storage: Storage
    workspace: Workspace
    listener: Listener
    facts: Mapping[str, Any]
    max_retries: int
    grace: float
    invocation_id: int | None = None
    running: dict[str, int] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    done: dict[str, list[str]] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)
    set_aside: dict[int, Fault] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    failure: Exception | None = None
    deadline: float | None = None
    ask_at: float = 0.0
    beaten: float = field(default_factory=time.monotonic)
    patient_until: float = 0.0

    # --- ending the run ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raises when the run must end; called at every step of Tune's loop.

        An interrupted run first lets its trials write a checkpoint, for as long as `grace`.
        """
        if self.failure:
            raise StopNow
        if not self.interrupted:
            return
        now = time.monotonic()
        if self.deadline is None:
            self.deadline = now + self.grace
            self.listener.stopping()
        if now >= self.ask_at:
            self.guard(self.ask_to_stop, *self.running)
            self.ask_at = time.monotonic() + ASK_EVERY_S
        if not self.heard or time.monotonic() > self.deadline:
            raise StopNow

    def guard(self, action: Callable[..., None], *arguments: Any) -> None:
        """Does it unless the run must end anyway; an error in it ends the run."""
        try:
            if not self.failure:
                action(*arguments)
        except Exception as error:
            self.failure = error

    def ask_to_stop(self, *keys: str) -> None:
        """Asks running trials to write a checkpoint and end."""
        for key in keys:
            if key in self.running and key not in self.stopping:
                with suppress(StorageError):  # it is away: they are asked again
                    self.storage.ask_to_stop(key)
                    self.stopping.add(key)

    def close(self) -> None:
        """Ends what still runs as interrupted; its trials wait for the next run."""
        for attempt in self.running.values():
            with suppress(AttemptOverError):  # nothing is left to release of it
                self.store.release(attempt)
        for key in self.stopping:
            with suppress(StorageError):  # the next attempt clears it
                self.storage.clear_stop(key)
        self.running.clear()

    # --- one attempt ---------------------------------------------------------------------------------

    def claim(self, key: str) -> bool:
        """Starts an attempt, unless another driver was first.

        Raises:
            StorageError: it is away; the attempt has ended, and is not counted as lost.
        """
        owner = f"{socket.gethostname()}:{os.getpid()}"
        trial = self.trials[key]
        facts = {**self.facts, "inputs": provenance.inputs(trial.config_json)}
        attempt = self.store.claim(key, owner, facts, self.invocation_id)
        if attempt is None:
            return False
        self.running[key] = attempt
        self.failed.pop(key, None)
        self.listener.started(trial)
        try:
            self.storage.clear_stop(key)
        except StorageError as error:
            return self._without_storage(key, error)
        return True

    def _without_storage(self, key: str, error: StorageError) -> bool:
        """Ends an attempt whose folder does not answer: its own loss where the rest of the storage does."""
        try:
            self.storage.probe()
        except StorageError:
            self._release(key, str(error))
            raise error from None
        self.lose(key, str(error))
        return False

    def holds(self, key: str, attempt: int) -> bool:
        """Whether it runs here: of a trial that goes on in another attempt, a process may still be heard."""
        return self.running.get(key) == attempt

    def receive(self, key: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Messages of the trial's process, in order."""
        if key not in self.running:
            return
        self.heard.add(key)
        with self._unless_taken_over(key):
            try:
                reports = [from_wire(m) for m in messages if m["kind"] not in worker.LAST]
                self._take(key, reports, messages[-1])
            except StorageError as error:
                self.lose(key, str(error))
            except ValueError as error:  # a report that makes no sense is the trial's fault alone
                self.fail(key, f"{type(error).__name__}: {error}")

    @contextmanager
    def _unless_taken_over(self, key: str) -> Iterator[None]:
        """Lets go of an attempt that another driver took, having heard nothing of this one for so long."""
        try:
            yield
        except AttemptOverError:
            self._forget(key)
            self.listener.released(self.trials[key], "another driver has taken it over")

    def _take(self, key: str, reports: Sequence[Report], last: Mapping[str, Any]) -> None:
        """Keeps what came together, reports and end, in one transaction."""
        for report in reports:
            if isinstance(report, Evaluated):
                self._bring(key, report)
        match last["kind"]:
            case worker.ENDED:
                self._finish(key, reports)
            case worker.STOPPED:
                self._release(key, "stopped at a checkpoint", reports)
            case worker.FAILED:
                self.fail(key, last["error"], reports)
            case worker.OUT_OF_MEMORY:
                self._shrink(key, last["smaller"], last["error"], reports)
            case worker.DEVICE_FAILED:
                self._let_down(key, last, reports)
            case _:
                self._record(key, reports)

    def _record(self, key: str, reports: Sequence[Report]) -> None:
        self.store.record(self.running[key], reports)
        self._tell(key, reports)

    def _tell(self, key: str, reports: Sequence[Report]) -> None:
        """What follows from reports that the store has."""
        for report in reports:
            if isinstance(report, Evaluated):
                self.done.setdefault(key, []).append(report.key)
            if isinstance(report, Checkpointed):
                self.losses[key] = 0
            self.listener.reported(self.trials[key], report)

    def _bring(self, key: str, report: Evaluated) -> None:
        """Fetches to the workspace what tables read."""
        directory = self.workspace.trial_directory(key)
        for path in report.artifacts.values():
            self.storage.download(key, Path(path).relative_to(directory).as_posix(), directory)

    def _finish(self, key: str, reports: Sequence[Report]) -> None:
        self.store.finish(self.running[key], reports)
        self._tell(key, reports)
        self._forget(key)  # only now: what the store did not take, `close` releases
        self.finished.append(key)
        self.listener.finished(self.trials[key])

    def _release(self, key: str, why: str, reports: Sequence[Report] = ()) -> None:
        self.store.release(self.running[key], reports)
        self._tell(key, reports)
        self._forget(key)
        self.listener.released(self.trials[key], why)

    def _forget(self, key: str) -> None:
        del self.running[key]
        self.heard.discard(key)
        self.stopping.discard(key)

    def _shrink(self, key: str, smaller: int | None, error: str, reports: Sequence[Report]) -> None:
        """Out of memory: tries again with fewer images at a time, which changes no result."""
        if smaller is None:
            self.fail(key, error, reports)
            return
        notice = f"out of memory; goes on with {smaller} images at a time and the same total batch"
        self.store.set_micro_batch(key, smaller)
        self._again(key, notice, reports)

    def _let_down(self, key: str, last: Mapping[str, Any], reports: Sequence[Report]) -> None:
        """The device failed under the trial, which goes on from its last checkpoint.

        Either way that counts as a lost process: the trial may be what makes devices fail.
        """
        fault = Fault(Place(**last["place"]), last_line(last["why"]))
        if not last["usable"]:
            self.set_aside[self.running[key]] = fault
            self.listener.noted(f"Cannot be used, and is set aside until this run ends: {fault}")
        self._record(key, reports)
        again = " (a new process can use it)" if last["usable"] else ""
        self.lose(key, f"{last['error']}\nOn {fault}{again}")

    def lose(self, key: str, reason: str) -> None:
        """The trial's process died: it starts again, unless it did so too often without getting on."""
        if key not in self.running:
            return
        if hang_of(self.workspace.trial_directory(key)):
            reason = f"{reason}\nIt hung, and was ended (log.txt of the trial has where)"
        self.losses[key] = self.losses.get(key, 0) + 1
        with self._unless_taken_over(key):
            if self.losses[key] > self.max_retries:
                self.fail(key, reason)
            else:
                self._again(key, reason)

    def _again(self, key: str, reason: str, reports: Sequence[Report] = ()) -> None:
        """Ends the attempt; the trial waits for another."""
        self.store.release(self.running[key], [*reports, Noticed(reason)])
        self._tell(key, reports)
        self._forget(key)
        self.listener.lost(self.trials[key], reason)

    def fail(self, key: str, error: str, reports: Sequence[Report] = ()) -> None:
        """The trial failed for good, in Python or after its last retry."""
        self.store.fail(self.running[key], error, reports)
        self._tell(key, reports)
        self._forget(key)
        self.failed[key] = error
        self.listener.failed(self.trials[key], error)

    def give_up(self, key: str) -> None:
        """Ends an attempt whose process has not started."""
        with self._unless_taken_over(key):
            self._release(key, "its process has not started")

    def beat(self) -> None:
        """Says that the running attempts are alive."""
        self.store.heartbeat(list(self.running.values()))
        self.beaten = time.monotonic()

    def reclaim(self) -> None:
        """Frees what drivers hold that are gone.

        Where this one could not reach the store for a while, others could not either: they get as long to
        say that they are alive.
        """
        now = time.monotonic()
        if now - self.beaten > LATE_S:
            self.patient_until = now + SILENCE.total_seconds()
        self.beat()
        if now >= self.patient_until:
            self.store.reclaim_silent()
