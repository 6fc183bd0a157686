"""MLflow as a mirror of the store: a thread that copies what is new, whenever the server is there.

The experiment is a study and profile; each `run` command is a parent run, each attempt a child. The
mirror reads the store alone and notes there how far it got, so a server that is away delays a copy and
never loses one, and training never waits for it: `close` is the only call that does, and it is bounded.

One process copies at a time, by a lease in the store. A run that was made and not noted (the reply was
lost, the process killed) is found again by its tags, and MLflow keeps a metric that comes twice once, so
everything here may be done again. The store also knows which experiment has its copy: where another is met
(a server instead of the file, a server made anew), everything is copied there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from ablation.credentials import hidden
from ablation.errors import UserError
from ablation.store import CHECKPOINT, AttemptRow, EvaluationRow, InvocationRow, Store, TrialRow
from ablation.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

BATCH = 1000
"""Metrics in one request, MLflow's limit."""

PARAMS_BATCH = 100
PARAM_LENGTH = 6000

REQUEST_SECONDS = 30
"""A server that keeps silent for so long is away."""

LEASE_SECONDS = 120.0
"""Longer than any request but an upload, which does no harm when two do it."""

RENEWAL_SECONDS = 20.0
"""How old a lease may be when something that takes long begins."""

CLOSE_SECONDS = 30.0
"""How long the end of a run waits for the last copy."""

LONGEST_WAIT = 60.0
"""Seconds between two tries to reach a server that is away, at most."""

CHUNK = 200
"""Attempts whose trials are read at a time."""

NAMES = 10
"""How many experiments of one name, numbered, may be somebody else's."""

PROXY = "mlflow-artifacts:"
"""Where experiments of a server that passes artifacts on keep them."""

_STATUS = {
    "RUNNING": "RUNNING",
    "COMPLETE": "FINISHED",
    "FAILED": "FAILED",
    "INTERRUPTED": "KILLED",
    "LOST": "KILLED",
}
_ENVIRONMENT = {
    # No tries again inside MLflow: a request that only seemed lost would be done twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class MirrorBusyError(UserError):
    """Another process is copying to MLflow, or this one was told to stop."""


@dataclass
class Mirror:
    """Copies one workspace's store to an MLflow tracking store.

    Attributes:
        uri: tracking URI without credentials, as `sqlite:///runs/mlflow.db` or a server's address.
        artifact_root: where experiments keep their files; `PROXY` for a server, which passes them on.
        login: name and password for the server; None leaves it to MLflow's own variables.
        interval: seconds between two copies.
        last_error: why the last copy failed; None when it went through.
    """

    store: Store
    uri: str
    artifact_root: str = PROXY
    login: tuple[str, str] | None = field(default=None, repr=False)
    interval: float = 5.0
    last_error: str | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _abandoned: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}")
    _renewed: float = 0.0
    _experiments: dict[tuple[str, str], Experiment] = field(default_factory=dict)
    _settled: dict[tuple[str, str], str] = field(default_factory=dict)  # their identities, for good
    _ended: set[str] = field(default_factory=set)  # parent runs that are known to have ended
    _client: MlflowClient | None = None

    @classmethod
    def of(cls, store: Store, workspace: Workspace, uri: str | None = None) -> Mirror:
        """The mirror of a workspace's store.

        Args:
            store: what is copied.
            workspace: where the default file lies.
            uri: a server's address; MLFLOW_TRACKING_URI when None, and without that the default file.

        Raises:
            UserError: the address is not one of a server.
        """
        server = uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not server:
            return cls(store, workspace.mlflow_uri, (workspace.root / "mlruns").as_uri())
        address, login = _server(server)
        return cls(store, address, login=login)

    def start(self) -> None:
        """Copy every `interval` seconds in the background, until `close`."""
        self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy what is left and stop; after `CLOSE_SECONDS` leave the rest to the next run."""
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._abandoned.set()
            self.last_error = f"it took longer than {CLOSE_SECONDS:.0f} s"

    def try_sync(self, patience: float = 0) -> bool:
        """`sync`, with a failure noted in `last_error` instead of raised; True when all went through."""
        try:
            self.sync(patience)
        except Exception as error:  # MLflow and its transports raise anything; no result depends on it
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.last_error = hidden(text.splitlines()[0])
            _log.debug("MLflow mirror: %s", self.last_error)
            return False
        self.last_error = None
        return True

    def sync(self, patience: float = 0) -> int:
        """Copy everything that MLflow lacks; returns how many attempts were touched.

        What cannot be copied holds up nothing else; the first error is raised when all the rest is done.
        A server that is away ends it at once.

        Args:
            patience: seconds to wait for another process that is copying.

        Raises:
            MirrorBusyError: another process went on copying.
        """
        self._take_turn(patience)
        try:
            return self._sync(self._connect())
        except Exception:
            self._experiments.clear()  # one may be gone
            raise
        finally:
            self.store.lease_mirror(self._holder, 0)

    def delete_runs(self, run_ids: Collection[str]) -> int:
        """Delete runs and the files that MLflow keeps for them; returns how many were there.

        A run stays in MLflow's own bin, without its files, until `mlflow gc`.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client = self._connect()
        runs = [run for run_id in run_ids if (run := _known(partial(client.get_run, run_id)))]
        for run in runs:
            if run.info.lifecycle_stage == "active":
                client.delete_run(run.info.run_id)
            if self._keeps(run.info.artifact_uri):
                get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri).delete_artifacts()
        return len(runs)

    # --- turns -----------------------------------------------------------------------------------

    def _loop(self) -> None:
        delay = self.interval
        while not self._stop.wait(delay):
            delay = self.interval if self.try_sync() else min(2 * delay, LONGEST_WAIT)
        self.try_sync(CLOSE_SECONDS)

    def _take_turn(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self.store.lease_mirror(self._holder, LEASE_SECONDS):
            if time.monotonic() >= deadline or self._abandoned.wait(0.2):
                raise MirrorBusyError("another process is copying to MLflow")
        self._renewed = time.monotonic()

    def _keep_turn(self) -> None:
        """Called before anything that may take long. A mirror that lost the lease stops, or was closed."""
        if self._abandoned.is_set():
            raise MirrorBusyError("the copy was broken off")
        if time.monotonic() - self._renewed > RENEWAL_SECONDS:
            self._take_turn(0)

    def _sync(self, client: MlflowClient) -> int:
        for study, profile in self.store.studies():
            self._settle(client, study, profile)
        attempts = self.store.attempts_to_mirror()
        errors = []
        for start in range(0, len(attempts), CHUNK):
            part = attempts[start : start + CHUNK]
            trials = self.store.trial_states([attempt.trial_key for attempt in part])
            steps = [partial(self._copy, client, a, trials[a.trial_key]) for a in part]
            errors += [error for step in steps if (error := self._error_of(client, step))]
        # After the copies, which may have made the parents.
        if error := self._error_of(client, partial(self._end_parents, client)):
            errors.append(error)
        if errors:
            raise errors[0]
        return len(attempts)

    def _error_of(self, client: MlflowClient, step: Callable[[], None]) -> Exception | None:
        """Does it; what it raised, unless nothing else would go through either: then that is raised."""
        self._keep_turn()
        try:
            step()
        except MirrorBusyError:
            raise
        except Exception as error:  # MLflow and its transports raise anything
            client.search_experiments(max_results=1)
            return error
        return None

    # --- one attempt -----------------------------------------------------------------------------

    def _copy(self, client: MlflowClient, attempt: AttemptRow, trial: TrialRow) -> None:
        if run_id := attempt.mlflow_run_id:
            try:
                self._copy_into(client, run_id, attempt.mirrored_upto, attempt, trial)
                return
            except Exception:
                if _is_active(client, run_id):
                    raise
        self._copy_into(client, self._make_run(client, attempt, trial), 0, attempt, trial)

    def _copy_into(
        self, client: MlflowClient, run_id: str, upto: int, attempt: AttemptRow, trial: TrialRow
    ) -> None:
        rows = self.store.metrics(attempt.id, upto)
        self._log_metrics(client, run_id, [_metric(r.name, r.value, _ms(r.time), r.step) for r in rows])
        if attempt.state != "RUNNING":
            self._copy_results(client, run_id, attempt, trial)
            client.set_terminated(run_id, _STATUS[attempt.state], end_time=_ms(attempt.ended))
        self.store.mark_mirrored(attempt.id, rows[-1].id if rows else upto, attempt.state)

    def _make_run(self, client: MlflowClient, attempt: AttemptRow, trial: TrialRow) -> str:
        """Id of a run with the attempt's tags, parameters and config: its own, or a new one."""
        experiment = self._experiment(client, trial)
        commit = str(attempt.provenance.get("commit", "unknown"))
        again = f", attempt {attempt.number}" if attempt.number > 1 else ""
        tags = {
            "mlflow.runName": f"{trial.name}{again}",
            "trial_key": trial.key,
            "tables": ", ".join(trial.tables),
            "seed": str(trial.seed),
            "data": trial.data_name,
            "attempt": str(attempt.number),
            "host": attempt.host,
            "commit": commit,
            "mlflow.source.git.commit": commit,
        }
        if parent := self._parent(client, experiment, attempt, trial):
            tags["mlflow.parentRunId"] = parent
        run_id = self._run(client, experiment, _ms(attempt.started), tags, ("trial_key", "attempt"))
        config = json.loads(trial.config_json)
        _log_params(client, run_id, config)
        client.log_dict(run_id, config, "config.json")
        # Last: a run that lacks something of this is completed.
        self.store.set_mlflow_run(attempt.id, run_id)
        return run_id

    def _log_metrics(self, client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self._keep_turn()
            client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def _copy_results(self, client: MlflowClient, run_id: str, attempt: AttemptRow, trial: TrialRow) -> None:
        """The numbers and files of a finished attempt: evaluations, last checkpoint, error."""
        current = self.store.evaluations_of(trial.key)  # first: what becomes an earlier one now is in both
        results = [*self.store.earlier_results(trial.key), *current]
        # Numbered within the trial: what a later attempt evaluates is no first evaluation, unless done anew.
        numbers = {key: number for number, key in enumerate(dict.fromkeys(r.key for r in results), 1)}
        for result in results:
            if result.attempt_id == attempt.id:
                prefix = "" if numbers[result.key] == 1 else f"evaluation_{numbers[result.key]}/"
                self._copy_evaluation(client, run_id, result, prefix)
        files = [file for file in self.store.artifacts(trial.key) if file.attempt_id == attempt.id]
        for checkpoint in [file.path for file in files if file.kind == CHECKPOINT][-1:]:
            self._log_file(client, run_id, checkpoint, "checkpoint")
        if attempt.error:
            client.log_text(run_id, attempt.error, "error.txt")

    def _copy_evaluation(
        self, client: MlflowClient, run_id: str, evaluation: EvaluationRow, prefix: str
    ) -> None:
        when = _ms(evaluation.time)
        numbers = [(name, value) for name, value in evaluation.metrics.items() if value == value]
        self._log_metrics(client, run_id, [_metric(prefix + name, value, when, 0) for name, value in numbers])
        for file in evaluation.artifacts.values():
            self._log_file(client, run_id, file, f"{prefix}evaluation")

    def _log_file(self, client: MlflowClient, run_id: str, file: str, folder: str) -> None:
        path = self.store.resolve(file)
        if path.is_file():
            self._keep_turn()
            client.log_artifact(run_id, str(path), folder)

    # --- runs and their parents ----------------------------------------------------------------------

    def _run(
        self,
        client: MlflowClient,
        experiment: str,
        started: int,
        tags: Mapping[str, str],
        identity: Sequence[str],
    ) -> str:
        """Id of the run that began at `started` with the tags named by `identity`; made where there is none.

        Where a request that seemed lost made one too many, all but the first are deleted.
        """
        found = [
            run
            for run in client.search_runs([experiment], f"attributes.start_time = {started}")
            if all(run.data.tags.get(name) == tags[name] for name in identity)
        ]
        for run in found[1:]:
            client.delete_run(run.info.run_id)
        self._keep_turn()
        run = found[0] if found else client.create_run(experiment, start_time=started, tags=dict(tags))
        return str(run.info.run_id)

    def _parent(
        self, client: MlflowClient, experiment: str, attempt: AttemptRow, trial: TrialRow
    ) -> str | None:
        """The run of the command that made the attempt; made where there is none."""
        invocation = next((i for i in self.store.invocations() if i.id == attempt.invocation_id), None)
        if invocation is None:
            return None
        if invocation.mlflow_run_id is not None and _is_active(client, invocation.mlflow_run_id):
            return invocation.mlflow_run_id
        tags = {
            "mlflow.runName": f"{trial.study} {trial.profile} {invocation.started:%Y-%m-%d %H:%M} UTC",
            "command": hidden(invocation.command),
            "host": invocation.host,
        }
        run_id = self._run(client, experiment, _ms(invocation.started), tags, ("command", "host"))
        self.store.set_invocation_mlflow_run(invocation.id, run_id)
        return run_id

    def _end_parents(self, client: MlflowClient) -> None:
        """Ends the parent runs of commands that are over; looks at each only once."""
        over = [i for i in self.store.invocations() if i.ended and i.mlflow_run_id not in self._ended]
        over = [invocation for invocation in over if invocation.mlflow_run_id is not None]
        if not over:
            return
        experiments = [experiment.experiment_id for experiment in self._experiments.values()]
        running = client.search_runs(experiments, "attributes.status = 'RUNNING' and tags.command LIKE '%'")
        unended = {run.info.run_id for run in running}
        for invocation in over:
            self._end_parent(client, invocation, unended)

    def _end_parent(self, client: MlflowClient, invocation: InvocationRow, unended: Collection[str]) -> None:
        run_id = invocation.mlflow_run_id
        assert run_id is not None
        if run_id in unended:
            client.set_terminated(run_id, "FINISHED", end_time=_ms(invocation.ended))
        self._ended.add(run_id)

    # --- experiments ---------------------------------------------------------------------------------

    def _settle(self, client: MlflowClient, study: str, profile: str) -> None:
        """Finds the experiment that has the copy of a study and profile, once.

        Where it is not in this tracking store, another takes its place and everything is copied anew. What
        another process has moved since then stays there: two would move it to and fro.
        """
        known, settled = self.store.mirror(study, profile), self._settled.get((study, profile))
        if settled is not None and settled != known:
            raise UserError(f"another process copies {study} {profile} to another MLflow than {self.uri}")
        if (study, profile) in self._experiments:
            return
        self._keep_turn()
        found = _known(partial(client.get_experiment, known.partition("@")[0])) if known else None
        if found is None or _identity(found) != known or not self._keeps(found.artifact_location):
            found = self._open_experiment(client, study, profile)
            self.store.set_mirror(study, profile, _identity(found))
        self._experiments[study, profile] = found
        self._settled[study, profile] = _identity(found)

    def _experiment(self, client: MlflowClient, trial: TrialRow) -> str:
        """Id of the trial's experiment, which is restored if a person deleted it."""
        experiment = self._experiments[trial.study, trial.profile]
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            self._experiments[trial.study, trial.profile] = client.get_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _open_experiment(self, client: MlflowClient, study: str, profile: str) -> Experiment:
        """The first experiment of the study and profile's name, numbered from 2, that is ours or free."""
        for number in range(1, NAMES + 1):
            name = f"{study} {profile}" + (f" ({number})" if number > 1 else "")
            try:
                found = client.get_experiment_by_name(name)
            except Exception as error:
                if _code(error) != "PERMISSION_DENIED":
                    raise
                continue
            if found is None:
                return self._create_experiment(client, name, f"{study}-{profile}")
            if self._keeps(found.artifact_location):
                return found
        raise UserError(
            f"The MLflow at {self.uri} has {NAMES} experiments '{study} {profile}' that keep their files "
            f"elsewhere than in {self.artifact_root}. Rename one, or use another MLflow."
        )

    def _create_experiment(self, client: MlflowClient, name: str, folder: str) -> Experiment:
        location = None if self.artifact_root == PROXY else f"{self.artifact_root}/{folder}"
        experiment = client.get_experiment(client.create_experiment(name, artifact_location=location))
        if not self._keeps(experiment.artifact_location):
            client.delete_experiment(experiment.experiment_id)
            raise UserError(
                f"The MLflow server {self.uri} does not pass artifacts on. Start it with --serve-artifacts "
                "and --artifacts-destination."
            )
        return experiment

    def _keeps(self, location: str) -> bool:
        """Whether files at a location are this mirror's to write and delete."""
        return unquote(location).startswith(unquote(f"{self.artifact_root}/"))

    # --- the client ----------------------------------------------------------------------------------

    def _connect(self) -> MlflowClient:
        """The client. Imported here: MLflow costs a second and a hundred megabytes."""
        if self._client is None:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            if self.login is not None:
                os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = self.login
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # importing MLflow sets its own
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = MlflowClient(self.uri)
        return self._client


# --- addresses ---------------------------------------------------------------------------------------


def server_address(uri: str | None) -> str | None:
    """The address, without credentials, of the server that `Mirror.of` would use; None for the file.

    Raises:
        UserError: the URI is not one of a server.
    """
    server = uri or os.environ.get("MLFLOW_TRACKING_URI")
    return _server(server)[0] if server else None


def _server(uri: str) -> tuple[str, tuple[str, str] | None]:
    """A server's address without credentials, and these."""
    try:
        parts = urlsplit(uri)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        raise UserError(
            f"An MLflow server's address is http://HOST:PORT or https://..., got {hidden(uri)!r}. "
            "Change --mlflow-uri or MLFLOW_TRACKING_URI; without both, the mirror is a file of the workspace."
        )
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    login = (unquote(parts.username), unquote(parts.password)) if parts.username and parts.password else None
    return address, login


# --- MLflow's ways -----------------------------------------------------------------------------------


def _code(error: Exception) -> str | None:
    return getattr(error, "error_code", None)


def _known(get: Callable[[], T]) -> T | None:
    """What a request gets; None for what is not there, or not for us to see."""
    try:
        return get()
    except Exception as error:
        if _code(error) not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        return None


def _is_active(client: MlflowClient, run_id: str) -> bool:
    run: Run | None = _known(partial(client.get_run, run_id))
    return run is not None and run.info.lifecycle_stage == "active"


def _identity(experiment: Experiment) -> str:
    """Tells an experiment from every other, in whatever tracking store: "id@milliseconds of its making"."""
    return f"{experiment.experiment_id}@{experiment.creation_time}"


def _metric(name: str, value: float, time_ms: int, step: int) -> Metric:
    from mlflow.entities import Metric

    return Metric(metric_name(name), value, time_ms, step)


def _log_params(client: MlflowClient, run_id: str, config: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(name, value[:PARAM_LENGTH]) for name, value in flatten(config)]
    for start in range(0, len(params), PARAMS_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_BATCH])


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
