"""The running attempts of this driver: turns what their processes tell into what the store keeps."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from ablation.driver.display import Listener
from ablation.plan import PlannedTrial
from ablation.protocol import Checkpointed, Evaluated, Noticed, Report
from ablation.provenance import record as provenance
from ablation.storage import Storage, StorageError
from ablation.store import AttemptOverError, Store
from ablation.worker.messages import DeviceFailed, End, Ended, Failed, Message, OutOfMemory, Stopped
from ablation.worker.quarantine import Fault
from ablation.worker.watchdog import hang_of
from ablation.workspace import Workspace


@dataclass(slots=True)
class Attempt:
    """One attempt at a trial, claimed in the store.

    Attributes:
        id: in the store.
        began: seconds on the driver's clock.
        folder: of the trial's directory; see `store.TrialRow`.
        done: keys of the planned evaluations that have a result.
        losses: processes lost in a row without a new checkpoint, over all attempts of this run at the trial
            since a person last retried it.
        started: whether its process has reported.
        stop_requested: whether it has been asked to stop at a checkpoint.
    """

    id: int
    trial: PlannedTrial
    began: float
    folder: str = ""
    done: set[str] = field(default_factory=set)
    losses: int = 0
    started: bool = False
    stop_requested: bool = False

    @property
    def key(self) -> str:
        """Of the trial."""
        return self.trial.key

    @property
    def lacks(self) -> set[str]:
        """Keys of the planned evaluations without a result."""
        return {evaluation.key for evaluation in self.trial.missing} - self.done


@dataclass(slots=True)
class AttemptManager:
    """Keeps the attempts of this driver, from the claim in the store to how they end.

    Attributes:
        facts: provenance of each attempt.
        max_retries: see `ablation.run_options.Options`.
        running: the attempts, by trial key.
        ended: the last attempt of each trial of which none is running, by trial key.
        finished: keys of the trials that came to their end.
        failed: traceback or reason, by trial key.
        quarantined: devices that cannot be used, by the id of the attempt under which they failed; its
            process keeps them until the run ends.
    """

    store: Store
    storage: Storage
    workspace: Workspace
    listener: Listener
    facts: Mapping[str, Any]
    max_retries: int
    invocation_id: int | None = None
    running: dict[str, Attempt] = field(default_factory=dict)
    ended: dict[str, Attempt] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    quarantined: dict[int, Fault] = field(default_factory=dict)

    # --- the beginning -------------------------------------------------------------------------------

    def claim(self, trial: PlannedTrial, now: float = 0.0) -> Attempt | None:
        """Starts an attempt; None when another driver was first, or the trial's own folder cannot be used.

        Raises:
            StorageError: the storage is away; the attempt has ended, and does not count as lost.
        """
        owner = f"{socket.gethostname()}:{os.getpid()}"
        facts = {**self.facts, "inputs": provenance.inputs(trial.config_json)}
        id = self.store.claim(trial.key, owner, facts, self.invocation_id)
        if id is None:
            return None
        before, retried = self.ended.pop(trial.key, None), self.failed.pop(trial.key, None) is not None
        attempt = Attempt(id, trial, now, losses=before.losses if before and not retried else 0)
        self.running[trial.key] = attempt
        start = self.store.start_of(trial.key)  # it does not change while the attempt runs
        attempt.folder = start.folder
        attempt.done = {evaluation.key for evaluation in trial.missing} & start.done
        self.listener.started(trial)
        return attempt if self._prepared(attempt) else None

    def _prepared(self, attempt: Attempt) -> bool:
        """Removes an earlier request to stop; False where this trial's folder alone does not answer."""
        try:
            self.storage.clear_stop(attempt.key)
        except StorageError as error:
            try:
                self.storage.probe()
            except StorageError:
                self._release(attempt, str(error))
                raise error from None
            self.on_worker_lost(attempt, str(error))
            return False
        return True

    # --- while it runs -------------------------------------------------------------------------------

    def find(self, key: str, id: int) -> Attempt | None:
        """A running attempt; None when it has ended, though its process may still report."""
        attempt = self.running.get(key)
        return attempt if attempt and attempt.id == id else None

    def ask_to_stop(self, *attempts: Attempt) -> None:
        """Asks their processes to write a checkpoint and end; again later where the storage is away."""
        for attempt in attempts:
            if not attempt.stop_requested:
                with suppress(StorageError):
                    self.storage.ask_to_stop(attempt.key)
                    attempt.stop_requested = True

    def on_messages(self, attempt: Attempt, messages: Sequence[Message]) -> None:
        """Keeps messages that came together, reports and perhaps the end, in one transaction."""
        attempt.started = True
        if not messages:
            return
        reports = [message for message in messages if not isinstance(message, End)]
        with self._unless_taken_over(attempt):
            try:
                for report in reports:
                    if isinstance(report, Evaluated):
                        self._fetch_artifacts(attempt, report)
                if isinstance(messages[-1], End):
                    self._on_end(attempt, messages[-1], reports)
                else:
                    self._record(attempt, reports)
            except StorageError as error:
                self.on_worker_lost(attempt, str(error))
            except ValueError as error:  # the store refused a report, which is the trial's fault alone
                self.fail(attempt, f"{type(error).__name__}: {error}")

    def _fetch_artifacts(self, attempt: Attempt, report: Evaluated) -> None:
        """Brings the files that tables read to the workspace."""
        directory = self.workspace.trial_directory(attempt.key)
        for path in report.artifacts.values():
            self.storage.download(attempt.key, Path(path).relative_to(directory).as_posix(), directory)

    def _record(self, attempt: Attempt, reports: Sequence[Report]) -> None:
        self.store.record(attempt.id, reports)
        self._on_recorded(attempt, reports)

    def _on_recorded(self, attempt: Attempt, reports: Sequence[Report]) -> None:
        """What follows from reports that the store has."""
        for report in reports:
            if isinstance(report, Evaluated):
                attempt.done.add(report.key)
            if isinstance(report, Checkpointed):
                attempt.losses = 0
            self.listener.reported(attempt.trial, report)

    # --- the end -------------------------------------------------------------------------------------

    def _on_end(self, attempt: Attempt, end: End, reports: Sequence[Report]) -> None:
        match end:
            case Ended():
                self._on_ended(attempt, reports)
            case Stopped():
                self._release(attempt, "stopped at a checkpoint", reports)
            case Failed(error):
                self.fail(attempt, error, reports)
            case OutOfMemory(error, smaller):
                self._retry_smaller(attempt, error, smaller, reports)
            case DeviceFailed():
                self._on_device_failure(attempt, end, reports)
            case _:
                assert_never(end)

    def _on_ended(self, attempt: Attempt, reports: Sequence[Report]) -> None:
        """The trial is done, unless its train function left a result out: another attempt would too."""
        if lacking := attempt.lacks - {report.key for report in reports if isinstance(report, Evaluated)}:
            error = (
                f"The training ended without a result of the evaluation {', '.join(sorted(lacking))}: the "
                "train function must report an Evaluated for each of Request.evaluations"
            )
            self.fail(attempt, error, reports)
        else:
            self._finish(attempt, reports)

    def _finish(self, attempt: Attempt, reports: Sequence[Report]) -> None:
        self.store.finish(attempt.id, reports)
        self._on_recorded(attempt, reports)
        self._end(attempt)  # only now: what the store did not take, `close` releases
        self.finished.append(attempt.key)
        self.listener.finished(attempt.trial)

    def _release(self, attempt: Attempt, why: str, reports: Sequence[Report] = ()) -> None:
        self.store.release(attempt.id, reports)
        self._on_recorded(attempt, reports)
        self._end(attempt)
        self.listener.released(attempt.trial, why)

    def fail(self, attempt: Attempt, error: str, reports: Sequence[Report] = ()) -> None:
        """The trial failed for good: in Python, or after its last retry."""
        self.store.fail(attempt.id, error, reports)
        self._on_recorded(attempt, reports)
        self._end(attempt)
        self.failed[attempt.key] = error
        self.listener.failed(attempt.trial, error)

    def _retry_smaller(
        self, attempt: Attempt, error: str, smaller: int | None, reports: Sequence[Report]
    ) -> None:
        """Out of memory: tries again with a smaller micro-batch, which changes no result."""
        if smaller is None:
            self.fail(attempt, error, reports)
            return
        self.store.set_micro_batch(attempt.key, smaller)
        notice = f"out of memory; continues with a micro-batch of {smaller} and the same total batch"
        self._retry(attempt, notice, reports)

    def _on_device_failure(self, attempt: Attempt, end: DeviceFailed, reports: Sequence[Report]) -> None:
        """The trial goes on from its last checkpoint; its device is kept from all trials if it is unusable.

        Either way that counts as a lost process: the trial may be what makes devices fail.
        """
        if not end.usable:
            self.quarantined[attempt.id] = end.fault
            self.listener.noted(f"Quarantined until this run ends, because it cannot be used: {end.fault}")
        self._record(attempt, reports)
        again = " (a new process can use it)" if end.usable else ""
        self.on_worker_lost(attempt, f"{end.error}\nOn {end.fault}{again}")

    def on_worker_lost(self, attempt: Attempt, reason: str) -> None:
        """The trial's process died: it starts again, unless it did so too often without a new checkpoint.

        One that died after its last result has nothing left to do.
        """
        if hang_of(self.workspace.trial_directory(attempt.key)):
            reason = f"{reason}\nIt hung and was ended; the trial's log.txt says where"
        attempt.losses += 1
        with self._unless_taken_over(attempt):
            if not attempt.lacks:
                self._finish(attempt, [Noticed(reason)])
            elif attempt.losses > self.max_retries:
                self.fail(attempt, reason)
            else:
                self._retry(attempt, reason)

    def on_start_failed(self, attempt: Attempt, error: str) -> None:
        """The trial failed for good before its process could train."""
        with self._unless_taken_over(attempt):
            self.fail(attempt, error)

    def _retry(self, attempt: Attempt, reason: str, reports: Sequence[Report] = ()) -> None:
        """Ends the attempt; the trial waits for another."""
        self.store.release(attempt.id, [*reports, Noticed(reason)])
        self._on_recorded(attempt, reports)
        self._end(attempt)
        self.listener.lost(attempt.trial, reason)

    def give_up(self, attempt: Attempt) -> None:
        """Ends an attempt whose process has not started; should it start, it is killed."""
        with self._unless_taken_over(attempt):
            self._release(attempt, "its process has not started")

    def close(self) -> None:
        """Ends all running attempts as interrupted; their trials wait for the next run."""
        ended = list(self.running.values())
        for attempt in ended:
            with suppress(AttemptOverError):
                self.store.release(attempt.id)
        self.running.clear()
        with suppress(StorageError):  # the next attempts remove what is left
            for attempt in ended:
                if attempt.stop_requested:
                    self.storage.clear_stop(attempt.key)

    @contextmanager
    def _unless_taken_over(self, attempt: Attempt) -> Iterator[None]:
        """Drops an attempt that another driver took, because no heartbeat of it reached the store."""
        try:
            yield
        except AttemptOverError:
            self._end(attempt)
            self.listener.released(attempt.trial, "another driver has taken it over")

    def _end(self, attempt: Attempt) -> None:
        if self.running.pop(attempt.key, None):
            self.ended[attempt.key] = attempt
