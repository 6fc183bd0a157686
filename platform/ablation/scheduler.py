"""Runs planned trials on Ray, writes what they report to the store, and survives what goes wrong.

A Tune run is disposable: it starts on what is missing, and nothing of it is read again. Every trial starts
from its own last checkpoint, so an interrupted or killed trial only has to be started once more.

At most `concurrency` trials run at a time. A trial of one worker holds the CPU and the GPU of that worker. A
trial of several holds nothing itself: its worker group is placed as a whole when all its CPUs and GPUs are
free, so no two half-placed groups ever wait for each other.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from ablation.display import Listener
from ablation.errors import UserError
from ablation.plan import PlannedTrial
from ablation.protocol import Evaluated, EvaluationRequest, Noticed, Request, TrainFunction, from_wire
from ablation.store import AttemptOverError, Store
from ablation.worker import FAILED, Job, trainable
from ablation.workspace import Workspace

PULSE_S = 2.0
RAY_LOST_AFTER = 2
"""Failed attempts in a row, one at each pulse, to reach Ray's processes before they count as dead."""
PROCESS_DIED = "A process of the trial died (ended by hand or for lack of memory, or crashed)"
OBJECT_STORE_BYTES = 128 << 20  # only reports and small configs pass through it

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even at verbosity 0
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # nothing of Ray's own is printed among the display's lines
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # its snapshots are never read
    "TUNE_WARN_THRESHOLD_S": "1000000",
}
_WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a group ends 4 s sooner
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, which changes no result.

    Attributes:
        concurrency: trials at a time; as many as the CPUs or the GPUs allow when None (`share`).
        workers_per_trial: processes that train one trial together.
        micro_batch: see `protocol.Request`.
        cluster: address of a running Ray cluster, "auto" to find it; None starts Ray on this machine.
        max_retries: how often a trial starts again after its process died. A Python exception would only
            come again, so such a trial fails at once.
    """

    concurrency: int | None = None
    workers_per_trial: int = 1
    micro_batch: int | None = None
    cluster: str | None = None
    max_retries: int = 2

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency must be >= 1, got {self.concurrency}")
        if self.workers_per_trial < 1:
            raise ValueError(f"workers_per_trial must be >= 1, got {self.workers_per_trial}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be >= 1, got {self.micro_batch}")
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be >= 0, got {self.max_retries}")


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        finished: keys of the trials that came to their end.
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


class _StopNow(BaseException):
    """Leaves Tune's loop at once; no handler of Exception holds it up."""


@dataclass(slots=True)
class Desk:
    """The driver's side of every trial: turns what Ray tells into what the store keeps.

    Trials are known by their index in `work`. An error of the store in here must end the run, but Tune
    swallows or wraps what its callbacks raise; so it is kept in `failure`, for which `check` stops the
    loop, and which is raised after it.
    """

    work: Sequence[PlannedTrial]
    store: Store
    listener: Listener
    provenance: Mapping[str, Any]
    invocation_id: int | None = None
    running: dict[int, int] = field(default_factory=dict)
    done: dict[int, list[str]] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    failure: Exception | None = None

    def check(self) -> None:
        """Raises when the run must end; called at every step of Tune's loop."""
        if self.interrupted:
            self.listener.stopping()
        if self.interrupted or self.failure:
            raise _StopNow

    def guard(self, action: Callable[..., None], *arguments: Any) -> None:
        """Does it unless the run must end anyway; an error in it ends the run."""
        try:
            if not self.failure:
                action(*arguments)
        except Exception as error:
            self.failure = error

    def start(self, index: int) -> None:
        """A process is there for the trial: starts an attempt."""
        trial = self.work[index]
        owner = f"{socket.gethostname()}:{os.getpid()}"
        attempt = self.store.claim(trial.key, owner, self.provenance, self.invocation_id)
        if attempt is not None:
            self.running[index] = attempt
            self.listener.started(trial)

    def receive(self, index: int, message: Mapping[str, Any]) -> None:
        """A message of the trial's process."""
        if index not in self.running:
            return
        if message["kind"] == FAILED:
            self.fail(index, message["error"])
            return
        report = from_wire(message)
        self.store.record(self.running[index], [report])
        if isinstance(report, Evaluated):
            self.done.setdefault(index, []).append(report.key)
        self.listener.reported(self.work[index], report)

    def finish(self, index: int) -> None:
        """The train function came to its end (or had already failed)."""
        if index in self.running:
            self.store.finish(self.running[index])
            del self.running[index]  # only now: what the store did not take, `close` releases
            self.finished.append(self.work[index].key)
            self.listener.finished(self.work[index])

    def lose(self, index: int, reason: str) -> None:
        """The trial's process died; another attempt follows."""
        if index in self.running:
            attempt = self.running[index]
            self.store.record(attempt, [Noticed(reason)])
            self.store.release(attempt)
            del self.running[index]
            self.listener.lost(self.work[index], reason)

    def fail(self, index: int, error: str) -> None:
        """The trial failed for good, in Python or after its last retry."""
        if index not in self.running:
            self.start(index)
        if index in self.running:
            self.store.fail(self.running[index], error)
            del self.running[index]
            self.failed[self.work[index].key] = error
            self.listener.failed(self.work[index], error)

    def beat(self) -> None:
        """Says that the running attempts are alive."""
        self.store.heartbeat(list(self.running.values()))

    def close(self) -> None:
        """Ends what still runs as interrupted; its trials wait for the next run."""
        for attempt in self.running.values():
            with suppress(AttemptOverError):  # nothing is left to release of it
                self.store.release(attempt)
        self.running.clear()

    def summary(self, seconds: float) -> Summary:
        """How it ended."""
        ended = {*self.finished, *self.failed}
        waiting = tuple(trial.key for trial in self.work if trial.key not in ended)
        return Summary(tuple(self.finished), dict(self.failed), waiting, self.interrupted, seconds)


def run(
    work: Sequence[PlannedTrial],
    train: TrainFunction,
    context: Any,
    store: Store,
    workspace: Workspace,
    options: Options,
    listener: Listener,
    *,
    whole_gpus: bool,
    provenance: Mapping[str, Any],
    invocation_id: int | None = None,
) -> Summary:
    """Trains and evaluates, in this order as far as processes are free. Needs the main thread.

    Ctrl-C or SIGTERM stops within seconds and leaves the rest waiting; a second one ends the process.

    Args:
        work: WAITING trials, known to the store (`plan.register`).
        train: the study's train function.
        context: handed to it in every request.
        workspace: held by this process (`Workspace.driver_lock`).
        whole_gpus: see `ablation.study.Setting`.
        provenance: kept with every attempt.

    Raises:
        UserError: there is no place for the trials, Ray does not start or stops in mid-run, or the store
            cannot be written.
    """
    began = time.monotonic()
    desk = Desk(work, store, listener, provenance, invocation_id)
    if work:
        with _signals(desk), _scratch(workspace) as scratch:
            try:
                _run_on_ray(desk, train, context, workspace, options, whole_gpus, scratch)
            finally:
                desk.close()
    return desk.summary(time.monotonic() - began)


def _run_on_ray(
    desk: Desk,
    train: TrainFunction,
    context: Any,
    workspace: Workspace,
    options: Options,
    whole_gpus: bool,
    scratch: Path,
) -> None:
    requests = [_request(trial, context, workspace, options) for trial in desk.work]
    # The signals again: Ray sets a handler of its own for SIGTERM when it starts.
    with _ray(options, whole_gpus) as layout, _signals(desk), _pulse(desk):
        job = Job(train, requests, layout.gpus_per_worker, scratch)
        tuner = _tuner(desk, job, layout, options.max_retries, scratch)
        with suppress(_StopNow):
            desk.check()
            tuner.fit()
    # Here and not only where `check` stops the loop: the last step's error comes after the last check.
    if desk.failure:
        raise desk.failure


def _request(trial: PlannedTrial, context: Any, workspace: Workspace, options: Options) -> Request:
    directory = workspace.trial_directory(trial.key)
    directory.mkdir(parents=True, exist_ok=True)
    evaluations = tuple(EvaluationRequest(e.key, e.config) for e in trial.missing)
    workers, micro_batch = options.workers_per_trial, options.micro_batch
    return Request(trial.key, trial.config, evaluations, directory, context, workers, micro_batch)


# --- Ray ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """How many trials at a time, and what each of their workers holds."""

    concurrency: int
    workers: int
    gpus_per_worker: float


def share(options: Options, cpus: int, gpus: int, *, whole_gpus: bool) -> Layout:
    """Divides what there is among the trials.

    The workers of one trial cannot share a GPU; several trials of one worker can, unless `whole_gpus`.

    Args:
        cpus, gpus: of the machine or the cluster.
        whole_gpus: see `ablation.study.Setting`.

    Raises:
        UserError: a trial's group, or so many trials at a time, would never find a place.
    """
    workers = options.workers_per_trial
    whole = gpus > 0 and (whole_gpus or workers > 1)
    room = gpus if whole or (options.cluster and gpus) else cpus
    if workers > room and (whole or options.cluster):
        raise UserError(
            f"--workers-per-trial {workers} needs {workers} {'GPUs' if gpus else 'CPUs'}; "
            f"{'the cluster' if options.cluster else 'this machine'} has {room}. Ask for at most that many."
        )
    concurrency = options.concurrency or max(1, room // workers)
    processes = concurrency * workers
    if whole and processes > gpus:
        raise UserError(
            f"--concurrency {concurrency} needs {processes} GPUs, one for each worker of each trial, and "
            f"there are {gpus}. Ask for at most {gpus // workers}, or leave it out."
        )
    gpus_per_worker = 0.0 if gpus == 0 else 1 / math.ceil(processes / gpus)
    return Layout(concurrency, workers, gpus_per_worker)


@contextmanager
def _ray(options: Options, whole_gpus: bool) -> Iterator[Layout]:
    """A Ray to run on: this machine's, ours alone and gone afterwards, or a cluster's."""
    if (options.cluster or "").startswith("ray://"):  # Tune's loop would run there, out of the desk's sight
        raise UserError(
            f"--cluster {options.cluster} is an address of Ray Client, which cannot report trials back. On a "
            "machine of the cluster, give the address of its head (HOST:6379), or --cluster alone to find it."
        )
    with _environment(_ENVIRONMENT if options.cluster else _ENVIRONMENT | _local_environment(options)):
        # After the environment: Ray reads some of it when it is imported.
        import ray

        try:
            yield _connect(options, whole_gpus) if options.cluster else _start(options, whole_gpus)
        finally:
            ray.shutdown()


def _start(options: Options, whole_gpus: bool) -> Layout:
    """Ray on this machine, for us alone."""
    cpus, gpus = len(os.sched_getaffinity(0)), _gpus_here()
    layout = share(options, cpus, gpus, whole_gpus=whole_gpus)
    processes = layout.concurrency * layout.workers
    threads = str(max(1, cpus // processes))
    with _environment({"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}):
        _init(
            options,
            address="local",
            num_cpus=processes,
            num_gpus=gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            # Only with it does Ray give back the place of a group whose trial's process died.
            include_dashboard=layout.workers > 1,
            dashboard_host="127.0.0.1",
        )
    return layout


def _gpus_here() -> int:
    """As many as Ray finds by itself when it starts, without a start."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    found = int(manager.get_current_node_num_accelerators())
    visible = manager.get_current_process_visible_accelerator_ids()
    return found if visible is None else min(found, len(visible))


def _connect(options: Options, whole_gpus: bool) -> Layout:
    """A cluster that others started."""
    import ray

    address = str(options.cluster)
    host, _, port = address.rpartition(":")
    # Ray itself would try for many minutes.
    if port.isdecimal() and not _opens((host, int(port))):
        raise UserError(_no_ray(options, "nothing listens there"))
    _init(options, address=address, runtime_env={"env_vars": _WORKER_ENVIRONMENT})
    total = ray.cluster_resources()
    return share(options, int(total.get("CPU", 0)), int(total.get("GPU", 0)), whole_gpus=whole_gpus)


def _init(options: Options, **arguments: Any) -> None:
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **arguments)
    except Exception as error:
        raise UserError(_no_ray(options, error)) from error


def _local_environment(options: Options) -> dict[str, str]:
    local = {
        **_WORKER_ENVIRONMENT,
        # Or glibc gives large arrays back to the system at every step, and faults them in again.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        # Ray listens on the loopback device alone, and to those who know the token.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
    }
    if sys.platform == "linux" and options.workers_per_trial > 1:
        local["GLOO_SOCKET_IFNAME"] = "lo"
    return local


@cache
def _token() -> str:
    """One for the life of this process: Ray remembers the first that it sees."""
    return secrets.token_hex(32)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _no_ray(options: Options, reason: object) -> str:
    if options.cluster is None:
        return f"Ray does not start on this machine: {reason}"
    return (
        f"No Ray cluster answers at {options.cluster!r}: {reason}. Start one with 'ray start --head'; one "
        "that asks for a token needs RAY_AUTH_MODE=token here too. Without --cluster it runs on this machine."
    )


# --- Tune --------------------------------------------------------------------------------------------


def _tuner(desk: Desk, job: Job, layout: Layout, max_retries: int, scratch: Path) -> Any:
    """A Tuner over the trials in the order of the plan, that prints and keeps nothing."""
    from ray import tune

    single = layout.workers == 1
    # Tune wants every trial to hold something: a megabyte is nothing that a group's workers would miss.
    held = {"CPU": 1.0, "GPU": layout.gpus_per_worker} if single else {"memory": 1 << 20}
    return tune.Tuner(
        tune.with_resources(trainable(job), tune.PlacementGroupFactory([held])),
        param_space={"index": tune.grid_search(list(range(len(job.requests)))), "done": []},
        tune_config=tune.TuneConfig(max_concurrent_trials=layout.concurrency, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[_callback(desk)],
            failure_config=tune.FailureConfig(max_failures=max_retries),
            verbose=0,
        ),
    )


def _callback(desk: Desk) -> Any:
    """Tune's callback that tells the desk."""
    from ray import tune

    class Tell(tune.Callback):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            # Tune keeps a copy of its callbacks for a restore that never happens; a store cannot be copied.
            return tune.Callback, ()

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            desk.check()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            desk.guard(desk.start, trial.config["index"])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            desk.guard(desk.receive, trial.config["index"], result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            desk.guard(desk.finish, trial.config["index"])

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            index = trial.config["index"]
            desk.guard(desk.lose, index, _reason(trial))
            trial.config["done"] = desk.done.get(index, [])

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            desk.guard(desk.fail, trial.config["index"], _reason(trial))

    return Tell()


def _reason(trial: Any) -> str:
    """Why a trial's process is gone: the last of what Tune has written down, and a line for people."""
    try:
        text = Path(trial.error_file).read_text()
    except (OSError, TypeError):
        text = ""
    last = text.rpartition("\nFailure #")[2].partition("\n")[2].strip()
    return f"{last}\n{PROCESS_DIED}".lstrip()


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
    """A folder for what Ray writes and nobody reads; a killed run's is removed first."""
    folder = workspace.root / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _pulse(desk: Desk) -> Iterator[None]:
    """A thread that keeps the attempts alive in the store and notices when Ray is gone.

    Ray's own library does not notice for a minute that its central process is dead, and never that
    the node's is.
    """
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(desk, _doors(), over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(desk: Desk, doors: Sequence[tuple[str, int]], over: threading.Event) -> None:
    missed = 0
    while not over.wait(PULSE_S):
        desk.guard(desk.beat)
        missed = 0 if all(map(_opens, doors)) else missed + 1
        if missed == RAY_LOST_AFTER:
            desk.failure = UserError(
                "Ray stopped in the middle of the run (its processes are gone). What was running is "
                "interrupted; the same command goes on from the last checkpoints."
            )


def _doors() -> list[tuple[str, int]]:
    """Addresses of Ray's central process and of this node's."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [(host, int(port)), (own["NodeManagerAddress"], own["NodeManagerPort"])]


def _opens(door: tuple[str, int]) -> bool:
    try:
        socket.create_connection(door, timeout=PULSE_S).close()
    except OSError:
        return False
    return True
