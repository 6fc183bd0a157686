"""The MLflow runs: one for each attempt, below one for each `run` command.

Every step may be repeated. A run that was made and not noted in the store (the reply was lost, the process
was killed) is found again by its start time and tags, and MLflow keeps a metric that it gets twice once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ablation.credentials import hidden
from ablation.store import CHECKPOINT, AttemptRow, EvaluationRow, InvocationRow, Store, TrialRow
from ablation.tracking.client import is_active, log_params, metric, milliseconds
from ablation.tracking.experiments import Experiments
from ablation.tracking.lease import Lease

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

BATCH = 1000
"""Metrics in one request, MLflow's limit."""

_STATUS = {
    "RUNNING": "RUNNING",
    "COMPLETE": "FINISHED",
    "FAILED": "FAILED",
    "INTERRUPTED": "KILLED",
    "LOST": "KILLED",
}
"""MLflow's status of a run, by the attempt's state."""


@dataclass
class Runs:
    """Copies attempts into runs of one tracking store."""

    store: Store
    client: MlflowClient
    lease: Lease
    experiments: Experiments
    _ended: set[str] = field(default_factory=set)  # parent runs that are known to have ended

    def copy(self, attempt: AttemptRow, trial: TrialRow) -> None:
        """Copies what the attempt's run lacks; makes a new run where a person deleted it."""
        if run_id := attempt.mlflow_run_id:
            try:
                self._copy_into(run_id, attempt.mirrored_upto, attempt, trial)
                return
            except Exception:
                if is_active(self.client, run_id):
                    raise
        self._copy_into(self._make(attempt, trial), 0, attempt, trial)

    def _copy_into(self, run_id: str, upto: int, attempt: AttemptRow, trial: TrialRow) -> None:
        rows = self.store.metrics(attempt.id, upto)
        self._log_metrics(run_id, [metric(row.name, row.value, row.time, row.step) for row in rows])
        if attempt.state != "RUNNING":
            self._copy_results(run_id, attempt, trial)
            ended = milliseconds(attempt.ended)
            self.client.set_terminated(run_id, _STATUS[attempt.state], end_time=ended)
        self.store.mark_mirrored(attempt.id, rows[-1].id if rows else upto, attempt.state)

    def _log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self.lease.renew()
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    # --- results and files ---------------------------------------------------------------------------

    def _copy_results(self, run_id: str, attempt: AttemptRow, trial: TrialRow) -> None:
        """The numbers and files of a finished attempt: evaluations, last checkpoint, error."""
        # The current results are read first: one that becomes an earlier one in between is then in both.
        current = self.store.evaluations_of(trial.key)
        results = [*self.store.earlier_results(trial.key), *current]
        # Numbered over the trial: only its first evaluation has no prefix, whichever attempt did it.
        numbers = {key: number for number, key in enumerate(dict.fromkeys(r.key for r in results), 1)}
        for result in results:
            if result.attempt_id == attempt.id:
                prefix = "" if numbers[result.key] == 1 else f"evaluation_{numbers[result.key]}/"
                self._copy_evaluation(run_id, result, prefix)
        files = [file for file in self.store.artifacts(trial.key) if file.attempt_id == attempt.id]
        for checkpoint in [file.path for file in files if file.kind == CHECKPOINT][-1:]:
            self._log_file(run_id, checkpoint, "checkpoint")
        if attempt.error:
            self.client.log_text(run_id, attempt.error, "error.txt")

    def _copy_evaluation(self, run_id: str, evaluation: EvaluationRow, prefix: str) -> None:
        numbers = [(name, value) for name, value in evaluation.metrics.items() if value == value]
        metrics = [metric(prefix + name, value, evaluation.time, 0) for name, value in numbers]
        self._log_metrics(run_id, metrics)
        for file in evaluation.artifacts.values():
            self._log_file(run_id, file, f"{prefix}evaluation")

    def _log_file(self, run_id: str, file: str, folder: str) -> None:
        path = self.store.resolve(file)
        if path.is_file():
            self.lease.renew()
            self.client.log_artifact(run_id, str(path), folder)

    # --- making runs ---------------------------------------------------------------------------------

    def _make(self, attempt: AttemptRow, trial: TrialRow) -> str:
        """Makes the attempt's run, or finds it, with its tags, parameters and config; returns its id."""
        experiment = self.experiments.active_id(trial)
        tags = _tags(attempt, trial)
        if parent := self._parent(experiment, attempt, trial):
            tags["mlflow.parentRunId"] = parent
        run_id = self._find_or_create(
            experiment, milliseconds(attempt.started), tags, ("trial_key", "attempt")
        )
        config = json.loads(trial.config_json)
        log_params(self.client, run_id, config)
        self.client.log_dict(run_id, config, "config.json")
        # Noted last, so that a run that lacks one of these is completed by the next copy.
        self.store.set_mlflow_run(attempt.id, run_id)
        return run_id

    def _find_or_create(
        self, experiment: str, started: int, tags: Mapping[str, str], identity: Sequence[str]
    ) -> str:
        """Id of the run that began at `started` (ms) with the tags that `identity` names.

        A request whose reply was lost may have made the run twice: all but the first are deleted.
        """
        found = [
            run
            for run in self.client.search_runs([experiment], f"attributes.start_time = {started}")
            if all(run.data.tags.get(name) == tags[name] for name in identity)
        ]
        for run in found[1:]:
            self.client.delete_run(run.info.run_id)
        self.lease.renew()
        run = found[0] if found else self.client.create_run(experiment, start_time=started, tags=dict(tags))
        return str(run.info.run_id)

    # --- parent runs ---------------------------------------------------------------------------------

    def _parent(self, experiment: str, attempt: AttemptRow, trial: TrialRow) -> str | None:
        """Id of the run of the command that made the attempt; None where no command did."""
        invocation = next((i for i in self.store.invocations() if i.id == attempt.invocation_id), None)
        if invocation is None:
            return None
        if invocation.mlflow_run_id is not None and is_active(self.client, invocation.mlflow_run_id):
            return invocation.mlflow_run_id
        tags = {
            "mlflow.runName": f"{trial.study} {trial.profile} {invocation.started:%Y-%m-%d %H:%M} UTC",
            "command": hidden(invocation.command),
            "host": invocation.host,
        }
        started = milliseconds(invocation.started)
        run_id = self._find_or_create(experiment, started, tags, ("command", "host"))
        self.store.set_invocation_mlflow_run(invocation.id, run_id)
        return run_id

    def end_parents(self) -> None:
        """Ends the parent runs of commands that have ended; asks MLflow about each run once."""
        over = [i for i in self.store.invocations() if i.ended and i.mlflow_run_id is not None]
        over = [invocation for invocation in over if invocation.mlflow_run_id not in self._ended]
        if not over:
            return
        query = "attributes.status = 'RUNNING' and tags.command LIKE '%'"
        running = self.client.search_runs(self.experiments.ids, query)
        unended = {run.info.run_id for run in running}
        for invocation in over:
            self._end_parent(invocation, unended)

    def _end_parent(self, invocation: InvocationRow, unended: Collection[str]) -> None:
        run_id = invocation.mlflow_run_id
        assert run_id is not None
        if run_id in unended:
            self.client.set_terminated(run_id, "FINISHED", end_time=milliseconds(invocation.ended))
        self._ended.add(run_id)


def _tags(attempt: AttemptRow, trial: TrialRow) -> dict[str, str]:
    commit = str(attempt.provenance.get("commit", "unknown"))
    suffix = f", attempt {attempt.number}" if attempt.number > 1 else ""
    return {
        "mlflow.runName": f"{trial.name}{suffix}",
        "trial_key": trial.key,
        "tables": ", ".join(trial.tables),
        "seed": str(trial.seed),
        "data": trial.data_name,
        "attempt": str(attempt.number),
        "host": attempt.host,
        "commit": commit,
        "mlflow.source.git.commit": commit,
    }
