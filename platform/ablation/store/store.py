"""The truth about every trial: what is wanted, who runs it, what came out. The only writer of it.

Each method is one transaction, which commits whole or not at all; a method here gets it as `t`, and its
callers do not give it (`database.writes`). Drivers write what runs, commands write what people want, and
anything may read at the same time (`reading`). States of a trial:

    WAITING --claim--> RUNNING --finish--> COMPLETE --ensure_evaluation (a new one)--> WAITING
       ^------------------|  |--fail-----> FAILED   --retry--> WAITING
        release, reclaim
    WAITING, RUNNING, FAILED --cancel--> CANCELLED --retry--> WAITING
    all but RUNNING --renew--> WAITING, without results

What runs when it is cancelled goes on until its driver ends it; only a finish changes the state then.
An attempt that has ended never changes again; only what the MLflow mirror has of it does, and the
numbers of an evaluation that left them to an evaluation server (`import_scores`).

Several drivers may share a database server. Whatever changes an attempt and its trial locks the attempt
first and the trial then, so that they never wait for each other in a circle.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Update, case, func, literal, null, select
from sqlalchemy import Table as SqlTable

from ablation.protocol import Checkpointed, Described, Evaluated, Noticed, Progress, Report
from ablation.store import schema, statements
from ablation.store.database import Database, Transaction, in_parts, tells, writes
from ablation.store.reading import EXPERIMENTS, Reader, evaluations_by_key, experiments, to_null
from ablation.store.records import (
    CHECKPOINT,
    SCORES,
    SILENCE,
    SUBMISSION,
)
from ablation.store.schema import AttemptState, TrialState

MIRROR_LEASE = "mirror_lease"
"""Name of the note that tells who copies to MLflow, and until when."""


class AttemptOverError(RuntimeError):
    """Something was reported of an attempt that has ended (finished, failed, or lost to another)."""


class Store(Reader):
    """The store of one workspace. Safe to use from several threads."""

    # --- opening ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, place: Path | str, *, root: Path | None = None, read_only: bool = False) -> Store:
        """Opens a store, makes its tables where there are none, and upgrades an older one.

        Args:
            place: path of an SQLite file, or a database URL. An SQLite file is copied beside itself before
                an upgrade.
            root: the workspace that artifact paths are relative to; the file's folder when None.
            read_only: for views: never writes, and an absent store is an error.

        Raises:
            NoStoreError: for a view: the database is there, and empty.
            UserError: it cannot be opened or written, is no store, is of a newer version, or for a view of
                an older one. No message shows a password.
        """
        if root is None:
            if not isinstance(place, Path):
                raise ValueError("a store given by URL needs the workspace's root")
            root = place.parent
        return cls(Database.open(place, read_only=read_only), root.resolve())

    def close(self) -> None:
        """Gives the connections back; the store may not be used afterwards."""
        self.database.close()

    @property
    def shared(self) -> bool:
        """Whether several drivers may use it at once: a database server, not a file."""
        return self.database.shared

    def _transaction(self, *, writes: bool) -> AbstractContextManager[Transaction]:
        """A transaction of the caller's own making."""
        return self.database.transaction(writes=writes)

    # --- what is wanted --------------------------------------------------------------------------

    @writes
    def add_study(self, t: Transaction, study: str, profile: str, data_name: str) -> None:
        """Makes a study at a profile on a data set known; needed once before its trials."""
        values = {"name": study, "profile": profile, "data_name": data_name, "added": t.now}
        t.insert_new(schema.studies, values)

    @writes
    def ensure_trial(
        self,
        t: Transaction,
        trial_key: str,
        name: str,
        config_json: str,
        seed: int,
        profile: str,
        data_name: str,
        study: str,
        tables: Sequence[str] = (),
    ) -> None:
        """Makes a trial known, WAITING; a known one takes all but the config, its state as it is.

        The same training may be a study's that has another name now: of renamed data, or a renamed profile.

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
            "added": t.now,
        }
        r = schema.trials
        if t.insert_new(r, values):
            return
        if t.value(select(r.c.config).where(r.c.key == trial_key)) != config_json:
            raise ValueError(f"trial {trial_key} is stored with another config than {config_json}")
        named = {name: values[name] for name in ("name", "tables", "profile", "data_name", "study")}
        t.execute(r.update().where(r.c.key == trial_key).values(named))

    @writes
    def ensure_evaluation(
        self, t: Transaction, evaluation_key: str, trial_key: str, config_json: str
    ) -> None:
        """Makes an evaluation known; a COMPLETE trial that lacks its result is WAITING again."""
        r, e = schema.trials, schema.evaluations
        _lock_trials(t, [trial_key])
        t.insert_new(e, {"key": evaluation_key, "trial_key": trial_key, "config": config_json})
        lacking = select(e.c.key).where(e.c.key == evaluation_key, e.c.attempt_id.is_(None))
        complete = (r.c.key == trial_key) & (r.c.state == "COMPLETE")
        t.execute(r.update().where(complete, lacking.exists()).values(state="WAITING"))

    @writes
    def set_paused(self, t: Transaction, study: str, profile: str, data_name: str, paused: bool) -> None:
        """Says whether a study is to start nothing and to stop what runs; makes it known if need be."""
        s = schema.studies
        t.insert_new(s, {"name": study, "profile": profile, "data_name": data_name, "added": t.now})
        own = (s.c.name == study, s.c.profile == profile, s.c.data_name == data_name)
        t.execute(s.update().where(*own).values(paused=paused))

    @writes
    def cancel(self, t: Transaction, trial_keys: Collection[str]) -> list[str]:
        """Makes those of the trials that are not COMPLETE CANCELLED; returns those it changed."""
        wanted = schema.trials.c.state.in_(("WAITING", "RUNNING", "FAILED"))
        return _change_trials(t, trial_keys, wanted, state="CANCELLED", error=None)

    @writes
    def retry(self, t: Transaction, trial_keys: Collection[str]) -> list[str]:
        """Sets those of the trials that are FAILED or CANCELLED back to WAITING; returns them.

        A cancelled one whose attempt still goes on is RUNNING again: nobody else may start it yet.
        """
        a, r = schema.attempts, schema.trials
        _lock_trials(t, trial_keys)
        going = select(a.c.id).where(a.c.trial_key == r.c.key, a.c.state == "RUNNING").exists()
        state = case((going, "RUNNING"), else_="WAITING")
        stopped = r.c.state.in_(("FAILED", "CANCELLED"))
        return _change_trials(t, trial_keys, stopped, state=state, error=None)

    @writes
    def renew(self, t: Transaction, seen: Mapping[str, int]) -> list[str]:
        """Sets trials back to WAITING, to be trained and evaluated from nothing; returns those that it has.

        What they had stays: results as earlier ones (`earlier_results`), attempts, numbers and files as they
        are. A trial is left alone where an attempt goes on, or has been made since `seen`.

        Args:
            seen: how many attempts there were when somebody decided so, by trial key.
        """
        _lock_trials(t, seen)
        renewed = [key for key, number in seen.items() if _is_at_rest(t, key, number)]
        for key in renewed:
            _set_results_aside(t, key)
            anew = {"step": 0, "total": 0, "first_attempt": seen[key] + 1}
            _change_trials(t, [key], state="WAITING", error=None, **anew)
        return renewed

    @writes
    def prioritise(self, t: Transaction, trial_keys: Collection[str], priority: int) -> list[str]:
        """Lets trials of a higher priority start before others; returns those that are known."""
        return _change_trials(t, trial_keys, priority=priority)

    @writes
    def set_micro_batch(self, t: Transaction, trial_key: str, micro_batch: int | None) -> None:
        """Notes how many samples at a time the trial's next attempts take; None for all at once."""
        _change_trials(t, [trial_key], micro_batch=micro_batch)

    # --- invocations -----------------------------------------------------------------------------

    @writes
    def start_invocation(self, t: Transaction, command: str, provenance: Mapping[str, Any]) -> int:
        """Notes that a `run` command starts in this process; returns its id."""
        values = {
            "command": command,
            "started": t.now,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "provenance": _without_diff(t, provenance),
        }
        return t.insert(schema.invocations, values)

    @writes
    def end_invocation(self, t: Transaction, invocation_id: int) -> None:
        """Notes that the command has ended."""
        i = schema.invocations
        t.execute(i.update().where(i.c.id == invocation_id).values(ended=t.now))

    # --- running ---------------------------------------------------------------------------------

    @tells
    def claim(
        self,
        t: Transaction,
        trial_key: str,
        owner: str,
        provenance: Mapping[str, Any],
        invocation_id: int | None = None,
    ) -> int | None:
        """Starts an attempt at a WAITING trial, for this process.

        Returns:
            The attempt's id; None when the trial is not WAITING (another owner was first).
        """
        if not t.keys(statements.CLAIM, {"one": trial_key, "state": "RUNNING", "error": None}):
            return None
        values = {
            "trial_key": trial_key,
            "number": t.value(statements.ATTEMPTS, {"one": trial_key}) + 1,
            "invocation_id": invocation_id,
            "state": "RUNNING",
            "owner": owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": t.now,
            "heartbeat": t.now,
            "provenance": _without_diff(t, provenance),
        }
        return t.insert(schema.attempts, values)

    @tells
    def heartbeat(self, t: Transaction, attempt_ids: Collection[int]) -> None:
        """Says that attempts are alive; those that have ended stay as they are."""
        a = schema.attempts
        running = a.c.id.in_(attempt_ids) & (a.c.state == "RUNNING")
        t.execute(a.update().where(running).values(heartbeat=t.now))

    @writes
    def reclaim_all(self, t: Transaction) -> list[str]:
        """Ends what earlier drivers left as running, each at its last sign of life.

        Only for the holder of the workspace's driver lock, who knows that no other driver lives, whatever
        clocks and process ids say. Attempts end as LOST and their trials are WAITING; invocations end.

        Returns:
            The keys of those trials.
        """
        a, i = schema.attempts, schema.invocations
        keys = _lose(t, a.c.state == "RUNNING")
        last = select(func.max(a.c.heartbeat)).where(a.c.invocation_id == i.c.id).scalar_subquery()
        open_ones = i.update().where(i.c.ended.is_(None))
        t.execute(open_ones.values(ended=func.coalesce(last, i.c.started)))
        return keys

    @writes
    def reclaim_silent(self, t: Transaction) -> list[str]:
        """Ends attempts of which nothing was heard for `SILENCE`, while other drivers may live.

        They end as LOST, at their last sign of life, and their trials are WAITING unless CANCELLED. A driver
        that was only cut off finds out by an `AttemptOverError`.

        Returns:
            The keys of their trials.
        """
        a = schema.attempts
        return _lose(t, (a.c.state == "RUNNING") & (a.c.heartbeat < t.now - SILENCE))

    def record(self, attempt_id: int, reports: Sequence[Report]) -> None:
        """Keeps what an attempt reports, all of it or nothing. Also a heartbeat.

        Results are on disk then; the rest is only told (`database.tells`).

        Args:
            attempt_id: a running attempt.
            reports: in order; paths in them lie in the workspace, absolute or relative to it.

        Raises:
            AttemptOverError: the attempt has ended.
            ValueError: a path outside the workspace, an evaluation that nobody asked for, or one that has
                neither numbers nor a submission.
        """
        files = self._files(reports)
        result = any(isinstance(report, Evaluated) for report in reports)
        self.database.run(lambda t: _keep(t, attempt_id, reports, files), writes=True, waits=result)

    def finish(self, attempt_id: int, reports: Sequence[Report] = ()) -> None:
        """Ends an attempt well, with the last that it reports. Its trial is COMPLETE, also when cancelled.

        Where an evaluation has no result yet it is WAITING instead, or stays CANCELLED. Raises what `record`
        does, and then nothing has happened.
        """
        self._end(attempt_id, reports, self._files(reports), "COMPLETE")

    def fail(self, attempt_id: int, error: str, reports: Sequence[Report] = ()) -> None:
        """Ends an attempt with the traceback of what went wrong; its trial is FAILED until a retry.

        A cancelled trial stays CANCELLED. `reports` as for `finish`.
        """
        self._end(attempt_id, reports, self._files(reports), "FAILED", error)

    def release(self, attempt_id: int, reports: Sequence[Report] = ()) -> None:
        """Ends an attempt as INTERRUPTED; its trial is WAITING, to go on from its last checkpoint.

        A cancelled trial stays CANCELLED. `reports` as for `finish`.
        """
        self._end(attempt_id, reports, self._files(reports), "INTERRUPTED")

    @writes
    def _end(
        self,
        t: Transaction,
        attempt_id: int,
        reports: Sequence[Report],
        files: Sequence[Mapping[str, Any]],
        state: AttemptState,
        error: str | None = None,
    ) -> None:
        trial_key = _keep(t, attempt_id, reports, files, state=state, ended=t.now, error=error)
        if state == "COMPLETE" and _has_all_results(t, trial_key):
            t.execute(statements.TRIAL, {"one": trial_key, "state": "COMPLETE", "error": None})
        else:
            _leave(t, [trial_key], "FAILED" if state == "FAILED" else "WAITING", error)

    # --- files and scores ------------------------------------------------------------------------

    def import_scores(self, evaluation_key: str, metrics: Mapping[str, float], path: str) -> None:
        """Gives an evaluation the numbers that an evaluation server returned, in the place of earlier ones.

        Args:
            evaluation_key: of an evaluation without numbers, or with imported ones.
            metrics: in percent.
            path: what was returned, in the workspace.

        Raises:
            ValueError: the evaluation has no result yet, or its numbers were measured here.
        """
        relative, sha256 = self._relative(path), _sha256(self.root / path)
        self._import_scores(evaluation_key, metrics, _file_row(SCORES, relative, sha256))

    @writes
    def _import_scores(
        self, t: Transaction, evaluation_key: str, metrics: Mapping[str, float], file: Mapping[str, Any]
    ) -> None:
        e, a = schema.evaluations, schema.attempts
        row = evaluations_by_key(t, e.c.key, [evaluation_key]).get(evaluation_key)
        if row is None or not (row.awaits_scores or row.imported):
            raise ValueError(f"evaluation {evaluation_key} does not wait for an evaluation server's numbers")
        numbers = {name: to_null(value) for name, value in metrics.items()}
        t.execute(e.update().where(e.c.key == row.key).values(metrics=numbers))
        ids = {"trial_key": row.trial_key, "attempt_id": row.attempt_id, "time": t.now}
        t.insert(schema.artifacts, {**file, **ids, "evaluation_key": row.key})
        t.execute(a.update().where(a.c.id == row.attempt_id).values(mirrored_state=None))

    @writes
    def drop_artifacts(
        self, t: Transaction, attempt_ids: Collection[int], kinds: Collection[str]
    ) -> list[str]:
        """Forgets the files of those kinds that the attempts left; returns their paths."""
        f = schema.artifacts
        kind = f.c.kind.in_(kinds)
        drops = [f.delete().where(f.c.attempt_id.in_(ids), kind) for ids in in_parts(attempt_ids)]
        return sorted({path for drop in drops for path in t.keys(drop.returning(f.c.path))})

    def _files(self, reports: Sequence[Report]) -> list[dict[str, Any]]:
        """Artifact rows of reports. Files are hashed here, before the transaction."""
        return [file for report in reports for file in self._files_of(report)]

    def _files_of(self, report: Report) -> list[dict[str, Any]]:
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

    # --- what the MLflow mirror has ----------------------------------------------------------------

    def mark_mirrored(self, attempt_id: int, upto: int, state: AttemptState) -> None:
        """Notes that the mirror has an attempt's metrics up to the id `upto`, and its state."""
        self._mark(schema.attempts, attempt_id, {"mirrored_upto": upto, "mirrored_state": state})

    def set_mlflow_run(self, attempt_id: int, run_id: str) -> None:
        """Notes which MLflow run mirrors an attempt from now on; it has no metrics yet."""
        self._mark(schema.attempts, attempt_id, {"mlflow_run_id": run_id, "mirrored_upto": 0})

    def set_invocation_mlflow_run(self, invocation_id: int, run_id: str) -> None:
        """Notes which MLflow run is the parent of an invocation's attempts."""
        self._mark(schema.invocations, invocation_id, {"mlflow_run_id": run_id})

    @writes
    def forget_mlflow_runs(self, t: Transaction, run_ids: Collection[str]) -> None:
        """Notes that MLflow runs are gone; what they mirrored is not mirrored again."""
        a = schema.attempts
        for some in in_parts(run_ids):
            t.execute(a.update().where(a.c.mlflow_run_id.in_(some)).values(mlflow_run_id=None))

    @writes
    def lease_mirror(self, t: Transaction, holder: str, seconds: float) -> bool:
        """Takes, renews or (0 seconds) gives back the right to copy to MLflow, which one process has.

        Args:
            holder: "host:pid:anything", like no other's; where the process has ended, the lease has too.
            seconds: how long from now.

        Returns:
            Whether `holder` may copy; False when another does.
        """
        m = schema.meta
        t.insert_new(m, {"name": MIRROR_LEASE, "value": ""})
        row = select(m.c.value).where(m.c.name == MIRROR_LEASE).with_for_update()
        until, _, current = str(t.value(row)).partition(" ")
        now = t.now.timestamp()
        if current not in ("", holder) and float(until) > now and not _has_ended(current):
            return False
        value = f"{now + seconds} {holder}" if seconds else ""
        t.execute(m.update().where(m.c.name == MIRROR_LEASE).values(value=value))
        return True

    @writes
    def set_experiment(self, t: Transaction, study: str, profile: str, experiment: str) -> None:
        """Notes which MLflow experiment has the copy of a study and profile."""
        m = schema.meta
        t.insert_new(m, {"name": EXPERIMENTS, "value": "{}"})
        noted = experiments(t) | {f"{study} {profile}": experiment}
        t.execute(m.update().where(m.c.name == EXPERIMENTS).values(value=json.dumps(noted)))

    @writes
    def forget_mirror(self, t: Transaction) -> None:
        """Notes that nothing has been copied to MLflow, so that everything is copied again.

        What was deleted from MLflow on purpose (`forget_mlflow_runs`) is not copied again.
        """
        a, i, m = schema.attempts, schema.invocations, schema.meta
        t.execute(m.delete().where(m.c.name == EXPERIMENTS))
        t.execute(i.update().values(mlflow_run_id=None))
        nothing = {"mlflow_run_id": None, "mirrored_upto": 0, "mirrored_state": None}
        t.execute(a.update().where(a.c.mlflow_run_id.is_not(None)).values(nothing))

    @writes
    def _mark(self, t: Transaction, table: SqlTable, row_id: int, values: Mapping[str, Any]) -> None:
        t.execute(table.update().where(table.c.id == row_id).values(**values))


# --- changes -----------------------------------------------------------------------------------------


def _keep(
    t: Transaction,
    attempt_id: int,
    reports: Sequence[Report],
    files: Sequence[Mapping[str, Any]],
    **changes: Any,
) -> str:
    """Keeps what a running attempt reports, and changes it; returns its trial's key."""
    ids = {"attempt_id": attempt_id, "time": t.now}
    trial_key = _touch(t, attempt_id, {"heartbeat": t.now} | _described(reports) | changes)
    t.insert_all(schema.metrics, [ids | row for report in reports for row in _metric_rows(report)])
    notices = [ids | {"message": r.message} for r in reports if isinstance(r, Noticed)]
    t.insert_all(schema.notices, notices)
    for report in reports:
        if isinstance(report, Evaluated):
            _set_result(t, trial_key, report, ids)
    t.insert_all(schema.artifacts, [{**ids, "trial_key": trial_key, **file} for file in files])
    _set_progress(t, attempt_id, trial_key, [r for r in reports if isinstance(r, Progress)])
    return trial_key


def _touch(t: Transaction, attempt_id: int, values: Mapping[str, Any]) -> str:
    """Changes a running attempt and returns its trial's key; no ended attempt passes here."""
    trial_keys = t.keys(statements.RUNNING, {"one": attempt_id, **values})
    if not trial_keys:
        raise AttemptOverError(f"attempt {attempt_id} has ended; nothing more can be recorded for it")
    return trial_keys[0]


def _lose(t: Transaction, which: ColumnElement[bool]) -> list[str]:
    """Ends attempts as LOST at their last sign of life; returns the keys of their trials."""
    a = schema.attempts
    lost = a.update().where(which).values(state="LOST", ended=a.c.heartbeat)
    keys = t.keys(lost.returning(a.c.trial_key))
    _leave(t, keys, "WAITING")
    return keys


def _leave(t: Transaction, trial_keys: Collection[str], state: TrialState, error: str | None = None) -> None:
    """What trials are when nobody runs them any more; CANCELLED ones stay so.

    They are written all the same, which locks them: `retry` must see either that the attempt goes on, or
    that it has ended. One that was to wait, but has all its results, is COMPLETE: its driver was lost between
    the last of them and the end.
    """
    r, e = schema.trials, schema.evaluations
    kept = r.c.state == "CANCELLED"
    asked = select(e.c.key).where(e.c.trial_key == r.c.key)
    done = asked.exists() & ~asked.where(e.c.attempt_id.is_(None)).exists() & (literal(state) == "WAITING")
    new = literal(error, r.c.error.type)
    changed = case((kept, r.c.state), (done, "COMPLETE"), else_=state)
    _change_trials(t, trial_keys, state=changed, error=case((kept, r.c.error), else_=new))


def _change_trials(
    t: Transaction, trial_keys: Collection[str], *where: ColumnElement[bool], **values: Any
) -> list[str]:
    """Changes those of the trials that fulfil all conditions; returns their keys."""
    r = schema.trials
    change: Update = r.update().where(*where).values(**values)
    changes = [change.where(r.c.key.in_(keys)).returning(r.c.key) for keys in in_parts(trial_keys)]
    return [key for change in changes for key in t.keys(change)]


def _is_at_rest(t: Transaction, trial_key: str, number: int) -> bool:
    """Whether there were exactly so many attempts at a trial, and all have ended."""
    a = schema.attempts
    states = t.keys(select(a.c.state).where(a.c.trial_key == trial_key))
    return len(states) == number and "RUNNING" not in states


def _set_results_aside(t: Transaction, trial_key: str) -> None:
    """Makes a trial's results earlier ones; its evaluations have none then."""
    e, before = schema.evaluations, schema.earlier_results
    done = (e.c.trial_key == trial_key, e.c.attempt_id.is_not(None))
    results = select(e.c.key, e.c.attempt_id, e.c.metrics, e.c.time).where(*done)
    t.execute(before.insert().from_select(list(before.c), results))
    t.execute(e.update().where(*done).values(attempt_id=None, metrics=null(), time=None))


def _lock_trials(t: Transaction, trial_keys: Collection[str]) -> None:
    """Waits until no other transaction changes the trials, and lets none until this one ends."""
    for keys in in_parts(trial_keys):
        t.execute(statements.LOCK, {"keys": keys})


def _has_all_results(t: Transaction, trial_key: str) -> bool:
    """Whether no evaluation of a trial lacks its result; none is asked for until the transaction ends."""
    _lock_trials(t, [trial_key])
    return not t.value(statements.LACKING, {"one": trial_key})


def _has_ended(holder: str) -> bool:
    """Whether a process of this machine, named "host:pid:...", is no more."""
    host, pid = holder.split(":")[:2]
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _without_diff(t: Transaction, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without the diff's text, which is kept once for all attempts that share it."""
    kept = dict(provenance)
    text = kept.pop("diff", "")
    d = schema.diffs
    if text and not t.keys(select(d.c.sha256).where(d.c.sha256 == kept["diff_sha256"])):
        t.insert_new(d, {"sha256": kept["diff_sha256"], "text": text})
    return kept


def _described(reports: Sequence[Report]) -> dict[str, Any]:
    described = [report.environment for report in reports if isinstance(report, Described)]
    return {"environment": described[-1]} if described else {}


def _set_progress(t: Transaction, attempt_id: int, trial_key: str, steps: Sequence[Progress]) -> None:
    """How far the trial is, and where the attempt's progress began and is."""
    if not steps:
        return
    last = steps[-1]
    t.execute(statements.TRIAL, {"one": trial_key, "step": last.step, "total": last.total})
    newest = {"last_step": last.step, "last_progress": t.now}
    t.execute(statements.PROGRESS, {"one": attempt_id, "first": steps[0].step, "now": t.now, **newest})


def _set_result(t: Transaction, trial_key: str, report: Evaluated, ids: Mapping[str, Any]) -> None:
    if not report.metrics and SUBMISSION not in report.artifacts:
        raise ValueError(
            f"evaluation {report.key} has neither numbers nor a {SUBMISSION}; only rank 0 reports its result"
        )
    numbers = {name: to_null(value) for name, value in report.metrics.items()}
    values = {"one": report.key, "of": trial_key, "metrics": numbers, **ids}
    if t.execute(statements.RESULT, values).rowcount == 0:
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
