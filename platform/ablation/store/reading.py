"""What is read from the store. Each method is one transaction, which sees one state of the database."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, and_, select
from sqlalchemy import Table as SqlTable

from ablation.store import schema, statements
from ablation.store.database import Database
from ablation.store.records import (
    SILENCE,
    ArtifactRow,
    AttemptRow,
    DesiredState,
    DesiredStates,
    EvaluationRow,
    InvocationRow,
    JointRow,
    MetricRow,
    PaceRow,
    Start,
    TrialRow,
)
from ablation.store.transactions import Transaction, read

EXPERIMENTS = "mirrors"
"""Name of the note that says which MLflow experiment has the copy of each study and profile."""


class Reader:
    """The part of the store that only reads."""

    def __init__(self, database: Database, root: Path) -> None:
        self.database = database
        self.root = root

    def resolve(self, path: str) -> Path:
        """The full path of an artifact."""
        return self.root / path

    # --- trials and attempts ---------------------------------------------------------------------

    @read
    def trial_states(self, t: Transaction, keys: Collection[str] | None = None) -> dict[str, TrialRow]:
        """The known ones of the trials (all when None), by key."""
        a = schema.attempts
        light = select(a.c.trial_key, a.c.started, a.c.heartbeat, a.c.ended).order_by(a.c.id)
        attempts: dict[str, list[RowMapping]] = {}
        for row in t.rows_among(light, a.c.trial_key, keys):
            attempts.setdefault(row["trial_key"], []).append(row)
        rows = t.rows_among(select(schema.trials), schema.trials.c.key, keys)
        return {row["key"]: _trial_row(t, row, attempts.get(row["key"], [])) for row in rows}

    @read
    def attempts(self, t: Transaction, trial_keys: Collection[str] | None = None) -> list[AttemptRow]:
        """Every attempt at the trials (all when None), oldest first."""
        return _attempts(t, trial_keys)

    @read
    def pace(self, t: Transaction, study: str, profile: str, data_name: str) -> list[PaceRow]:
        """Speed of the attempts at the trials of a setting that reported progress, oldest first."""
        a = schema.attempts
        columns = (a.c.trial_key, a.c.id, a.c.state, a.c.started, a.c.heartbeat, a.c.ended)
        progress = (a.c.first_step, a.c.first_progress, a.c.last_step, a.c.last_progress)
        query = select(*columns, *progress).join(schema.trials).where(_of(study, profile, data_name))
        return [_pace_row(row) for row in t.rows(query.where(a.c.first_step.is_not(None)).order_by(a.c.id))]

    @read
    def notices(self, t: Transaction, trial_key: str) -> list[str]:
        """Messages to the user from the attempts at a trial, oldest first."""
        n, a = schema.notices, schema.attempts
        query = select(n.c.message).join(a).where(a.c.trial_key == trial_key)
        return t.scalars(query.order_by(n.c.id))

    # --- what people want ------------------------------------------------------------------------

    @read
    def desired_states(
        self, t: Transaction, study: str, profile: str, data_name: str, trial_keys: Collection[str]
    ) -> DesiredStates:
        """What people want of a study and of those of the trials that are known."""
        r = schema.trials
        names = [field.name for field in fields(DesiredState)]
        rows = t.rows_among(select(r.c.key, *_columns(r, DesiredState)), r.c.key, trial_keys)
        trials = {row["key"]: DesiredState(**{name: row[name] for name in names}) for row in rows}
        return DesiredStates(_paused(t, study, profile, data_name), trials)

    @read
    def paused(self, t: Transaction, study: str, profile: str, data_name: str) -> bool:
        """Whether a study is to start nothing; False for an unknown one."""
        return _paused(t, study, profile, data_name)

    @read
    def start_of(self, t: Transaction, trial_key: str) -> Start:
        """What an attempt at a trial starts from; nothing else changes it while the attempt runs."""
        rows = t.rows(statements.START, {"one": trial_key})
        return Start(rows[0]["first_attempt"], frozenset(row["key"] for row in rows if row["key"]))

    # --- results ---------------------------------------------------------------------------------

    @read
    def evaluations(self, t: Transaction, keys: Collection[str] | None = None) -> dict[str, EvaluationRow]:
        """The evaluations (all when None) that have a result, by key."""
        return evaluations_by_key(t, schema.evaluations.c.key, keys)

    @read
    def evaluations_of(self, t: Transaction, trial_key: str) -> list[EvaluationRow]:
        """The evaluations of a trial that have a result, in the order in which they were done."""
        found = evaluations_by_key(t, schema.evaluations.c.trial_key, [trial_key])
        return sorted(found.values(), key=attrgetter("time", "key"))

    @read
    def earlier_results(self, t: Transaction, trial_key: str) -> list[EvaluationRow]:
        """Results that a trial had before it was started anew (`Store.renew`), oldest first."""
        e, before = schema.evaluations, schema.earlier_results
        query = select(
            e.c.key, e.c.trial_key, e.c.config, before.c.attempt_id, before.c.metrics, before.c.time
        )
        rows = t.rows(query.join(before).where(e.c.trial_key == trial_key))
        return sorted(_evaluation_rows(t, rows), key=attrgetter("time", "key"))

    @read
    def metrics(self, t: Transaction, attempt_id: int, after: int = 0) -> list[MetricRow]:
        """Metrics that an attempt reported, in order; only those with an id above `after`."""
        m = schema.metrics
        columns = (m.c.id, m.c.step, m.c.name, m.c.value, m.c.time)
        query = select(*columns).where(m.c.attempt_id == attempt_id, m.c.id > after).order_by(m.c.id)
        return [MetricRow(**{**row, "value": _from_null(row["value"])}) for row in t.rows(query)]

    @read
    def curve(self, t: Transaction, trial_key: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric over the training that counts.

        Where a resumed attempt repeated steps, its values replace the earlier ones.
        """
        m, a, r = schema.metrics, schema.attempts, schema.trials
        counts = (a.c.trial_key == trial_key, a.c.number >= r.c.first_attempt)
        query = select(m.c.attempt_id, m.c.step, m.c.value).select_from(m.join(a).join(r)).where(*counts)
        own: dict[int, list[tuple[int, float]]] = {}
        for row in t.rows(query.where(m.c.name == name).order_by(m.c.attempt_id, m.c.id)):
            own.setdefault(row["attempt_id"], []).append((row["step"], _from_null(row["value"])))
        points: list[tuple[int, float]] = []
        for redone in own.values():
            points = [point for point in points if point[0] < redone[0][0]] + redone
        return points

    @read
    def artifacts(self, t: Transaction, trial_key: str) -> list[ArtifactRow]:
        """Files of the attempts at a trial, oldest first."""
        f = schema.artifacts
        query = select(*_columns(f, ArtifactRow)).where(f.c.trial_key == trial_key).order_by(f.c.id)
        return [ArtifactRow(**row) for row in t.rows(query)]

    @read
    def joint(self, t: Transaction, study: str, profile: str, data_name: str) -> JointRow | None:
        """The newest joint measurement of a study at a profile on a data set; None where there is none."""
        j = schema.joint_measurements
        of = (j.c.study == study, j.c.profile == profile, j.c.data_name == data_name)
        newest = select(*_columns(j, JointRow)).where(*of).order_by(j.c.id.desc()).limit(1)
        return next((JointRow(**row) for row in t.rows(newest)), None)

    # --- invocations and the mirror ----------------------------------------------------------------

    @read
    def invocations(self, t: Transaction) -> list[InvocationRow]:
        """Every `run` command so far, oldest first."""
        i = schema.invocations
        return [InvocationRow(**row) for row in t.rows(select(i).order_by(i.c.id))]

    @read
    def diff(self, t: Transaction, sha256: str) -> str | None:
        """The text of the uncommitted changes that a provenance names by hash."""
        d = schema.diffs
        return next(iter(t.scalars(select(d.c.text).where(d.c.sha256 == sha256))), None)

    @read
    def studies(self, t: Transaction) -> list[tuple[str, str]]:
        """Name and profile of every study known, sorted."""
        s = schema.studies
        query = select(s.c.name, s.c.profile).distinct().order_by(s.c.name, s.c.profile)
        return [(row["name"], row["profile"]) for row in t.rows(query)]

    @read
    def experiment(self, t: Transaction, study: str, profile: str) -> str | None:
        """The MLflow experiment that has the copy of a study and profile (`Store.set_experiment`)."""
        return experiments(t).get(f"{study} {profile}")

    @read
    def attempts_to_mirror(self, t: Transaction) -> list[AttemptRow]:
        """Attempts with metrics or a state that the MLflow mirror lacks, oldest first."""
        a = schema.attempts
        query = select(*_columns(a, AttemptRow)).where(schema.TO_MIRROR).order_by(a.c.id)
        return [AttemptRow(**row) for row in t.rows(query)]


# --- rows --------------------------------------------------------------------------------------------


def evaluations_by_key(
    t: Transaction, column: ColumnElement[str], keys: Collection[str] | None
) -> dict[str, EvaluationRow]:
    """Evaluations with a result whose column is among the keys (all when None)."""
    e = schema.evaluations
    rows = t.rows_among(select(e).where(e.c.attempt_id.is_not(None)), column, keys)
    return {row.key: row for row in _evaluation_rows(t, rows)}


def _evaluation_rows(t: Transaction, rows: Sequence[RowMapping]) -> list[EvaluationRow]:
    """Results, each with the files of the attempt that measured it."""
    f = schema.artifacts
    files: dict[tuple[str, int], dict[str, str]] = {}
    query = select(f.c.evaluation_key, f.c.attempt_id, f.c.kind, f.c.path).order_by(f.c.id)
    for file in t.rows_among(query, f.c.evaluation_key, {row["key"] for row in rows}):
        own = files.setdefault((file["evaluation_key"], file["attempt_id"]), {})
        own[file["kind"]] = file["path"]
    return [_evaluation_row(row, files.get((row["key"], row["attempt_id"]), {})) for row in rows]


def meta_value(t: Transaction, name: str) -> str | None:
    """Value of a note in the table `meta`; None where there is none."""
    m = schema.meta
    return next(iter(t.scalars(select(m.c.value).where(m.c.name == name))), None)


def experiments(t: Transaction) -> dict[str, str]:
    """MLflow experiment of every "study profile" that is mirrored."""
    return dict(json.loads(meta_value(t, EXPERIMENTS) or "{}"))


def to_null(value: float) -> float | None:
    """None for NaN and infinity, which JSON in PostgreSQL does not have."""
    return value if math.isfinite(value) else None


def _from_null(value: float | None) -> float:
    return math.nan if value is None else value


def _columns(table: SqlTable, record: type[Any]) -> list[ColumnElement[Any]]:
    return [table.c[field.name] for field in fields(record)]


def _attempts(t: Transaction, trial_keys: Collection[str] | None) -> list[AttemptRow]:
    a = schema.attempts
    rows = t.rows_among(select(*_columns(a, AttemptRow)), a.c.trial_key, trial_keys)
    return sorted((AttemptRow(**row) for row in rows), key=attrgetter("id"))


def _of(study: str, profile: str, data_name: str) -> ColumnElement[bool]:
    r = schema.trials
    return and_(r.c.study == study, r.c.profile == profile, r.c.data_name == data_name)


def _paused(t: Transaction, study: str, profile: str, data_name: str) -> bool:
    s = schema.studies
    where = (s.c.name == study, s.c.profile == profile, s.c.data_name == data_name)
    query: Select[Any] = select(s.c.paused).where(*where)
    return any(t.execute(query).scalars())


def _trial_row(t: Transaction, row: RowMapping, attempts: Sequence[RowMapping]) -> TrialRow:
    values = {name: value for name, value in row.items() if name not in ("config", "added")}
    values["tables"] = tuple(values["tables"])
    if row["state"] == "RUNNING" and t.now - attempts[-1]["heartbeat"] > SILENCE:
        values["state"] = "WAITING"
    seconds = sum(_seconds(attempt) for attempt in attempts)
    return TrialRow(config_json=row["config"], attempts=len(attempts), seconds=seconds, **values)


def _seconds(attempt: RowMapping) -> float:
    ended = attempt["ended"] or attempt["heartbeat"]
    return float((ended - attempt["started"]).total_seconds())


def _pace_row(row: RowMapping) -> PaceRow:
    return PaceRow(
        trial_key=row["trial_key"],
        attempt_id=row["id"],
        steps=row["last_step"] - row["first_step"],
        train_seconds=(row["last_progress"] - row["first_progress"]).total_seconds(),
        total_seconds=_seconds(row),
        complete=row["state"] == "COMPLETE",
    )


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
