"""MLflow as a mirror of the store: a thread that copies what is new, whenever the server is there.

The experiment is a study and profile; each `run` command is a parent run, each attempt a child. The
mirror reads the store alone and notes there how far it got, so a server that is away delays a copy and
never loses one, and training never waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ablation.store import AttemptRow, EvaluationRow, Store, TrialRow

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000
"""Metrics in one request, MLflow's limit."""

PARAMS_BATCH = 100
PARAM_LENGTH = 6000

_STATUS = {
    "RUNNING": "RUNNING",
    "COMPLETE": "FINISHED",
    "FAILED": "FAILED",
    "INTERRUPTED": "KILLED",
    "LOST": "KILLED",
}
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
_log = logging.getLogger(__name__)


@dataclass
class Mirror:
    """Copies one workspace's store to an MLflow tracking store.

    Attributes:
        uri: tracking URI, as `sqlite:///runs/mlflow.db` or a server's address.
        artifact_root: where a new experiment keeps its files; None leaves it to the server.
        last_error: why the last copy failed; None when it went through.
    """

    store: Store
    uri: str
    artifact_root: str | None = None
    interval: float = 5.0
    last_error: str | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _experiments: dict[str, str] = field(default_factory=dict)
    _client: MlflowClient | None = None

    def start(self) -> None:
        """Copy every `interval` seconds in the background, until `close`."""
        self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and copy what is left, once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
        self.try_sync()

    def try_sync(self) -> bool:
        """`sync`, with a failure noted in `last_error` instead of raised; True when all went through."""
        try:
            self.sync()
        except Exception as error:  # MLflow and its transports raise anything; no result depends on it
            self.last_error = f"{type(error).__name__}: {error}".splitlines()[0]
            _log.debug("MLflow mirror", exc_info=True)
            return False
        self.last_error = None
        return True

    def sync(self) -> int:
        """Copy everything that MLflow lacks; returns how many attempts were touched."""
        client = self._connect()
        attempts = self.store.attempts_to_mirror()
        trials = self.store.trial_states([a.trial_key for a in attempts])
        for attempt in attempts:
            self._copy(client, attempt, trials[attempt.trial_key])
        self._end_invocations(client)
        return len(attempts)

    # --- one attempt -----------------------------------------------------------------------------

    def _copy(self, client: MlflowClient, attempt: AttemptRow, trial: TrialRow) -> None:
        run_id = attempt.mlflow_run_id or self._create_run(client, attempt, trial)
        upto = self._copy_metrics(client, run_id, attempt)
        if attempt.state != "RUNNING":
            self._copy_results(client, run_id, attempt, trial)
            client.set_terminated(run_id, _STATUS[attempt.state], end_time=_ms(attempt.ended))
        self.store.mark_mirrored(attempt.id, upto, attempt.state)

    def _create_run(self, client: MlflowClient, attempt: AttemptRow, trial: TrialRow) -> str:
        experiment = self._experiment(client, trial)
        tags = {
            "mlflow.runName": trial.name
            if attempt.number == 1
            else f"{trial.name}, attempt {attempt.number}",
            "trial_key": trial.key,
            "tables": ", ".join(trial.tables),
            "seed": str(trial.seed),
            "data": trial.data_name,
            "attempt": str(attempt.number),
            "host": attempt.host,
            "commit": str(attempt.provenance.get("commit", "unknown")),
            "mlflow.source.git.commit": str(attempt.provenance.get("commit", "unknown")),
        }
        parent = self._parent(client, experiment, attempt, trial)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment, start_time=_ms(attempt.started), tags=tags)
        run_id = str(run.info.run_id)
        self.store.set_mlflow_run(attempt.id, run_id)
        config = json.loads(trial.config_json)
        self._log_params(client, run_id, config)
        client.log_dict(run_id, config, "config.json")
        return run_id

    def _copy_metrics(self, client: MlflowClient, run_id: str, attempt: AttemptRow) -> int:
        from mlflow.entities import Metric

        rows = self.store.metrics(attempt.id, after=attempt.mirrored_upto)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            client.log_batch(
                run_id, metrics=[Metric(metric_name(r.name), r.value, _ms(r.time), r.step) for r in part]
            )
        return rows[-1].id if rows else attempt.mirrored_upto

    def _copy_results(self, client: MlflowClient, run_id: str, attempt: AttemptRow, trial: TrialRow) -> None:
        """The numbers and files of a finished attempt: evaluations, last checkpoint, error."""
        for index, evaluation in enumerate(self.store.evaluations_of(attempt.id).values()):
            prefix = "" if index == 0 else f"evaluation_{index + 1}/"
            self._copy_evaluation(client, run_id, evaluation, prefix)
        checkpoints = [
            a
            for a in self.store.artifacts(trial.key)
            if a.attempt_id == attempt.id and a.kind == "checkpoint"
        ]
        if checkpoints and (path := self.store.resolve(checkpoints[-1].path)).is_file():
            client.log_artifact(run_id, str(path), "checkpoint")
        if attempt.error:
            client.log_text(run_id, attempt.error, "error.txt")

    def _copy_evaluation(
        self, client: MlflowClient, run_id: str, evaluation: EvaluationRow, prefix: str
    ) -> None:
        for name, value in evaluation.metrics.items():
            if value == value:
                client.log_metric(run_id, metric_name(prefix + name), value)
        for file in evaluation.artifacts.values():
            path = self.store.resolve(file)
            if path.is_file():
                client.log_artifact(run_id, str(path), f"{prefix}evaluation")

    # --- experiments and parents -------------------------------------------------------------------

    def _parent(
        self, client: MlflowClient, experiment: str, attempt: AttemptRow, trial: TrialRow
    ) -> str | None:
        """The run of the command that made the attempt; made when it is its first attempt."""
        invocation = next((i for i in self.store.invocations() if i.id == attempt.invocation_id), None)
        if invocation is None:
            return None
        if invocation.mlflow_run_id is None:
            started = f"{invocation.started:%Y-%m-%d %H:%M}"
            name = f"{trial.study} {trial.profile} {started} UTC"
            tags = {"mlflow.runName": name, "command": invocation.command, "host": invocation.host}
            run = client.create_run(experiment, start_time=_ms(invocation.started), tags=tags)
            self.store.set_invocation_mlflow_run(invocation.id, run.info.run_id)
            return str(run.info.run_id)
        return invocation.mlflow_run_id

    def _end_invocations(self, client: MlflowClient) -> None:
        """Ends the parent runs of commands that are over."""
        for invocation in self.store.invocations():
            if invocation.ended is None or invocation.mlflow_run_id is None:
                continue
            if client.get_run(invocation.mlflow_run_id).info.status == "RUNNING":
                client.set_terminated(invocation.mlflow_run_id, "FINISHED", end_time=_ms(invocation.ended))

    def _experiment(self, client: MlflowClient, trial: TrialRow) -> str:
        """Id of the study and profile's experiment. A deleted one keeps its name, so it is restored."""
        name = f"{trial.study} {trial.profile}"
        if name not in self._experiments:
            found = client.get_experiment_by_name(name)
            if found is None:
                location = (
                    f"{self.artifact_root}/{trial.study}-{trial.profile}" if self.artifact_root else None
                )
                self._experiments[name] = client.create_experiment(name, artifact_location=location)
            else:
                if found.lifecycle_stage == "deleted":
                    client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    @staticmethod
    def _log_params(client: MlflowClient, run_id: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value[:PARAM_LENGTH]) for name, value in flatten(config)]
        for start in range(0, len(params), PARAMS_BATCH):
            client.log_batch(run_id, params=params[start : start + PARAMS_BATCH])

    # --- the thread ----------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop.wait(self.interval):
            self.try_sync()

    def _connect(self) -> MlflowClient:
        """The client. Imported here: MLflow costs a second and a hundred megabytes."""
        if self._client is None:
            # An unreachable server must not hold up the end of a run for MLflow's default of minutes.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # importing MLflow sets its own
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = MlflowClient(self.uri)
        return self._client


def metric_name(name: str) -> str:
    """The name with the characters that MLflow refuses replaced by underscores."""
    return _FORBIDDEN.sub("_", name)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ("detector.head.group_norm", "True") pairs; a class's name stands for itself."""
    for name, value in config.items():
        path = f"{prefix}.{name}" if prefix else name
        if name == "__type__":
            if prefix:
                yield prefix, str(value)
        elif isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, str(value)


def _ms(time: Any) -> int:
    return int(time.timestamp() * 1000) if time is not None else 0
