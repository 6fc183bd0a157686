"""What the MLflow mirror has, noted in the store: runs, experiments, and the lease on copying."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Table as SqlTable
from sqlalchemy import select

from ablation.store import schema
from ablation.store.reading import EXPERIMENTS, Reader, experiments
from ablation.store.schema import AttemptState
from ablation.store.transactions import Transaction, in_parts, write

MIRROR_LEASE = "mirror_lease"
"""Name of the note that says which process copies to MLflow, and until when."""


class Mirroring(Reader):
    """The part of the store that the MLflow mirror writes."""

    def mark_mirrored(self, attempt_id: int, upto: int, state: AttemptState) -> None:
        """Notes that the mirror has an attempt's metrics up to the id `upto`, and its state."""
        self._mark(schema.attempts, attempt_id, {"mirrored_upto": upto, "mirrored_state": state})

    def set_mlflow_run(self, attempt_id: int, run_id: str) -> None:
        """Notes the MLflow run of an attempt, which has no metrics yet."""
        self._mark(schema.attempts, attempt_id, {"mlflow_run_id": run_id, "mirrored_upto": 0})

    def set_invocation_mlflow_run(self, invocation_id: int, run_id: str) -> None:
        """Notes the MLflow run that is the parent of an invocation's attempts."""
        self._mark(schema.invocations, invocation_id, {"mlflow_run_id": run_id})

    @write
    def forget_mlflow_runs(self, t: Transaction, run_ids: Collection[str]) -> None:
        """Notes that MLflow runs were deleted; their attempts are not copied again."""
        a = schema.attempts
        for some in in_parts(run_ids):
            t.execute(a.update().where(a.c.mlflow_run_id.in_(some)).values(mlflow_run_id=None))

    @write
    def lease_mirror(self, t: Transaction, holder: str, seconds: float) -> bool:
        """Takes, renews or (with 0 seconds) gives back the lease on copying to MLflow.

        Args:
            holder: a unique "host:pid:suffix"; the lease ends with that process, if it is on this machine.
            seconds: how long from now.

        Returns:
            True when `holder` has the lease; False when another process has it.
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

    @write
    def set_experiment(self, t: Transaction, study: str, profile: str, experiment: str) -> None:
        """Notes which MLflow experiment has the copy of a study and profile."""
        m = schema.meta
        t.insert_new(m, {"name": EXPERIMENTS, "value": "{}"})
        noted = experiments(t) | {f"{study} {profile}": experiment}
        t.execute(m.update().where(m.c.name == EXPERIMENTS).values(value=json.dumps(noted)))

    @write
    def forget_mirror(self, t: Transaction) -> None:
        """Notes that nothing has been copied to MLflow, so that everything is copied again.

        What was deleted from MLflow on purpose (`forget_mlflow_runs`) is not copied again.
        """
        a, i, m = schema.attempts, schema.invocations, schema.meta
        t.execute(m.delete().where(m.c.name == EXPERIMENTS))
        t.execute(i.update().values(mlflow_run_id=None))
        nothing = {"mlflow_run_id": None, "mirrored_upto": 0, "mirrored_state": None}
        t.execute(a.update().where(a.c.mlflow_run_id.is_not(None)).values(nothing))

    @write
    def _mark(self, t: Transaction, table: SqlTable, row_id: int, values: Mapping[str, Any]) -> None:
        t.execute(table.update().where(table.c.id == row_id).values(**values))


def _has_ended(holder: str) -> bool:
    """Whether a holder "host:pid:..." is a process of this machine that has ended."""
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
