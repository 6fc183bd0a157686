"""The rows that the store returns, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ablation.store.schema import AttemptState, TrialState

SILENCE = timedelta(seconds=30)
"""Time without a heartbeat after which an attempt's driver counts as dead."""
CHECKPOINT = "checkpoint"
"""The kind of artifact that a `Checkpointed` report leaves."""
SUBMISSION = "submission"
"""The kind of artifact of an evaluation without numbers: the file to upload to an evaluation server."""
SCORES = "scores"
"""The kind of artifact with the numbers that an evaluation server returned."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial as the store knows it.

    Attributes:
        tables: ids of the tables that cite it.
        state: WAITING also where the running attempt had no heartbeat for `SILENCE`: its driver was killed.
        step, total: progress of the newest attempt; 0 of 0 before its first report.
        error: traceback of the failure when FAILED.
        attempts: number of attempts.
        seconds: run time of all attempts together.
        priority: higher ones start first.
        micro_batch: samples at a time after an attempt ran out of memory; None for the command's value.
        first_attempt: number of the attempt that started the training that counts; above 1 where it was
            started anew.
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
        """Folder of the training that counts, in the trial's directory; each one started anew has its own."""
        return folder_of(self.first_attempt)


def folder_of(first_attempt: int) -> str:
    """Folder of a training that started with that attempt; "" for the trial's directory itself."""
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
        owner: the driver that claimed it; `host` and `pid` are those of its process.
        provenance: as `provenance.record.collect` returns it, without the diff's text (see `Store.diff`).
        mirrored_upto: id of the last metric that MLflow has.
        mirrored_state: the state that MLflow has; None when it has nothing yet.
        environment: of the training process (`provenance.environment.describe`); None before its report.
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
        metrics: values by name, in the metrics' units; NaN where undefined; empty until an evaluation server
            has returned them.
        artifacts: path of each kind of file, relative to the workspace (`Store.resolve`).
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
        """Whether its numbers are still to come from an evaluation server."""
        return not self.metrics and SUBMISSION in self.artifacts

    @property
    def imported(self) -> bool:
        """Whether its numbers came from an evaluation server."""
        return SCORES in self.artifacts


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One value of a training's metric; ids grow in the order of recording."""

    id: int
    step: int
    name: str
    value: float
    time: datetime


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """A file of an attempt, its path relative to the workspace."""

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
    """Speed of an attempt.

    Attributes:
        steps: from its first to its last report of progress.
        train_seconds: between these two reports.
        total_seconds: of the whole attempt: start, training, evaluations.
        complete: whether it is COMPLETE.
    """

    trial_key: str
    attempt_id: int
    steps: int
    train_seconds: float
    total_seconds: float
    complete: bool


@dataclass(frozen=True, slots=True)
class JointRow:
    """A joint measurement of trained rows.

    Attributes:
        machine: what computed, for people.
        provenance: of the command that measured, as an attempt's.
        attempts: id of the attempt that gave each row's result, by evaluation key.
        rounds: by evaluation key, for each metric its values round by round.
    """

    machine: str
    time: datetime
    provenance: dict[str, Any]
    attempts: dict[str, int]
    rounds: dict[str, dict[str, list[float]]]

    @property
    def num_rounds(self) -> int:
        """How often each row was measured."""
        return max((len(values) for row in self.rounds.values() for values in row.values()), default=0)

    def measured(self, evaluation: EvaluationRow) -> bool:
        """Whether it measured the training that gave the evaluation's present result."""
        return self.attempts.get(evaluation.key) == evaluation.attempt_id


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What people want of a trial. `state` is as stored: RUNNING also when the driver is dead."""

    state: TrialState
    priority: int
    micro_batch: int | None
    first_attempt: int = 1


@dataclass(frozen=True, slots=True)
class DesiredStates:
    """What people want of a study and its trials; a driver reads it every few seconds."""

    paused: bool
    trials: Mapping[str, DesiredState]
