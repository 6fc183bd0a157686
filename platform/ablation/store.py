"""The truth about every trial: what is wanted, who runs it, what came out. The only writer of it.

Each method is one transaction, which commits whole or not at all. Only the driver writes; anything may
read at the same time. States of a trial:

    WAITING --claim--> RUNNING --finish--> COMPLETE --ensure_evaluation (a new one)--> WAITING
       ^------------------|  |--fail-----> FAILED   --retry--> WAITING
        release, reclaim_all

An attempt that has ended never changes again; only what the MLflow mirror has of it does, and the
numbers of an evaluation that left them to an evaluation server (`import_scores`).
"""

from __future__ import annotations

import hashlib
import math
import os
import socket
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    or_,
    select,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.exc import DatabaseError, IntegrityError

from ablation import schema
from ablation.errors import UserError
from ablation.protocol import Checkpointed, Evaluated, Noticed, Progress, Report
from ablation.schema import SCHEMA_VERSION, AttemptState, TrialState

BUSY_TIMEOUT_MS = 10_000
SILENCE = timedelta(seconds=30)
"""A driver says much more often than this that its attempts are alive."""
CHECKPOINT = "checkpoint"
"""The kind of artifact that a `Checkpointed` report leaves."""
SUBMISSION = "submission"
"""The kind of artifact that an evaluation without numbers leaves: what an evaluation server takes."""
SCORES = "scores"
"""The kind of artifact that holds what an evaluation server returned."""

_ADVICE = (
    ("disk is full", "Free some space there, or move the workspace with --workspace."),
    ("readonly", "Make the file and its folder writable, or choose another --workspace."),
    ("not a database", "Move the file away (a new one is made) or restore it from a backup."),
    ("malformed", "The file is damaged. Restore it from a backup, or move it away: checkpoints stay usable."),
    ("locked", "Another program keeps it locked; end that program, then run the command again."),
    ("unable to open", "Check that its folder exists, is a folder and may be written to."),
    ("disk i/o", "The disk reports an error; check it, then run the command again."),
    ("connect", "Check that the database server runs and that its address and account are right."),
)


class AttemptOverError(RuntimeError):
    """Something was reported of an attempt that has ended (finished, failed, or lost to another)."""


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


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One run of a trial.

    Attributes:
        number: 1 for the first attempt at its trial.
        owner: who claimed it; `host` and `pid` are of the process that did.
        provenance: what `provenance.collect` found, without the diff's text (see `Store.diff`).
        mirrored_upto: id of the last metric that MLflow has.
        mirrored_state: the state that MLflow has; None when it has nothing yet.
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


class Store:
    """The store of one workspace. Safe to use from several threads."""

    def __init__(self, engine: Engine, place: str, root: Path) -> None:
        self._engine = engine
        self._place = place
        self.root = root

    # --- opening ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, place: Path | str, *, root: Path | None = None, read_only: bool = False) -> Store:
        """Opens a store, and makes its tables where there are none.

        Args:
            place: path of an SQLite file, or a database URL.
            root: the workspace that artifact paths are relative to; the file's folder when None.
            read_only: for views: never writes, and an absent store is an error.

        Raises:
            UserError: it cannot be opened or written, is no store, or is of a newer version.
        """
        url = _url(place, read_only)
        if root is None:
            if not isinstance(place, Path):
                raise ValueError(f"a store given by URL needs the workspace's root, got {place!r}")
            root = place.parent
        engine = create_engine(url)
        if url.get_backend_name() == "sqlite":
            _prepare_sqlite(engine, read_only)
        store = cls(engine, str(place) if isinstance(place, Path) else url.render_as_string(), root.resolve())
        try:
            store._check_schema(read_only)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Gives the connections back; the store may not be used afterwards."""
        self._engine.dispose()

    def resolve(self, path: str) -> Path:
        """The full path of an artifact."""
        return self.root / path

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        """A connection whose work is committed as a whole, or rolled back on any error."""
        try:
            with self._engine.connect() as connection:
                connection.execution_options(ablation_writes=writes)
                with connection.begin():
                    yield connection
        except DatabaseError as error:
            reason = str(error.orig)
            advice = next((text for mark, text in _ADVICE if mark in reason.lower()), None)
            if advice is None or isinstance(error, IntegrityError):
                raise
            raise UserError(f"The result store {self._place} cannot be used: {reason}. {advice}") from error

    def _check_schema(self, read_only: bool) -> None:
        with self._transaction(writes=not read_only) as connection:
            names = set(inspect(connection).get_table_names())
            if not names and not read_only:
                schema.metadata.create_all(connection)
                connection.execute(
                    schema.meta.insert().values(name="schema_version", value=str(SCHEMA_VERSION))
                )
            elif not set(schema.metadata.tables) <= names:
                raise UserError(
                    f"{self._place} is a database, but not a result store: it holds other tables. "
                    "Choose another --workspace, or move the file away."
                )
            m = schema.meta
            own = m.c.name == "schema_version"
            version = int(_scalar(connection, m, own, "value"))
            if version > SCHEMA_VERSION:
                raise UserError(
                    f"{self._place} is a store of version {version}; this program knows version "
                    f"{SCHEMA_VERSION}. Update the program, or choose another --workspace."
                )
            if not read_only:  # changes nothing, but shows now rather than after hours that it could
                connection.execute(m.update().where(own).values(value=str(version)))

    # --- what is wanted --------------------------------------------------------------------------

    def add_study(self, study: str, profile: str, data_name: str) -> None:
        """Makes a study at a profile on a data set known; needed once before its trials."""
        values = {"name": study, "profile": profile, "data_name": data_name, "added": _now()}
        with self._transaction(writes=True) as connection:
            _insert_new(connection, schema.studies, values)

    def ensure_trial(
        self,
        trial_key: str,
        name: str,
        config_json: str,
        seed: int,
        profile: str,
        data_name: str,
        study: str,
        tables: Sequence[str] = (),
    ) -> None:
        """Makes a trial known, WAITING; a known one only takes the new `name` and `tables`.

        Raises:
            ValueError: the key is taken by another config.
        """
        values = {
            "key": trial_key,
            "name": name,
            "tables": list(tables),
            "config": config_json,
            "seed": seed,
            "profile": profile,
            "data_name": data_name,
            "study": study,
            "state": "WAITING",
            "added": _now(),
        }
        t = schema.trials
        with self._transaction(writes=True) as connection:
            if _insert_new(connection, t, values):
                return
            if _scalar(connection, t, t.c.key == trial_key, "config") != config_json:
                raise ValueError(f"trial {trial_key} is stored with another config than {config_json}")
            connection.execute(t.update().where(t.c.key == trial_key).values(name=name, tables=list(tables)))

    def ensure_evaluation(self, evaluation_key: str, trial_key: str, config_json: str) -> None:
        """Makes an evaluation known; a COMPLETE trial that lacks its result is WAITING again."""
        t, e = schema.trials, schema.evaluations
        values = {"key": evaluation_key, "trial_key": trial_key, "config": config_json}
        with self._transaction(writes=True) as connection:
            _insert_new(connection, e, values)
            lacking = select(e.c.key).where(e.c.key == evaluation_key, e.c.attempt_id.is_(None))
            connection.execute(
                t.update()
                .where(t.c.key == trial_key, t.c.state == "COMPLETE", lacking.exists())
                .values(state="WAITING")
            )

    def retry(self, trial_keys: Collection[str]) -> list[str]:
        """Sets those of the trials that are FAILED back to WAITING; returns them."""
        t = schema.trials
        with self._transaction(writes=True) as connection:
            failed = t.c.key.in_(trial_keys) & (t.c.state == "FAILED")
            keys = list(connection.execute(select(t.c.key).where(failed)).scalars())
            connection.execute(t.update().where(failed).values(state="WAITING", error=None))
        return keys

    # --- invocations -----------------------------------------------------------------------------

    def start_invocation(self, command: str, provenance: Mapping[str, Any]) -> int:
        """Notes that a `run` command starts in this process; returns its id."""
        with self._transaction(writes=True) as connection:
            values = {
                "command": command,
                "started": _now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "provenance": _without_diff(connection, provenance),
            }
            return _inserted_id(connection, schema.invocations, values)

    def end_invocation(self, invocation_id: int) -> None:
        """Notes that the command has ended."""
        i = schema.invocations
        with self._transaction(writes=True) as connection:
            connection.execute(i.update().where(i.c.id == invocation_id).values(ended=_now()))

    def invocations(self) -> list[InvocationRow]:
        """Every `run` command so far, oldest first."""
        i = schema.invocations
        return [InvocationRow(**row) for row in self._read(select(i).order_by(i.c.id))]

    def diff(self, sha256: str) -> str | None:
        """The text of the uncommitted changes whose hash a provenance names."""
        d = schema.diffs
        rows = self._read(select(d.c.text).where(d.c.sha256 == sha256))
        return str(rows[0]["text"]) if rows else None

    # --- running ---------------------------------------------------------------------------------

    def claim(
        self, trial_key: str, owner: str, provenance: Mapping[str, Any], invocation_id: int | None = None
    ) -> int | None:
        """Starts an attempt at a WAITING trial, for this process.

        Returns:
            The attempt's id; None when the trial is not WAITING (another owner was first).
        """
        t, now = schema.trials, _now()
        with self._transaction(writes=True) as connection:
            taken = connection.execute(
                t.update()
                .where(t.c.key == trial_key, t.c.state == "WAITING")
                .values(state="RUNNING", error=None)
            )
            if taken.rowcount == 0:
                return None
            earlier = select(func.count()).where(schema.attempts.c.trial_key == trial_key)
            values = {
                "trial_key": trial_key,
                "number": connection.execute(earlier).scalar_one() + 1,
                "invocation_id": invocation_id,
                "state": "RUNNING",
                "owner": owner,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": now,
                "heartbeat": now,
                "provenance": _without_diff(connection, provenance),
            }
            return _inserted_id(connection, schema.attempts, values)

    def heartbeat(self, attempt_ids: Collection[int]) -> None:
        """Says that attempts are alive; those that have ended stay as they are."""
        a = schema.attempts
        running = a.c.id.in_(attempt_ids) & (a.c.state == "RUNNING")
        with self._transaction(writes=True) as connection:
            connection.execute(a.update().where(running).values(heartbeat=_now()))

    def reclaim_all(self) -> list[str]:
        """Ends what earlier drivers left as running, each at its last sign of life.

        Only for the holder of the workspace's driver lock, who knows that no other driver lives, whatever
        clocks and process ids say. Attempts end as LOST and their trials are WAITING; invocations end.

        Returns:
            The keys of those trials.
        """
        a, t, i = schema.attempts, schema.trials, schema.invocations
        running, beat = a.c.state == "RUNNING", select(func.max(a.c.heartbeat))
        last = beat.where(a.c.invocation_id == i.c.id).scalar_subquery()
        with self._transaction(writes=True) as connection:
            keys = list(connection.execute(select(a.c.trial_key).where(running)).scalars())
            connection.execute(a.update().where(running).values(state="LOST", ended=a.c.heartbeat))
            connection.execute(t.update().where(t.c.state == "RUNNING").values(state="WAITING"))
            connection.execute(
                i.update().where(i.c.ended.is_(None)).values(ended=func.coalesce(last, i.c.started))
            )
        return keys

    def record(self, attempt_id: int, reports: Sequence[Report]) -> None:
        """Keeps what an attempt reports, all of it or nothing. Also a heartbeat.

        Args:
            attempt_id: a running attempt.
            reports: in order; paths in them lie in the workspace, absolute or relative to it.

        Raises:
            AttemptOverError: the attempt has ended.
            ValueError: a path outside the workspace, an evaluation that nobody asked for, or one that has
                neither numbers nor a submission.
        """
        files = [file for report in reports for file in self._files(report)]
        now = _now()
        with self._transaction(writes=True) as connection:
            trial_key = self._touch(connection, attempt_id, {"heartbeat": now})
            ids = {"attempt_id": attempt_id, "time": now}
            _insert_all(connection, schema.metrics, [ids | row for r in reports for row in _metric_rows(r)])
            notices = [ids | {"message": r.message} for r in reports if isinstance(r, Noticed)]
            _insert_all(connection, schema.notices, notices)
            for report in reports:
                if isinstance(report, Evaluated):
                    _set_result(connection, trial_key, report, ids)
            _insert_all(connection, schema.artifacts, [ids | {"trial_key": trial_key} | f for f in files])
            _set_progress(connection, trial_key, reports)

    def finish(self, attempt_id: int) -> None:
        """Ends an attempt well. Its trial is COMPLETE, or WAITING if an evaluation still has no result."""
        e = schema.evaluations
        with self._transaction(writes=True) as connection:
            trial_key = self._touch(connection, attempt_id, {"state": "COMPLETE", "ended": _now()})
            lacking = select(func.count()).where(e.c.trial_key == trial_key, e.c.attempt_id.is_(None))
            state: TrialState = "WAITING" if connection.execute(lacking).scalar_one() else "COMPLETE"
            _set_trial_state(connection, trial_key, state)

    def fail(self, attempt_id: int, error: str) -> None:
        """Ends an attempt with the traceback of what went wrong; its trial is FAILED until a retry."""
        with self._transaction(writes=True) as connection:
            ended = {"state": "FAILED", "ended": _now(), "error": error}
            trial_key = self._touch(connection, attempt_id, ended)
            _set_trial_state(connection, trial_key, "FAILED", error)

    def release(self, attempt_id: int) -> None:
        """Ends an attempt as INTERRUPTED; its trial is WAITING, to go on from its last checkpoint."""
        with self._transaction(writes=True) as connection:
            trial_key = self._touch(connection, attempt_id, {"state": "INTERRUPTED", "ended": _now()})
            _set_trial_state(connection, trial_key, "WAITING")

    def import_scores(self, evaluation_key: str, metrics: Mapping[str, float], path: str) -> None:
        """Gives an evaluation the numbers that an evaluation server returned, in the place of earlier ones.

        Args:
            evaluation_key: of an evaluation without numbers, or with imported ones.
            metrics: in percent.
            path: what was returned, in the workspace.

        Raises:
            ValueError: the evaluation has no result yet, or its numbers were measured here.
        """
        e, a = schema.evaluations, schema.attempts
        row = self.evaluations([evaluation_key]).get(evaluation_key)
        if row is None or not (row.awaits_scores or row.imported):
            raise ValueError(f"evaluation {evaluation_key} does not wait for an evaluation server's numbers")
        file = _file_row(SCORES, self._relative(path), _sha256(self.root / path), evaluation_key=row.key)
        ids = {"trial_key": row.trial_key, "attempt_id": row.attempt_id, "time": _now()}
        numbers = {name: _to_null(value) for name, value in metrics.items()}
        with self._transaction(writes=True) as connection:
            connection.execute(e.update().where(e.c.key == row.key).values(metrics=numbers))
            connection.execute(schema.artifacts.insert().values(ids | file))
            connection.execute(a.update().where(a.c.id == row.attempt_id).values(mirrored_state=None))

    def _touch(self, connection: Connection, attempt_id: int, values: Mapping[str, Any]) -> str:
        """Changes a running attempt and returns its trial's key; no ended attempt passes here."""
        a = schema.attempts
        changed = connection.execute(
            a.update().where(a.c.id == attempt_id, a.c.state == "RUNNING").values(**values)
        )
        if changed.rowcount == 0:
            raise AttemptOverError(f"attempt {attempt_id} has ended; nothing more can be recorded for it")
        return str(_scalar(connection, a, a.c.id == attempt_id, "trial_key"))

    def _files(self, report: Report) -> list[dict[str, Any]]:
        """Artifact rows of a report. Files are hashed here, before the transaction."""
        match report:
            case Checkpointed(step, path, sha256):
                return [_file_row(CHECKPOINT, self._relative(path), sha256, step=step)]
            case Evaluated(key, _, artifacts):
                return [
                    _file_row(kind, self._relative(path), _sha256(self.root / path), evaluation_key=key)
                    for kind, path in artifacts.items()
                ]
            case _:
                return []

    def _relative(self, path: str) -> str:
        full = (self.root / path).resolve()
        if not full.is_relative_to(self.root):
            raise ValueError(f"artifacts must lie in the workspace {self.root}, got {path}")
        return full.relative_to(self.root).as_posix()

    # --- reading ---------------------------------------------------------------------------------

    def _read(self, query: Select[Any]) -> Sequence[RowMapping]:
        with self._transaction(writes=False) as connection:
            return connection.execute(query).mappings().all()

    def trial_states(self, keys: Collection[str] | None = None) -> dict[str, TrialRow]:
        """The known ones of the trials (all when None), by key."""
        t = schema.trials
        rows = self._read(_among(select(t), t.c.key, keys))
        attempts: dict[str, list[AttemptRow]] = {}
        for attempt in self.attempts(keys):
            attempts.setdefault(attempt.trial_key, []).append(attempt)
        return {row["key"]: _trial_row(row, attempts.get(row["key"], [])) for row in rows}

    def attempts(self, trial_keys: Collection[str] | None = None) -> list[AttemptRow]:
        """Every attempt at the trials (all when None), oldest first."""
        a = schema.attempts
        rows = self._read(_among(select(a), a.c.trial_key, trial_keys).order_by(a.c.id))
        return [AttemptRow(**row) for row in rows]

    def evaluations(self, keys: Collection[str] | None = None) -> dict[str, EvaluationRow]:
        """Those of the evaluations (all when None) that have a result, by key."""
        return self._evaluations(_among(_with_result(), schema.evaluations.c.key, keys))

    def evaluations_of(self, trial_key: str) -> list[EvaluationRow]:
        """Those of a trial that have a result, in the order in which they were done."""
        e = schema.evaluations
        done = _with_result().where(e.c.trial_key == trial_key).order_by(e.c.time, e.c.key)
        return list(self._evaluations(done).values())

    def _evaluations(self, query: Select[Any]) -> dict[str, EvaluationRow]:
        f = schema.artifacts
        rows = self._read(query)
        files: dict[str, dict[str, str]] = {row["key"]: {} for row in rows}
        for row in self._read(_among(select(f), f.c.evaluation_key, list(files)).order_by(f.c.id)):
            files[row["evaluation_key"]][row["kind"]] = row["path"]
        return {row["key"]: _evaluation_row(row, files[row["key"]]) for row in rows}

    def metrics(self, attempt_id: int, after: int = 0) -> list[MetricRow]:
        """Numbers that an attempt reported, in order; only those with an id above `after`."""
        m = schema.metrics
        columns = (m.c.id, m.c.step, m.c.name, m.c.value, m.c.time)
        query = select(*columns).where(m.c.attempt_id == attempt_id, m.c.id > after).order_by(m.c.id)
        return [MetricRow(**{**row, "value": _from_null(row["value"])}) for row in self._read(query)]

    def curve(self, trial_key: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric over a whole training; a resumed attempt replaces what it redid."""
        points: list[tuple[int, float]] = []
        for attempt in self.attempts([trial_key]):
            own = [(row.step, row.value) for row in self.metrics(attempt.id) if row.name == name]
            points = [point for point in points if not own or point[0] < own[0][0]] + own
        return points

    def artifacts(self, trial_key: str) -> list[ArtifactRow]:
        """Files that attempts at a trial left, oldest first."""
        f = schema.artifacts
        columns = [column for column in f.c if column.name != "id"]
        rows = self._read(select(*columns).where(f.c.trial_key == trial_key).order_by(f.c.id))
        return [ArtifactRow(**row) for row in rows]

    def notices(self, trial_key: str) -> list[str]:
        """What attempts at a trial wanted a person to know, oldest first."""
        n, a = schema.notices, schema.attempts
        query = select(n.c.message).join(a, a.c.id == n.c.attempt_id).where(a.c.trial_key == trial_key)
        return [str(row["message"]) for row in self._read(query.order_by(n.c.id))]

    # --- what the MLflow mirror has ----------------------------------------------------------------

    def attempts_to_mirror(self) -> list[AttemptRow]:
        """Attempts with metrics, or a state, that the mirror does not have yet, oldest first."""
        a, m = schema.attempts, schema.metrics
        newer = select(m.c.id).where(m.c.attempt_id == a.c.id, m.c.id > a.c.mirrored_upto)
        behind = or_(a.c.mirrored_state.is_(None), a.c.mirrored_state != a.c.state, newer.exists())
        return [AttemptRow(**row) for row in self._read(select(a).where(behind).order_by(a.c.id))]

    def mark_mirrored(self, attempt_id: int, upto: int, state: AttemptState) -> None:
        """Notes that the mirror has an attempt's metrics up to the id `upto`, and its state."""
        self._mark(schema.attempts, attempt_id, {"mirrored_upto": upto, "mirrored_state": state})

    def set_mlflow_run(self, attempt_id: int, run_id: str) -> None:
        """Notes which MLflow run mirrors an attempt from now on; it has no metrics yet."""
        self._mark(schema.attempts, attempt_id, {"mlflow_run_id": run_id, "mirrored_upto": 0})

    def set_invocation_mlflow_run(self, invocation_id: int, run_id: str) -> None:
        """Notes which MLflow run is the parent of an invocation's attempts."""
        self._mark(schema.invocations, invocation_id, {"mlflow_run_id": run_id})

    def _mark(self, table: SqlTable, row_id: int, values: Mapping[str, Any]) -> None:
        with self._transaction(writes=True) as connection:
            connection.execute(table.update().where(table.c.id == row_id).values(**values))


# --- opening -----------------------------------------------------------------------------------------


def _url(place: Path | str, read_only: bool) -> URL:
    if not isinstance(place, Path):
        return make_url(place)
    if not read_only:
        return URL.create("sqlite", database=str(place))
    file = f"file:{quote(str(place.absolute()))}"
    return URL.create("sqlite", database=file, query={"mode": "ro", "uri": "true"})


def _prepare_sqlite(engine: Engine, read_only: bool) -> None:
    """Write-ahead log, waiting for locks, checked references, and transactions that begin when we say."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            _use_write_ahead_log(connection)

    # A transaction that reads and then writes would fail at once, without waiting, when another has
    # written in between. So one that writes takes the lock at its start.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("ablation_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_write_ahead_log(connection: Any) -> None:
    """Set the journal mode. Alone among statements it does not wait for another's lock, so this waits."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# --- rows --------------------------------------------------------------------------------------------


def _now() -> datetime:
    return datetime.now(UTC)


def _scalar(connection: Connection, table: SqlTable, where: ColumnElement[bool], column: str) -> Any:
    return connection.execute(select(table.c[column]).where(where)).scalar_one()


def _among(query: Select[Any], column: ColumnElement[Any], keys: Collection[Any] | None) -> Select[Any]:
    return query if keys is None else query.where(column.in_(keys))


def _insert_new(connection: Connection, table: SqlTable, values: Mapping[str, Any]) -> bool:
    """Inserts a row unless its primary key is there; True when it was not."""
    same = [column == values[column.name] for column in table.primary_key]
    known = select(func.count()).select_from(table).where(*same)
    if connection.execute(known).scalar_one():
        return False
    connection.execute(table.insert().values(**values))
    return True


def _insert_all(connection: Connection, table: SqlTable, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), rows)


def _inserted_id(connection: Connection, table: SqlTable, values: Mapping[str, Any]) -> int:
    key = connection.execute(table.insert().values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _without_diff(connection: Connection, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without the diff's text, which is kept once for all attempts that share it."""
    kept = dict(provenance)
    text = kept.pop("diff", "")
    if text:
        _insert_new(connection, schema.diffs, {"sha256": kept["diff_sha256"], "text": text})
    return kept


def _set_trial_state(
    connection: Connection, trial_key: str, state: TrialState, error: str | None = None
) -> None:
    t = schema.trials
    connection.execute(t.update().where(t.c.key == trial_key).values(state=state, error=error))


def _set_progress(connection: Connection, trial_key: str, reports: Sequence[Report]) -> None:
    t = schema.trials
    steps = [report for report in reports if isinstance(report, Progress)]
    if steps:
        last = steps[-1]
        connection.execute(t.update().where(t.c.key == trial_key).values(step=last.step, total=last.total))


def _set_result(connection: Connection, trial_key: str, report: Evaluated, ids: Mapping[str, Any]) -> None:
    if not report.metrics and SUBMISSION not in report.artifacts:
        raise ValueError(
            f"evaluation {report.key} has neither numbers nor a {SUBMISSION}; only rank 0 reports its result"
        )
    e = schema.evaluations
    numbers = {name: _to_null(value) for name, value in report.metrics.items()}
    changed = connection.execute(
        e.update()
        .where(e.c.key == report.key, e.c.trial_key == trial_key, e.c.attempt_id.is_(None))
        .values(metrics=numbers, **ids)
    )
    if changed.rowcount == 0:
        raise ValueError(f"trial {trial_key} has no evaluation {report.key} without a result")


def _metric_rows(report: Report) -> list[dict[str, Any]]:
    if not isinstance(report, Progress):
        return []
    return [{"step": report.step, "name": name, "value": value} for name, value in report.metrics.items()]


def _file_row(
    kind: str, path: str, sha256: str | None, *, step: int | None = None, evaluation_key: str | None = None
) -> dict[str, Any]:
    return {"kind": kind, "path": path, "sha256": sha256, "step": step, "evaluation_key": evaluation_key}


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trial_row(row: RowMapping, attempts: Sequence[AttemptRow]) -> TrialRow:
    values = {name: value for name, value in row.items() if name not in ("config", "added")}
    values["tables"] = tuple(values["tables"])
    if row["state"] == "RUNNING" and _now() - attempts[-1].heartbeat > SILENCE:
        values["state"] = "WAITING"
    seconds = sum(attempt.seconds for attempt in attempts)
    return TrialRow(config_json=row["config"], attempts=len(attempts), seconds=seconds, **values)


def _with_result() -> Select[Any]:
    return select(schema.evaluations).where(schema.evaluations.c.attempt_id.is_not(None))


def _evaluation_row(row: RowMapping, files: dict[str, str]) -> EvaluationRow:
    return EvaluationRow(
        key=row["key"],
        trial_key=row["trial_key"],
        attempt_id=row["attempt_id"],
        config_json=row["config"],
        metrics={name: _from_null(value) for name, value in row["metrics"].items()},
        artifacts=files,
        time=row["time"],
    )


def _to_null(value: float) -> float | None:
    """JSON in PostgreSQL has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _from_null(value: float | None) -> float:
    return math.nan if value is None else value
