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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ablation.store import AttemptRow, EvaluationRow, InvocationRow, Store, TrialRow
from ablation.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

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
    _ended: set[str] = field(default_factory=set)  # parent runs that are known to have ended
    _client: MlflowClient | None = None

    @classmethod
    def of(cls, store: Store, workspace: Workspace) -> Mirror:
        """The mirror that lies beside a workspace's store."""
        return cls(store, workspace.mlflow_uri, (workspace.root / "mlruns").as_uri())

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
        """Copy everything that MLflow lacks; returns how many attempts were touched.

        What cannot be copied holds up nothing else; the first error is raised when all the rest is done.
        """
        client = self._connect()
        attempts = self.store.attempts_to_mirror()
        trials = self.store.trial_states([a.trial_key for a in attempts])
        client.search_experiments(max_results=1)  # a server that is away says so once, not at each step
        steps = [partial(self._copy, client, a, trials[a.trial_key]) for a in attempts]
        errors = [error for step in steps if (error := _error_of(step))]
        # After the copies, which may have made the parents.
        ends = [partial(self._end_parent, client, invocation) for invocation in self.store.invocations()]
        errors += [error for step in ends if (error := _error_of(step))]
        if errors:
            raise errors[0]
        return len(attempts)

    # --- one attempt -----------------------------------------------------------------------------

    def _copy(self, client: MlflowClient, attempt: AttemptRow, trial: TrialRow) -> None:
        run_id, upto = attempt.mlflow_run_id, attempt.mirrored_upto
        if run_id is None or _find(client, run_id) is None:
            run_id, upto = self._create_run(client, attempt, trial), 0
        upto = self._copy_metrics(client, run_id, attempt.id, upto)
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
        config = json.loads(trial.config_json)
        self._log_params(client, run_id, config)
        client.log_dict(run_id, config, "config.json")
        # Last: a run that lacks something of this is made anew.
        self.store.set_mlflow_run(attempt.id, run_id)
        return run_id

    def _copy_metrics(self, client: MlflowClient, run_id: str, attempt_id: int, after: int) -> int:
        """Copies the metrics with an id above `after`; returns the id of the last that MLflow has."""
        from mlflow.entities import Metric

        rows = self.store.metrics(attempt_id, after)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            client.log_batch(
                run_id, metrics=[Metric(metric_name(r.name), r.value, _ms(r.time), r.step) for r in part]
            )
        return rows[-1].id if rows else after

    def _copy_results(self, client: MlflowClient, run_id: str, attempt: AttemptRow, trial: TrialRow) -> None:
        """The numbers and files of a finished attempt: evaluations, last checkpoint, error."""
        # Numbered within the trial: what a later attempt evaluates is no first evaluation.
        for number, evaluation in enumerate(self.store.evaluations_of(trial.key), 1):
            if evaluation.attempt_id == attempt.id:
                prefix = "" if number == 1 else f"evaluation_{number}/"
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
        """The run of the command that made the attempt; made where there is none."""
        invocation = next((i for i in self.store.invocations() if i.id == attempt.invocation_id), None)
        if invocation is None:
            return None
        run_id = invocation.mlflow_run_id
        if run_id is None or _find(client, run_id) is None:
            started = f"{invocation.started:%Y-%m-%d %H:%M}"
            name = f"{trial.study} {trial.profile} {started} UTC"
            tags = {"mlflow.runName": name, "command": invocation.command, "host": invocation.host}
            run = client.create_run(experiment, start_time=_ms(invocation.started), tags=tags)
            self.store.set_invocation_mlflow_run(invocation.id, run.info.run_id)
            return str(run.info.run_id)
        return run_id

    def _end_parent(self, client: MlflowClient, invocation: InvocationRow) -> None:
        """Ends the parent run of a command that is over; looks at each only once."""
        run_id = invocation.mlflow_run_id
        if invocation.ended is None or run_id is None or run_id in self._ended:
            return
        run = _find(client, run_id)
        if run is not None and run.info.status == "RUNNING":
            client.set_terminated(run_id, "FINISHED", end_time=_ms(invocation.ended))
        self._ended.add(run_id)

    def _experiment(self, client: MlflowClient, trial: TrialRow) -> str:
        """Id of the study and profile's experiment. A deleted one keeps its name, so it is restored."""
        name = f"{trial.study} {trial.profile}"
        found = client.get_experiment_by_name(name)
        if found is None:
            location = f"{self.artifact_root}/{trial.study}-{trial.profile}" if self.artifact_root else None
            return str(client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

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


def _error_of(step: Callable[[], None]) -> Exception | None:
    """Does it; what it raised."""
    try:
        step()
    except Exception as error:  # MLflow and its transports raise anything
        return error
    return None


def _find(client: MlflowClient, run_id: str) -> Run | None:
    """The run; None where a person has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


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
