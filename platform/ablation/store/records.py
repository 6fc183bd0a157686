"""What the store answers with: its rows as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ablation.store.schema import AttemptState, TrialState

SILENCE = timedelta(seconds=30)
"""A driver says much more often than this that its attempts are alive."""
CHECKPOINT = "checkpoint"
"""The kind of artifact that a `Checkpointed` report leaves."""
DETECTIONS = "detections"
"""The kind of artifact that holds what an evaluation found, for `Study.rescore` and `Study.by_class`."""
SUBMISSION = "submission"
"""The kind of artifact that an evaluation without numbers leaves: what an evaluation server takes."""
SCORES = "scores"
"""The kind of artifact that holds what an evaluation server returned."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial as the store knows it.

    Attributes:
        tables: ids of the tables that cite it.
        state: WAITING also where nothing was heard of the running attempt for `SILENCE`: its driver was
            killed. Whether a plan still wants something of the trial, the plan knows.
        step, total: how far the newest attempt reported to be; 0 of 0 before the first report.
        error: traceback of the failure when FAILED.
        attempts: how many there were.
        seconds: run time of all attempts together.
        priority: higher ones start first.
        micro_batch: what want of memory made of it; None leaves it to the command.
        first_attempt: number of the attempt with which the training that counts began; above 1 where it was
            begun anew.
    """

    key: str
    study: str
    profile: str
    data_name: str
    name: str
    tables: tuple[str, ...]
    config_json: str
    seed: int
    state: TrialState
    step: int
    total: int
    error: str | None
    attempts: int
    seconds: float
    priority: int = 0
    micro_batch: int | None = None
    first_attempt: int = 1

    @property
    def folder(self) -> str:
        """Where in its directory the training that counts keeps its files; one begun anew finds no others."""
        return folder_of(self.first_attempt)


def folder_of(first_attempt: int) -> str:
    """In a trial's directory, of the training that began with that attempt; "" for the directory itself."""
    return f"attempt-{first_attempt}" if first_attempt > 1 else ""


@dataclass(frozen=True, slots=True)
class Start:
    """What an attempt at a trial starts from.

    Attributes:
        first_attempt: see `TrialRow`.
        done: keys of the trial's evaluations that have a result.
    """

    first_attempt: int
    done: frozenset[str] = frozenset()

    @property
    def folder(self) -> str:
        """See `TrialRow`."""
        return folder_of(self.first_attempt)


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One run of a trial.

    Attributes:
        number: 1 for the first attempt at its trial.
        owner: who claimed it; `host` and `pid` are of the process that did.
        provenance: what `provenance.collect` found, without the diff's text (see `Store.diff`).
        mirrored_upto: id of the last metric that MLflow has.
        mirrored_state: the state that MLflow has; None when it has nothing yet.
        environment: of the process that trained, as it last described itself; None before it did.
    """

    id: int
    trial_key: str
    number: int
    invocation_id: int | None
    state: AttemptState
    owner: str
    host: str
    pid: int
    started: datetime
    heartbeat: datetime
    ended: datetime | None
    error: str | None
    provenance: dict[str, Any]
    mlflow_run_id: str | None
    mirrored_upto: int
    mirrored_state: AttemptState | None
    environment: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Run time; up to the last heartbeat while it runs."""
        return ((self.ended or self.heartbeat) - self.started).total_seconds()


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """An evaluation that is done.

    Attributes:
        metrics: AP and its kin in percent; NaN where there is nothing to average; empty while an
            evaluation server has yet to give them.
        artifacts: path of each kind of file behind it, relative to the workspace (`Store.resolve`).
    """

    key: str
    trial_key: str
    attempt_id: int
    config_json: str
    metrics: dict[str, float]
    artifacts: dict[str, str]
    time: datetime

    @property
    def awaits_scores(self) -> bool:
        """Whether it has no numbers, because only an evaluation server can give them."""
        return not self.metrics and SUBMISSION in self.artifacts

    @property
    def imported(self) -> bool:
        """Whether an evaluation server gave its numbers."""
        return SCORES in self.artifacts


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One number of a training; ids grow in the order of recording."""

    id: int
    step: int
    name: str
    value: float
    time: datetime


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """A file that an attempt left, its path relative to the workspace."""

    trial_key: str
    attempt_id: int
    evaluation_key: str | None
    kind: str
    path: str
    sha256: str | None
    step: int | None
    time: datetime


@dataclass(frozen=True, slots=True)
class InvocationRow:
    """One `run` command; `mlflow_run_id` is the parent of its attempts' runs."""

    id: int
    command: str
    started: datetime
    ended: datetime | None
    host: str
    pid: int
    provenance: dict[str, Any]
    mlflow_run_id: str | None


@dataclass(frozen=True, slots=True)
class PaceRow:
    """How fast an attempt went.

    Attributes:
        steps: between its first and its last report of progress.
        train_seconds: between the same two.
        total_seconds: of the whole attempt: start, training, evaluations.
        complete: whether it ended well.
    """

    trial_key: str
    attempt_id: int
    steps: int
    train_seconds: float
    total_seconds: float
    complete: bool


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What is wanted of a trial, its state as written: RUNNING whether its driver lives or not."""

    state: TrialState
    priority: int
    micro_batch: int | None
    first_attempt: int = 1


@dataclass(frozen=True, slots=True)
class DesiredStates:
    """What people want of a running study; a driver looks every few seconds."""

    paused: bool
    trials: Mapping[str, DesiredState]
