"""Runs planned trials on Ray, writes what they report to the store, and survives what goes wrong.

Every trial starts from its own last checkpoint, so an interrupted or killed trial only has to be started once
more. Attempts are claimed in the store before they start: two drivers never train the same trial.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.cluster import connection as cluster
from ablation.cluster import preflight
from ablation.cluster.code import Code
from ablation.driver import capacity
from ablation.driver.attempts import AttemptManager
from ablation.driver.dispatch import Dispatcher
from ablation.driver.display import Listener
from ablation.driver.heartbeat import Heartbeat, Monitor
from ablation.driver.scheduler import GangScheduler
from ablation.driver.shutdown import Shutdown, StopRun
from ablation.errors import UserError
from ablation.plan import Plan
from ablation.run_options import Options
from ablation.storage import Storage
from ablation.store import Store
from ablation.worker.training import WorkerConfig
from ablation.workspace import Workspace

RAY_LOST_AFTER, CLUSTER_LOST_AFTER = 2, 10
"""Failed attempts in a row to reach Ray's processes before they count as dead: those of this machine, and a
cluster's, where the network may be away for a moment."""
LEAVE_S = 15.0
"""How long the driver's process may take to end after that."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        finished: keys of the trials that came to their end here.
        failed: traceback or reason, by trial key.
        waiting: keys of the trials that are still to be done.
        interrupted: a person (or SIGTERM) stopped it.
        seconds: wall time.
    """

    finished: tuple[str, ...]
    failed: Mapping[str, str]
    waiting: tuple[str, ...]
    interrupted: bool
    seconds: float


def run(
    plan: Plan,
    options: Options,
    store: Store,
    storage: Storage,
    workspace: Workspace,
    listener: Listener,
    seconds: Mapping[str, float],
    *,
    facts: Mapping[str, Any],
    invocation_id: int | None = None,
) -> Summary:
    """Trains and evaluates what the plan misses. Needs the main thread.

    Ctrl-C or SIGTERM lets running trials write a checkpoint and leaves the rest waiting; a second one ends
    the process.

    Args:
        plan: known to the store (`plan.register`).
        storage: where workers keep trials' files.
        workspace: without a shared store, held by this process (`Workspace.driver_lock`).
        listener: is told of everything.
        seconds: how long each trial should take, by key.
        facts: provenance, kept with every attempt.
        invocation_id: of the command in the store.

    Raises:
        UserError: a trial fits nowhere, Ray does not start or stops in mid-run, or the store cannot be
            written.
    """
    began = time.monotonic()
    manager = AttemptManager(store, storage, workspace, listener, facts, options.max_retries, invocation_id)
    shutdown = Shutdown(options.grace)
    if plan.work():
        with shutdown.signals(), _scratch(workspace) as scratch:
            try:
                _run_on_ray(plan, manager, shutdown, options, seconds, scratch)
            finally:
                manager.close()
    ended = {*manager.finished, *manager.failed}
    waiting = tuple(trial.key for trial in plan.trials if trial.missing and trial.key not in ended)
    took = time.monotonic() - began
    return Summary(tuple(manager.finished), dict(manager.failed), waiting, shutdown.requested, took)


def _run_on_ray(
    plan: Plan,
    manager: AttemptManager,
    shutdown: Shutdown,
    options: Options,
    seconds: Mapping[str, float],
    scratch: Path,
) -> None:
    trials = [trial for trial in plan.trials if trial.missing]
    wanted = [trial.resources for trial in trials]
    exclusive_gpus = plan.setting.exclusive_gpus
    code = Code(plan.study.sources, plan.study.folder)
    with cluster.ray_for(options, wanted, exclusive_gpus=exclusive_gpus, code=code) as layout:
        resources = {trial.key: layout.resources(trial.resources) for trial in trials}
        _check_before_start(plan, manager, options, layout, resources, code)
        config = WorkerConfig(
            plan.study.train,
            manager.storage,
            manager.workspace.artifacts,
            plan.study.sources,
            plan.study.packages,
            options.hang_after,
            scratch,
        )
        heartbeat = Heartbeat(manager)
        patience = CLUSTER_LOST_AFTER if options.cluster else RAY_LOST_AFTER
        monitor = Monitor(
            heartbeat, layout.nodes, cluster.endpoints(), patience, lambda: _leave_later(manager, monitor)
        )
        dispatcher = Dispatcher(
            plan,
            manager,
            GangScheduler(layout.nodes, layout.limit),
            shutdown,
            heartbeat,
            seconds,
            resources,
            options.micro_batch,
            lambda: monitor.nodes,
            more_may_join=options.cluster is not None,
        )
        # The signals again: Ray sets a handler of its own for SIGTERM when it starts.
        with shutdown.signals(), monitor:
            _fit(dispatcher, config, monitor, scratch)


def _check_before_start(
    plan: Plan,
    manager: AttemptManager,
    options: Options,
    layout: cluster.Layout,
    resources: Mapping[str, Any],
    code: Code,
) -> None:
    """UserError where a trial would find no node, or a node lacks what trials need."""
    needs = {trial.name: resources[trial.key] for trial in plan.work()}
    if options.cluster:
        # Each node makes the cache for itself.
        paths = [p for p in preflight.paths_in(plan.setting.context) if p != manager.workspace.cache]
        preflight.check(manager.storage, paths, plan.study.packages, code)
        names = preflight.node_names()
    else:
        names = {node.id: "this machine" for node in layout.nodes}
    if lacking := capacity.lacking(layout.nodes, names, needs):
        raise UserError("\n".join(lacking))


def _fit(dispatcher: Dispatcher, config: WorkerConfig, monitor: Monitor, scratch: Path) -> None:
    """Runs Tune's loop until the dispatcher or an error ends it."""
    # Here, and not above: Ray reads some of the environment when it is imported.
    from ablation.driver.tune import tuner

    try:
        tuner(dispatcher, config, monitor, scratch).fit()
    except StopRun as stop:
        if error := stop.__cause__ or monitor.failure:
            raise error from None
    except Exception:
        if monitor.failure:  # what Tune met after it
            raise monitor.failure from None
        raise


# --- the process -------------------------------------------------------------------------------------


@contextmanager
def _scratch(workspace: Workspace) -> Iterator[Path]:
    """A folder for what Ray writes and nobody reads, of this driver alone."""
    folder = workspace.root / "scratch" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _leave_later(manager: AttemptManager, monitor: Monitor) -> None:
    """Ends a process that has not ended by itself some seconds after Ray was gone.

    Whatever of Ray is still called then, in a destructor perhaps, waits a minute for it, and Ray ends the
    process without our message.
    """

    def leave() -> None:
        with suppress(Exception):  # of the store; the next run reclaims the attempts
            manager.close()
        print(monitor.failure, file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(LEAVE_S, leave)
    timer.daemon = True
    timer.start()
