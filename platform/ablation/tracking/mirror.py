"""MLflow as a mirror of the store: a thread copies what is new while a study runs.

The experiment is a study and profile; each `run` command is a parent run, each attempt a child. The mirror
reads the store alone and notes there how far it got, so an unreachable server delays a copy and never loses
one. Training never waits for it; only `close` does, for a bounded time. One process copies at a time
(`lease`). A copy stays in the tracking store where it began; `sync --rebuild` copies everything into another.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ablation.credentials import hidden
from ablation.errors import UserError
from ablation.store import Store
from ablation.tracking.client import connect, or_none, split_credentials
from ablation.tracking.experiments import PROXY, Experiments
from ablation.tracking.lease import Lease, MirrorBusyError
from ablation.tracking.runs import Runs
from ablation.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

CLOSE_SECONDS = 30.0
"""How long the end of a `run` command waits for the last copy."""

LONGEST_WAIT = 60.0
"""Seconds between two tries to reach an unreachable server, at most."""

CHUNK = 200
"""Attempts whose trials are read at a time."""

_log = logging.getLogger(__name__)


@dataclass
class Mirror:
    """Copies one workspace's store to an MLflow tracking store.

    Attributes:
        uri: tracking URI without credentials, as `sqlite:///runs/mlflow.db` or a server's address.
        artifact_root: where experiments keep their files; `PROXY` for a server.
        login: name and password for the server; None leaves it to MLflow's own variables.
        interval: seconds between two copies.
        last_error: why the last copy failed; None when it succeeded.
        lease: the right to copy, which one process has at a time.
    """

    store: Store
    uri: str
    artifact_root: str = PROXY
    login: tuple[str, str] | None = field(default=None, repr=False)
    interval: float = 5.0
    last_error: str | None = None
    lease: Lease = field(init=False, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.lease = Lease(self.store)

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
        address, login = split_credentials(server)
        return cls(store, address, login=login)

    def start(self) -> None:
        """Copies every `interval` seconds in the background, until `close`."""
        self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copies what is left and stops; what takes longer than `CLOSE_SECONDS` is left to the next run."""
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self.lease.abandoned.set()
            self.last_error = f"it took longer than {CLOSE_SECONDS:.0f} s"

    def try_sync(self, patience: float = 0) -> bool:
        """`sync`, with a failure noted in `last_error` instead of raised; True when it succeeded."""
        try:
            self.sync(patience)
        except Exception as error:  # MLflow and its transports raise anything; no result depends on it
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.last_error = hidden(text.splitlines()[0])
            _log.debug("MLflow mirror: %s", self.last_error)
            return False
        self.last_error = None
        return True

    def sync(self, patience: float = 0, *, rebuild: bool = False) -> int:
        """Copies everything that MLflow lacks; returns how many attempts were copied or updated.

        An attempt that cannot be copied does not stop the others; the first error is raised at the end. An
        unreachable server stops the copy at once.

        Args:
            patience: seconds to wait for another process that is copying.
            rebuild: copies everything anew, into the tracking store of this mirror. Runs that are there
                already are updated, and runs that were deleted on purpose stay so.

        Raises:
            MirrorBusyError: the other process is still copying.
            UserError: the store was copied to another tracking store before, and `rebuild` is False.
        """
        self.lease.acquire(patience)
        try:
            if rebuild:
                self.store.forget_mirror()
            return self._sync()
        except Exception:
            self._experiments.forget()
            raise
        finally:
            self.lease.release()

    def delete_runs(self, run_ids: Collection[str]) -> int:
        """Deletes runs and the files that MLflow keeps for them; returns how many there were.

        MLflow keeps a deleted run, without its files, until `mlflow gc`.
        """
        client = self.client
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        runs = [run for run_id in run_ids if (run := or_none(partial(client.get_run, run_id)))]
        for run in runs:
            if run.info.lifecycle_stage == "active":
                client.delete_run(run.info.run_id)
            if self._experiments.owns(run.info.artifact_uri):
                get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri).delete_artifacts()
        return len(runs)

    # --- parts, made at their first use --------------------------------------------------------------

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client of the tracking store."""
        return connect(self.uri, self.login)

    @cached_property
    def _experiments(self) -> Experiments:
        return Experiments(self.store, self.client, self.uri, self.artifact_root)

    @cached_property
    def _runs(self) -> Runs:
        return Runs(self.store, self.client, self.lease, self._experiments)

    # --- copying -------------------------------------------------------------------------------------

    def _loop(self) -> None:
        delay = self.interval
        while not self._stop.wait(delay):
            delay = self.interval if self.try_sync() else min(2 * delay, LONGEST_WAIT)
        self.try_sync(CLOSE_SECONDS)

    def _sync(self) -> int:
        for study, profile in self.store.studies():
            self.lease.renew()
            self._experiments.find(study, profile)
        attempts = self.store.attempts_to_mirror()
        errors = []
        for start in range(0, len(attempts), CHUNK):
            part = attempts[start : start + CHUNK]
            trials = self.store.trial_states([attempt.trial_key for attempt in part])
            steps = [partial(self._runs.copy, attempt, trials[attempt.trial_key]) for attempt in part]
            errors += [error for step in steps if (error := self._error_of(step))]
        # After the copies, which may have made the parents.
        if error := self._error_of(self._runs.end_parents):
            errors.append(error)
        if errors:
            raise errors[0]
        return len(attempts)

    def _error_of(self, step: Callable[[], None]) -> Exception | None:
        """Does a step and returns its error; raises it instead where the server is unreachable."""
        self.lease.renew()
        try:
            step()
        except MirrorBusyError:
            raise
        except Exception as error:  # MLflow and its transports raise anything
            self.client.search_experiments(max_results=1)
            return error
        return None
