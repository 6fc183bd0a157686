"""What drivers write: which attempts run, what they report, how they end."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select

from ablation.protocol import Described, Evaluated, Noticed, Progress, Report
from ablation.store import schema, statements
from ablation.store.artifacts import Artifacts
from ablation.store.reading import to_null
from ablation.store.records import SILENCE, SUBMISSION
from ablation.store.schema import AttemptState
from ablation.store.transactions import Transaction, write, write_async
from ablation.store.trials import free_trials, lock_trials


class AttemptOverError(RuntimeError):
    """A report came from an attempt that has ended (finished, failed, or lost to another driver)."""


class Attempts(Artifacts):
    """The part of the store that drivers write."""

    # --- invocations -----------------------------------------------------------------------------

    @write
    def start_invocation(self, t: Transaction, command: str, provenance: Mapping[str, Any]) -> int:
        """Records that a `run` command starts in this process; returns its id."""
        values = {
            "command": command,
            "started": t.now,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "provenance": _without_diff(t, provenance),
        }
        return t.insert(schema.invocations, values)

    @write
    def end_invocation(self, t: Transaction, invocation_id: int) -> None:
        """Records that the command has ended."""
        i = schema.invocations
        t.execute(i.update().where(i.c.id == invocation_id).values(ended=t.now))

    @write
    def add_joint(
        self,
        t: Transaction,
        setting: tuple[str, str, str],
        machine: str,
        provenance: Mapping[str, Any],
        attempts: Mapping[str, int],
        rounds: Mapping[str, Mapping[str, Sequence[float]]],
    ) -> None:
        """Records a joint measurement; `JointRow` has its parts.

        Args:
            setting: study, profile and data name.
        """
        values = {
            **dict(zip(("study", "profile", "data_name"), setting, strict=True)),
            "machine": machine,
            "provenance": _without_diff(t, provenance),
            "attempts": dict(attempts),
            "rounds": {key: {m: list(v) for m, v in row.items()} for key, row in rounds.items()},
            "time": t.now,
        }
        t.insert(schema.joint_measurements, values)

    # --- attempts --------------------------------------------------------------------------------

    @write_async
    def claim(
        self,
        t: Transaction,
        trial_key: str,
        owner: str,
        provenance: Mapping[str, Any],
        invocation_id: int | None = None,
    ) -> int | None:
        """Starts an attempt at a WAITING trial for this process.

        Returns:
            The attempt's id; None when the trial is not WAITING (another driver claimed it first).
        """
        if not t.scalars(statements.CLAIM, {"one": trial_key, "state": "RUNNING", "error": None}):
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

    @write_async
    def heartbeat(self, t: Transaction, attempt_ids: Collection[int]) -> None:
        """Records a heartbeat of the attempts that have not ended."""
        a = schema.attempts
        running = a.c.id.in_(attempt_ids) & (a.c.state == "RUNNING")
        t.execute(a.update().where(running).values(heartbeat=t.now))

    @write
    def reclaim_all(self, t: Transaction) -> list[str]:
        """Ends all running attempts as LOST, and all open invocations, at their last heartbeat.

        Only for the holder of the workspace's driver lock, which proves that no other driver is alive.

        Returns:
            The keys of the trials, which are WAITING unless CANCELLED.
        """
        a, i = schema.attempts, schema.invocations
        keys = _end_lost(t, a.c.state == "RUNNING")
        last = select(func.max(a.c.heartbeat)).where(a.c.invocation_id == i.c.id).scalar_subquery()
        open_ones = i.update().where(i.c.ended.is_(None))
        t.execute(open_ones.values(ended=func.coalesce(last, i.c.started)))
        return keys

    @write
    def reclaim_silent(self, t: Transaction) -> list[str]:
        """Ends attempts without a heartbeat for `SILENCE` as LOST, while other drivers may be alive.

        A driver that was only cut off from the store gets an `AttemptOverError` at its next report.

        Returns:
            The keys of the trials, which are WAITING unless CANCELLED.
        """
        a = schema.attempts
        return _end_lost(t, (a.c.state == "RUNNING") & (a.c.heartbeat < t.now - SILENCE))

    def record(self, attempt_id: int, reports: Sequence[Report]) -> None:
        """Records reports of an attempt, all or none. Also a heartbeat.

        Reports with a result are on disk when it returns; others as by `write_async`.

        Args:
            attempt_id: a running attempt.
            reports: in order; paths in them lie in the workspace, absolute or relative to it.

        Raises:
            AttemptOverError: the attempt has ended.
            ValueError: a path outside the workspace, an evaluation that the trial lacks, or a result with
                neither numbers nor a submission.
        """
        files = self._files(reports)
        result = any(isinstance(report, Evaluated) for report in reports)
        self.database.run(lambda t: _record(t, attempt_id, reports, files), writes=True, durable=result)

    def finish(self, attempt_id: int, reports: Sequence[Report] = ()) -> None:
        """Ends an attempt as COMPLETE, with its last reports. Its trial is COMPLETE, also when cancelled.

        A trial that lacks a result of an evaluation is WAITING instead, or stays CANCELLED. Raises what
        `record` raises; nothing is changed then.
        """
        self._end(attempt_id, reports, self._files(reports), "COMPLETE")

    def fail(self, attempt_id: int, error: str, reports: Sequence[Report] = ()) -> None:
        """Ends an attempt as FAILED, with a traceback; its trial is FAILED until a retry.

        A cancelled trial stays CANCELLED. `reports` as for `finish`.
        """
        self._end(attempt_id, reports, self._files(reports), "FAILED", error)

    def release(self, attempt_id: int, reports: Sequence[Report] = ()) -> None:
        """Ends an attempt as INTERRUPTED; its trial is WAITING and resumes at its last checkpoint.

        A cancelled trial stays CANCELLED. `reports` as for `finish`.
        """
        self._end(attempt_id, reports, self._files(reports), "INTERRUPTED")

    @write
    def _end(
        self,
        t: Transaction,
        attempt_id: int,
        reports: Sequence[Report],
        files: Sequence[Mapping[str, Any]],
        state: AttemptState,
        error: str | None = None,
    ) -> None:
        trial_key = _record(t, attempt_id, reports, files, state=state, ended=t.now, error=error)
        if state == "COMPLETE" and _has_all_results(t, trial_key):
            t.execute(statements.TRIAL, {"one": trial_key, "state": "COMPLETE", "error": None})
        else:
            free_trials(t, [trial_key], "FAILED" if state == "FAILED" else "WAITING", error)


def _record(
    t: Transaction,
    attempt_id: int,
    reports: Sequence[Report],
    files: Sequence[Mapping[str, Any]],
    **changes: Any,
) -> str:
    """Records the reports of a running attempt and updates its row; returns its trial's key."""
    ids = {"attempt_id": attempt_id, "time": t.now}
    trial_key = _update_running(t, attempt_id, {"heartbeat": t.now} | _described(reports) | changes)
    t.insert_all(schema.metrics, [ids | row for report in reports for row in _metric_rows(report)])
    notices = [ids | {"message": r.message} for r in reports if isinstance(r, Noticed)]
    t.insert_all(schema.notices, notices)
    for report in reports:
        if isinstance(report, Evaluated):
            _set_result(t, trial_key, report, ids)
    t.insert_all(schema.artifacts, [{**ids, "trial_key": trial_key, **file} for file in files])
    _set_progress(t, attempt_id, trial_key, [r for r in reports if isinstance(r, Progress)])
    return trial_key


def _update_running(t: Transaction, attempt_id: int, values: Mapping[str, Any]) -> str:
    """Updates a running attempt; returns its trial's key. Raises AttemptOverError where it has ended."""
    trial_keys = t.scalars(statements.RUNNING, {"one": attempt_id, **values})
    if not trial_keys:
        raise AttemptOverError(f"attempt {attempt_id} has ended; its report was not recorded")
    return trial_keys[0]


def _end_lost(t: Transaction, which: ColumnElement[bool]) -> list[str]:
    """Ends attempts as LOST at their last heartbeat; returns the keys of their trials."""
    a = schema.attempts
    lost = a.update().where(which).values(state="LOST", ended=a.c.heartbeat)
    keys = t.scalars(lost.returning(a.c.trial_key))
    free_trials(t, keys, "WAITING")
    return keys


def _has_all_results(t: Transaction, trial_key: str) -> bool:
    """Whether every evaluation of a trial has its result; locks the trial, so that none is added."""
    lock_trials(t, [trial_key])
    return not t.value(statements.LACKING, {"one": trial_key})


def _without_diff(t: Transaction, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without the diff's text, which is stored once for all attempts that share it."""
    kept = dict(provenance)
    text = kept.pop("diff", "")
    d = schema.diffs
    if text and not t.scalars(select(d.c.sha256).where(d.c.sha256 == kept["diff_sha256"])):
        t.insert_new(d, {"sha256": kept["diff_sha256"], "text": text})
    return kept


def _described(reports: Sequence[Report]) -> dict[str, Any]:
    described = [report.environment for report in reports if isinstance(report, Described)]
    return {"environment": described[-1]} if described else {}


def _set_progress(t: Transaction, attempt_id: int, trial_key: str, steps: Sequence[Progress]) -> None:
    """Updates the trial's step, and the first and last progress of the attempt."""
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
