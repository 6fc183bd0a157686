"""A trial of several workers: a Ray Train group whose ranks run the train function.

Every rank makes the same reports. The first rank puts its own into a Ray queue, from which the process of the
trial passes them on. A rank that fails in Python, or is asked to end, says so there too. Train starts no
group twice: the driver starts the trial again.
"""

from __future__ import annotations

import queue
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ablation.protocol import Request
from ablation.storage import StorageError
from ablation.worker import quarantine
from ablation.worker.messages import DeviceFailed, Failure, Message, OutOfMemory, Stopped, failure_of
from ablation.worker.training import WorkerConfig, reports
from ablation.worker.watchdog import guarded

# What a rank's own exception says when it failed only because another rank's process died, or because the
# storage is away, which is no fault of the trial.
_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "ncclRemoteError",
    "ncclSystemError",
    "NCCL communicator was aborted",
    f"{StorageError.__name__}:",
)

_preempted = threading.Event()
"""Set in the process of a rank that has been asked to end."""


class WorkersLostError(RuntimeError):
    """A process of a trial's worker group died; the trial can go on from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class RankPreempted:
    """The process of a rank has been asked to end."""


@dataclass(frozen=True, slots=True)
class RankFailed:
    """The train function of one rank raised."""

    rank: int
    failure: Failure


def group_messages(
    config: WorkerConfig, request: Request, preempted: Callable[[], bool]
) -> Iterator[Message]:
    """Trains in a group of processes, and yields the first rank's reports and how a failed group ended.

    Args:
        preempted: whether this process has been asked to end.

    Raises:
        WorkersLostError: a process died, or Ray could not run the group.
    """
    from ray.util.queue import Queue

    told: Any = Queue(actor_options={"num_cpus": 0})
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    failures: dict[int, Failure] = {}
    guarded(config.artifacts / request.trial_key, config.hang_after)  # this process has no watchdog
    trainer = _trainer(config, request, told)
    thread = threading.Thread(target=_fit, args=(trainer, told, outcome), daemon=True)
    thread.start()
    stopped = False
    for message in _until_none(told):
        if isinstance(message, RankFailed):
            failures[message.rank] = message.failure
            continue
        if not isinstance(message, RankPreempted):
            yield message
        stopped = stopped or isinstance(message, Stopped)
        if not stopped and (preempted() or isinstance(message, RankPreempted)):
            config.storage.ask_to_stop(request.trial_key)  # the next attempt removes the request
    thread.join()
    told.shutdown()
    if error := outcome.get():
        failure = verdict(error, failures)
        if isinstance(failure, DeviceFailed) and not failure.usable and request.resources:
            # Before the driver knows: until then it sends no other trial there.
            quarantine.allocate(failure.fault.device, request.resources)
        yield failure


def _until_none(told: Any) -> Iterator[Message | RankFailed | RankPreempted]:
    """What comes out of the queue, whose process may be on a machine that is lost."""
    from ray.exceptions import RayError

    try:
        while (message := told.get()) is not None:
            yield message
    except RayError as error:
        raise WorkersLostError(str(error)) from error


def _fit(trainer: Any, told: Any, outcome: queue.SimpleQueue[Exception | None]) -> None:
    """Runs the group in a thread; the process of the trial must learn of its end whatever Ray raises."""
    error: Exception | None = None
    try:
        trainer.fit()
    except Exception as raised:
        error = raised
    outcome.put(error)
    told.put(None)


def _trainer(config: WorkerConfig, request: Request, told: Any) -> Any:
    """The Ray Train trainer of a group."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = request.resources
    assert resources is not None, "the driver gives every group its resources"
    per_worker: dict[str, float] = {"CPU": resources.cpus, "GPU": resources.gpus}
    if resources.memory:
        per_worker["memory"] = resources.memory
    return TorchTrainer(
        lambda: _run_rank(config, request, told),
        torch_config=_torch_config(config, request),
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpus > 0, resources_per_worker=per_worker
        ),
        # A name of its own, so that Train never finds and resumes an earlier attempt's snapshot.
        run_config=RunConfig(name=uuid.uuid4().hex, storage_path=str(config.scratch)),
    )


def _run_rank(config: WorkerConfig, request: Request, told: Any) -> None:
    """Trains on one rank, in a thread of its process."""
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    rank = get_context().get_world_rank()

    def stop() -> bool:
        if _preempted.is_set():
            _preempted.clear()
            # By the trial's process, not from here: a rank that outlives its group is asked to end too, and
            # would stop the next attempt.
            told.put(RankPreempted())
        asked = rank == 0 and config.storage.stop_asked(request.trial_key)
        return bool(broadcast_from_rank_zero(asked))

    try:
        for report in reports(config, request, stop, writes=rank == 0):
            if rank == 0:
                told.put(report)
    except (Exception, SystemExit) as error:
        told.put(RankFailed(rank, failure_of(error, get_context().get_local_world_size())))
        raise


def _torch_config(config: WorkerConfig, request: Request) -> Any:
    """Train's `TorchConfig`; before the ranks connect they learn to stop at a checkpoint on SIGTERM.

    The handler must be set in the main thread of a rank's process, where `Backend.on_start` runs functions;
    the train function runs in another thread.
    """
    from ray.train.torch import TorchConfig

    directory = config.artifacts / request.trial_key

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Any]:
            inherited: Any = super().backend_cls

            class Backend(inherited):  # type: ignore[misc]
                def on_start(self, worker_group: Any, backend_config: Any) -> None:
                    guarded(directory, config.hang_after)  # of Train's controller, in whose process this runs
                    worker_group.execute(_stop_on_sigterm)
                    super().on_start(worker_group, backend_config)

            return Backend

    return Config(backend="nccl" if request.gpus else "gloo")


def _stop_on_sigterm() -> None:
    """Without it Ray's own handler ends the process at once."""
    signal.signal(signal.SIGTERM, lambda *_: _preempted.set())


# --- how a group ended -------------------------------------------------------------------------------


def verdict(error: Exception, failures: Mapping[int, Failure]) -> Failure:
    """How a group failed, of which Ray raised `error`.

    A rank that fails in Python says so before it ends. One that ended silently was killed, perhaps because of
    another rank's device.

    Args:
        failures: of the ranks that failed in Python, by rank.

    Raises:
        WorkersLostError: a process was lost, or the storage is away.
    """
    devices = {rank: one for rank, one in failures.items() if isinstance(one, DeviceFailed)}
    if devices:
        return _of_rank(min(devices, key=lambda rank: (devices[rank].usable, rank)), devices)
    failed = set(getattr(error, "worker_failures", {}))
    silent = not failed or not failed <= set(failures)
    own = {rank: one for rank, one in failures.items() if not any(mark in one.error for mark in _PEER_LOST)}
    if silent or not own:
        raise WorkersLostError(str(error)) from None
    short = [rank for rank, one in own.items() if isinstance(one, OutOfMemory)]
    return _of_rank(min(short or own), own)


def _of_rank(rank: int, failures: Mapping[int, Failure]) -> Failure:
    return replace(failures[rank], error=f"On rank {rank}:\n{failures[rank].error}")
