"""Runs planned trials on Ray, writes what they report to the store, and survives what goes wrong.

A Tune run is disposable: it starts on what is missing, and nothing of it is read again. Every trial starts
from its own last checkpoint, so an interrupted or killed trial only has to be started once more.

Tune asks the dispatcher for each next trial, which admits one only when its whole group of workers has a
place; so no two half-placed groups ever wait for each other. Attempts are claimed in the store before they
start: two drivers never train the same trial.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from ablation.cluster import connection as cluster
from ablation.cluster import preflight
from ablation.cluster.connection import Layout
from ablation.credentials import hidden
from ablation.driver.attempts import Desk, StopNow
from ablation.driver.dispatch import Dispatcher
from ablation.driver.display import Listener
from ablation.driver.options import Options
from ablation.driver.scheduler import GangScheduler
from ablation.errors import UserError
from ablation.plan import Plan, PlannedTrial
from ablation.protocol import EvaluationRequest, Request
from ablation.resources import Node
from ablation.storage import Storage
from ablation.store import Store
from ablation.worker.harness import Job, Order, trial_process
from ablation.workspace import Workspace

PULSE_S = 2.0
RAY_LOST_AFTER, CLUSTER_LOST_AFTER = 2, 10
"""Failed attempts in a row, one at each pulse, to reach Ray's processes before they count as dead: those of
this machine, and a cluster's, where the network may be away for a moment."""
LEAVE_S = 15.0
"""How long the process may take to end after that."""
PROCESS_DIED = "A process of the trial died (ended by hand or for lack of memory, or crashed)"


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run keeps things.

    Attributes:
        workspace: without a shared store, held by this process (`Workspace.driver_lock`).
        storage: where workers keep trials' files.
    """

    store: Store
    workspace: Workspace
    storage: Storage


def run(
    plan: Plan,
    place: Place,
    options: Options,
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
        place: the store and the files.
        options: how.
        listener: hears of everything.
        seconds: how long each trial should take, by key.
        facts: provenance, kept with every attempt.
        invocation_id: of the command in the store.

    Raises:
        UserError: there is no place for the trials, Ray does not start or stops in mid-run, or the store
            cannot be written.
    """
    began = time.monotonic()
    trials = {trial.key: trial for trial in plan.trials if trial.missing}
    desk = Desk(
        trials,
        place.store,
        place.storage,
        place.workspace,
        listener,
        facts,
        options.max_retries,
        options.grace,
        invocation_id,
    )
    if plan.work():
        with _signals(desk), _scratch(place.workspace) as scratch:
            try:
                _run_on_ray(plan, desk, options, seconds, scratch)
            finally:
                desk.close()
    ended = {*desk.finished, *desk.failed}
    waiting = tuple(key for key in trials if key not in ended)
    took = time.monotonic() - began
    return Summary(tuple(desk.finished), dict(desk.failed), waiting, desk.interrupted, took)


def _run_on_ray(
    plan: Plan, desk: Desk, options: Options, seconds: Mapping[str, float], scratch: Path
) -> None:
    wanted = [trial.resources for trial in desk.trials.values()]
    exclusive_gpus = plan.setting.exclusive_gpus
    with cluster.ray_for(options, wanted, exclusive_gpus=exclusive_gpus, folder=plan.study.folder) as layout:
        resources = {key: layout.resources(trial.resources) for key, trial in desk.trials.items()}
        needs = {trial.name: resources[trial.key] for trial in plan.work()}
        if options.cluster:
            # Each node makes the cache for itself.
            paths = [p for p in preflight.paths_in(plan.setting.context) if p != desk.workspace.cache]
            preflight.check(desk.storage, paths, plan.study.sources, needs)
        else:
            names = {node.id: "this machine" for node in layout.nodes}
            if lacking := preflight.lacking(layout.nodes, names, needs):
                raise UserError("\n".join(lacking))
        job = Job(
            plan.study.train,
            {key: _request(trial, plan, desk.workspace) for key, trial in desk.trials.items()},
            desk.storage,
            plan.study.sources,
            options.hang_after,
            scratch,
        )
        # The signals again: Ray sets a handler of its own for SIGTERM when it starts.
        patience = CLUSTER_LOST_AFTER if options.cluster else RAY_LOST_AFTER
        with _signals(desk), _pulse(desk, layout, patience) as pulse:
            dispatcher = Dispatcher(
                plan,
                desk,
                GangScheduler(layout.nodes, layout.limit),
                seconds,
                resources,
                options.micro_batch,
                lambda: pulse.nodes,
                more_may_join=options.cluster is not None,
            )
            try:
                with suppress(StopNow):
                    _tuner(dispatcher, job, scratch).fit()
            finally:
                dispatcher.keep()
    # Here and not only where `check` stops the loop: the last step's error comes after the last check.
    if desk.failure:
        raise desk.failure


def _request(trial: PlannedTrial, plan: Plan, workspace: Workspace) -> Request:
    directory = workspace.trial_directory(trial.key)
    directory.mkdir(parents=True, exist_ok=True)
    evaluations = tuple(EvaluationRequest(e.key, e.config) for e in trial.missing)
    return Request(trial.key, trial.config, evaluations, directory, plan.setting.context)


# --- Tune --------------------------------------------------------------------------------------------


def _tuner(dispatcher: Dispatcher, job: Job, scratch: Path) -> Any:
    """A Tuner that starts what the dispatcher says, and prints and keeps nothing."""
    from ray import tune

    process = tune.with_resources(tune.with_parameters(trial_process(), job=job), _held)
    attempts = _attempts(dispatcher, process)
    return tune.Tuner(
        process,
        param_space={},
        tune_config=tune.TuneConfig(
            search_alg=attempts,
            scheduler=_ender(dispatcher.desk),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[_callback(dispatcher, attempts)],
            verbose=0,
        ),
    )


def _held(config: Mapping[str, Any]) -> Any:
    """What Tune reserves: a trial of one worker holds its share, the workers of a group hold their own."""
    each = config["resources"]
    if each["workers"] == 1:
        return _share(each["cpus"], each["gpus"], each["memory"])
    # Tune wants every trial to hold something: a megabyte is nothing that a group's workers would miss.
    return _share(0, 0, 1 << 20)


@cache
def _share(cpus: float, gpus: float, memory: int) -> Any:
    """One object for all trials that hold the same, because Tune compares them again and again."""
    from ray import tune

    held = {"CPU": cpus, "GPU": gpus, "memory": memory}
    return tune.PlacementGroupFactory([{name: amount for name, amount in held.items() if amount}])


def _attempts(dispatcher: Dispatcher, process: type[Any]) -> Any:
    """What Tune asks for the next trial, which is an attempt of one of ours.

    Tune's own searchers look every trial's class up in Ray's central process, three times, which takes longer
    than all that the store does for the trial.
    """
    from ray import tune
    from ray.tune.experiment import Experiment, Trial
    from ray.tune.search import SearchAlgorithm

    class Attempt(Trial):  # type: ignore[misc]
        def get_trainable_cls(self) -> type[Any]:
            return process

    class Attempts(SearchAlgorithm):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            return SearchAlgorithm, ()  # Tune keeps a copy for a restore that never happens

        def add_configurations(self, experiments: list[Experiment]) -> None:
            self._spec = experiments[0].spec

        def next_trial(self) -> Attempt | None:
            order = None

            def decide() -> None:
                nonlocal order
                order = dispatcher.next()

            dispatcher.desk.guard(decide)
            if order is not None:
                return self._attempt(order)
            if dispatcher.over:
                self.set_finished()
            return None

        def _attempt(self, order: Order) -> Attempt:
            return Attempt(
                self._spec["run"],
                config={**order.to_config(), "attempt": dispatcher.desk.running[order.key]},
                storage=self._spec["storage"],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                max_failures=0,  # a lost trial is admitted anew
                stub=True,  # the name of its class is not looked up
            )

    return Attempts()


def _ender(desk: Desk) -> Any:
    """Ends the processes of attempts that are no longer this driver's."""
    import ray
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Ender(FIFOScheduler):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            return FIFOScheduler, ()

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if not desk.holds(trial.config["key"], trial.config["attempt"]):
                # Not by Tune, which would keep the process, and with it a group that goes on training.
                ray.kill(trial.temporary_state.ray_actor)
            return str(TrialScheduler.CONTINUE)

    return Ender()


def _callback(dispatcher: Dispatcher, attempts: Any) -> Any:
    """Tune's callback that tells the dispatcher."""
    import ray
    from ray import tune

    class Tell(tune.Callback):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            return tune.Callback, ()  # a store cannot be copied

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            dispatcher.desk.check()
            if attempts.is_finished():  # Tune would wait for processes that were given up, or stay for good
                raise StopNow

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            key, attempt = trial.config["key"], trial.config["attempt"]
            if dispatcher.desk.holds(key, attempt):
                dispatcher.start(key)
            else:
                ray.kill(trial.temporary_state.ray_actor)  # why not by Tune: see `_ender`

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            dispatcher.hear(trial.config["key"], trial.config["attempt"], result["messages"])

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            dispatcher.keep()

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            dispatcher.lose(trial.config["key"], trial.config["attempt"], _reason(trial))

    return Tell()


def _reason(trial: Any) -> str:
    """Why a trial's process is gone: the last of what Tune has written down, and a line for people."""
    try:
        text = Path(trial.error_file).read_text()
    except (OSError, TypeError):
        text = ""
    last = text.rpartition("\nFailure #")[2].partition("\n")[2].strip()
    return hidden(f"{last}\n{PROCESS_DIED}".lstrip())


# --- what goes on beside ------------------------------------------------------------------------------


@contextmanager
def _signals(desk: Desk) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask Tune's loop to end; a second one ends the process, and Ray's with it."""

    def stop(number: int, frame: FrameType | None) -> None:
        if desk.interrupted:
            os._exit(128 + number)
        desk.interrupted = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _scratch(workspace: Workspace) -> Iterator[Path]:
    """A folder for what Ray writes and nobody reads, of this driver alone."""
    folder = workspace.root / "scratch" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class _Pulse:
    """What the pulse found last."""

    nodes: tuple[Node, ...]
    patience: int
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def _pulse(desk: Desk, layout: Layout, patience: int) -> Iterator[_Pulse]:
    """A thread that keeps the attempts alive in the store, counts machines and notices when Ray is gone.

    Ray's own library does not notice for a minute that its central process is dead, and never that
    the node's is.
    """
    pulse = _Pulse(layout.nodes, patience)
    thread = threading.Thread(target=_beat, args=(desk, cluster.endpoints(), pulse), daemon=True)
    thread.start()
    try:
        yield pulse
    finally:
        pulse.over.set()
        thread.join()


def _beat(desk: Desk, endpoints: Sequence[tuple[str, int]], pulse: _Pulse) -> None:
    missed = 0
    while not pulse.over.wait(PULSE_S):
        desk.guard(desk.beat)
        missed = 0 if all(map(cluster.opens, endpoints)) else missed + 1
        if not missed:
            with suppress(Exception):  # of Ray, which may just be going; the doors tell
                pulse.nodes = cluster.nodes()
        if missed == pulse.patience:
            desk.failure = UserError(
                "Ray stopped in the middle of the run (its processes are gone). What was running is "
                "interrupted; the same command goes on from the last checkpoints."
            )
            leave = threading.Timer(LEAVE_S, _leave, [desk])
            leave.daemon = True
            leave.start()


def _leave(desk: Desk) -> None:
    """Ends a process that has not ended by itself since Ray was gone.

    Whatever of Ray's is still called then, in a destructor perhaps, waits a minute for it, and Ray ends the
    process without our words.
    """
    with suppress(Exception):  # of the store; the next run finds what it was not told
        desk.close()
    print(desk.failure, file=sys.stderr, flush=True)
    os._exit(1)
