"""Two thin harnesses around a train function: what runs in the processes that Ray starts.

A trial with one worker runs in the process of its Tune trial, which the next trial uses again. One with
several starts a Ray Train group that runs the same train function on every rank; every rank yields the
same sequence of reports, and those of rank 0 are passed on. Either way a report reaches the driver as the
dictionary that `protocol.to_wire` makes, and the last message says how it ended.

A Python exception is a result like others: it is told (`FAILED`, `OUT_OF_MEMORY`) and the process goes on
to the next trial. Only a process that dies makes the driver start the trial again.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ablation.credentials import hidden
from ablation.protocol import (
    Checkpointed,
    Described,
    DeviceError,
    Noticed,
    OutOfMemoryError,
    Report,
    Request,
    TrainFunction,
    to_wire,
)
from ablation.provenance.environment import describe
from ablation.resources import Resources
from ablation.storage import Storage, StorageError
from ablation.storage.names import HANG, LOG, STOP
from ablation.storage.reports import files_of, moved
from ablation.worker import quarantine as device
from ablation.worker.group import Rank, torch_config
from ablation.worker.quarantine import Place
from ablation.worker.watchdog import Watch, guarded, hang_of, logged

ENDED, STOPPED, FAILED = "ended", "stopped", "failed"
OUT_OF_MEMORY, DEVICE_FAILED = "out of memory", "device failed"
LAST = (ENDED, STOPPED, FAILED, OUT_OF_MEMORY, DEVICE_FAILED)
"""Kinds of the last message of a trial; the other kinds are those of the protocol."""

_RANK_FAILED = "rank failed"
# What a rank's own exception says when it failed only because another rank's process died, or for want of
# the storage, which is no fault of the trial.
_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "ncclRemoteError",
    "ncclSystemError",
    "NCCL communicator was aborted",
    f"{StorageError.__name__}:",
)

Message = dict[str, Any]


class WorkersLostError(RuntimeError):
    """A process of a trial's worker group died; the trial can go on from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the trial processes get, once for all trials.

    Attributes:
        requests: by trial key.
        sources: see `ablation.study.Study`.
        hang_after: see `ablation.worker.watchdog.Watch`.
        scratch: folder for what Ray Train leaves; of no use afterwards.
    """

    train: TrainFunction
    requests: Mapping[str, Request]
    storage: Storage
    sources: tuple[str, ...]
    hang_after: float
    scratch: Path


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt, as Tune's config carries it.

    Attributes:
        done: keys of the evaluations that earlier attempts have done.
        micro_batch: see `protocol.Request`.
        folder: of the trial's directory; see `store.TrialRow`.
    """

    key: str
    done: tuple[str, ...]
    micro_batch: int | None
    resources: Resources
    folder: str = ""

    def to_config(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "done": list(self.done)}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Order:
        """What `to_config` wrote."""
        resources = Resources(**config["resources"])
        done, folder = tuple(config["done"]), config["folder"]
        return Order(config["key"], done, config["micro_batch"], resources, folder)

    def applied_to(self, request: Request) -> Request:
        """The request as this attempt carries it out."""
        left = tuple(e for e in request.evaluations if e.key not in self.done)
        return replace(
            request,
            evaluations=left,
            directory=request.directory / self.folder,
            workers=self.resources.workers,
            gpus=self.resources.gpus,
            micro_batch=self.micro_batch,
        )


def trial_process() -> type[Any]:
    """Tune's class of trial processes: each of its steps is one message of `messages`."""
    from ray import tune

    class TrialProcess(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], job: Job) -> None:
            self._job = job
            self._preempted = False
            self._begin(config)
            with suppress(ValueError):  # not in the main thread: then Ray's own handler ends the process
                self._before = signal.signal(signal.SIGTERM, self._on_sigterm)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._begin(new_config)
            return True

        def _begin(self, config: dict[str, Any]) -> None:
            order = Order.from_config(config)
            self._busy = True
            self._last: Message = {"kind": ""}
            alone = order.resources.workers == 1
            self._gpus = alone and order.resources.gpus > 0
            told = messages(self._job, order, lambda: self._preempted)
            wanted = len(order.applied_to(self._job.requests[order.key]).evaluations)
            # A group says at once that it has its places, which its trial's process alone does not show.
            self._batches = batches(told, wanted) if alone else ([m] for m in told)

        def step(self) -> dict[str, Any]:
            batch = next(self._batches, None)
            if batch is None:  # the driver has the last message, and the process is to be gone
                if self._last["kind"] == DEVICE_FAILED and not self._last["usable"]:
                    device.sit()
                os._exit(0)
            self._last = batch[-1]
            self._busy = self._last["kind"] not in LAST
            # An error of CUDA may have spoilt the process for every trial after this one.
            spoilt = self._last["kind"] == DEVICE_FAILED or (self._gpus and self._last["kind"] == FAILED)
            return {"messages": batch, "done": not (self._busy or self._preempted or spoilt)}

        def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
            self._preempted = True
            if not self._busy and callable(self._before):
                self._before(number, frame)

    return TrialProcess


def batches(messages: Iterator[Message], evaluations: int) -> Iterator[list[Message]]:
    """The messages in parts that travel together: what is followed by something at once waits for it.

    Args:
        messages: of one attempt.
        evaluations: how many it will tell of; nothing long comes after the last.
    """
    batch: list[Message] = []
    for message in messages:
        batch.append(message)
        evaluations -= message["kind"] == "evaluated"
        if message["kind"] == "described" or (message["kind"] == "evaluated" and evaluations == 0):
            continue
        yield batch
        batch = []
    if batch:
        yield batch


def messages(job: Job, order: Order, preempted: Callable[[], bool] = lambda: False) -> Iterator[Message]:
    """All that an attempt tells; the last message says how it ended.

    Args:
        job, order: what to do.
        preempted: whether this process has been asked to go.

    Raises:
        WorkersLostError: a process of the trial's group died.
        StorageError: the storage is away, which is no fault of the trial.
    """
    request = order.applied_to(job.requests[order.key])
    try:
        if request.workers > 1:
            yield from _of_group(job, request, order.resources, preempted)
            return

        def stop() -> bool:
            return preempted() or job.storage.stop_asked(request.trial_key)

        for report in reports(job, request, stop):
            yield {"kind": STOPPED} if report is None else to_wire(report)
            if report is None:
                return
    except OutOfMemoryError as error:
        yield {"kind": OUT_OF_MEMORY, "smaller": error.smaller, "error": _traceback()}
    except DeviceError as error:
        yield {"kind": DEVICE_FAILED, "error": _traceback(), **_device_of(error)}
    except (WorkersLostError, StorageError):
        raise
    except Exception:
        yield {"kind": FAILED, "error": _traceback()}
    else:
        yield {"kind": ENDED}


def _device_of(error: DeviceError, workers: int = 1) -> Message:
    """What is known of a device that failed under this process, and who has it."""
    return {"usable": error.usable, "why": str(error), "place": asdict(device.here(workers))}


def _traceback() -> str:
    """Of the exception that is being handled, without passwords of addresses in it."""
    return hidden(traceback.format_exc())


def reports(
    job: Job, request: Request, stop: Callable[[], bool], *, writes: bool = True
) -> Iterator[Report | None]:
    """What the train function reports; None, last, when it was stopped at a checkpoint.

    Args:
        job: names the train function, the storage and the watch.
        request: what to train.
        stop: asked after each report.
        writes: False for all ranks but the first, whose files are everybody's.
    """
    storage, key = job.storage, request.trial_key
    here, whole = storage.directory(key), job.requests[key].directory
    folder = request.directory.relative_to(whole)
    guarded(here, job.hang_after)
    passed_over = storage.fetch(key, here, folder.as_posix())
    (here / folder).mkdir(exist_ok=True)
    if writes and hang_of(here):  # before this attempt has a watch of its own there
        passed_over.append("an attempt before hung, and was ended (log.txt of the trial has where)")
    with logged(here, writes=writes) as log, Watch(here, job.hang_after) as watch:
        yield Described(at_start := describe(job.sources))
        yield from map(Noticed, passed_over)
        request = replace(request, directory=here / folder, heartbeat=watch.arm)
        with closing(job.train(request)) as training:
            for number, report in enumerate(watch.over(training)):
                if number == 0 and (now := describe(job.sources)) != at_start:
                    yield Described(now)  # a train function may import its modules when it is called
                log(report)
                if writes:
                    _store(storage, key, here, report)
                yield moved(report, here, whole)
                if stop():
                    training.close()  # writes a checkpoint of where it stands
                    if writes:
                        storage.upload(key, here, _files(here))
                    log("stopped")
                    yield None
                    return
        yield Described(describe(job.sources))
        log("ended")
    if writes:
        storage.remove_copies(key, here)


def _store(storage: Storage, key: str, here: Path, report: Report) -> None:
    """Brings the files that a report names to where the driver and later attempts find them."""
    if files := files_of(report):
        storage.upload(key, here, [*files, here / LOG])
    if isinstance(report, Checkpointed):
        storage.prune(key, here)


def _files(directory: Path) -> list[Path]:
    """What a later attempt may want of a trial's directory: all but what only this process uses."""
    own = (HANG, STOP, ".")
    return [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(own)]


# --- a group of workers -------------------------------------------------------------------------------


def _of_group(
    job: Job, request: Request, resources: Resources, preempted: Callable[[], bool]
) -> Iterator[Message]:
    """Trains in a group of processes started by Ray Train, and passes on what rank 0 tells.

    Reports come over a queue of our own, not Ray's `TuneReportCallback`, which belongs to trials that are
    functions.

    Raises:
        WorkersLostError: a process died, or Ray could not run the group.
        OutOfMemoryError: of the first rank that ran out of memory.
    """
    from ray.util.queue import Queue

    told: Any = Queue(actor_options={"num_cpus": 0})
    failures: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    errors: dict[int, Message] = {}
    trainer = _trainer(job, request, resources, told)
    guarded(job.requests[request.trial_key].directory, job.hang_after)  # this process has no watch
    thread = threading.Thread(target=_fit, args=(trainer, told, failures), daemon=True)
    thread.start()
    last: Message | None = None
    for message in _heard(told):
        if message["kind"] == _RANK_FAILED:
            errors[message["rank"]] = message
            continue
        last = message
        yield message
        if preempted() and message["kind"] not in LAST:  # the next attempt takes the marker away
            job.storage.ask_to_stop(request.trial_key)
    thread.join()
    told.shutdown()
    failure = failures.get()
    if failure is not None:
        last = _judged(failure, errors)
        if last["kind"] == DEVICE_FAILED and not last["usable"]:
            # Before it is told: until then nobody else is sent there.
            device.hold(Place(**last["place"]), resources)
        yield last
    elif last is None or last["kind"] != STOPPED:
        yield {"kind": ENDED}


def _heard(told: Any) -> Iterator[Message]:
    """What comes over the queue, which may be on a machine that is lost."""
    from ray.exceptions import RayError

    try:
        while (message := told.get()) is not None:
            yield message
    except RayError as error:
        raise WorkersLostError(str(error)) from error


def _fit(trainer: Any, told: Any, failures: queue.SimpleQueue[Exception | None]) -> None:
    failure: Exception | None = None
    try:
        trainer.fit()
    except Exception as error:  # whatever Ray raises, the trial's process must hear of the end
        failure = error
    failures.put(failure)
    told.put(None)


def _trainer(job: Job, request: Request, resources: Resources, told: Any) -> Any:
    """A Ray Train trainer whose ranks run the train function, none of it tried twice by Train itself."""
    from ray.train import RunConfig, ScalingConfig, get_context, report
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution import context as reporting
    from ray.train.v2.api.callback import UserCallback

    class Forward(UserCallback):  # type: ignore[misc]
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            told.put(metrics[0])

    def loop() -> None:
        reporting.logger.setLevel(logging.WARNING)  # or every report is told again in the log
        rank = get_context().get_world_rank()

        def stop() -> bool:
            if Rank.preempted:  # any rank's: the first sees the marker at this report or one of the next
                job.storage.ask_to_stop(request.trial_key)
            asked = rank == 0 and job.storage.stop_asked(request.trial_key)
            return bool(broadcast_from_rank_zero(asked))

        try:
            for item in reports(job, request, stop, writes=rank == 0):
                report({"kind": STOPPED} if item is None else to_wire(item))
        except Exception as error:
            more: Message = {}
            if isinstance(error, OutOfMemoryError):
                more = {"smaller": error.smaller}
            if isinstance(error, DeviceError):
                more = _device_of(error, get_context().get_local_world_size())
            told.put({"kind": _RANK_FAILED, "rank": rank, "error": _traceback(), **more})
            raise

    per_worker: dict[str, float] = {"CPU": resources.cpus, "GPU": resources.gpus}
    if resources.memory:
        per_worker["memory"] = resources.memory
    folder = job.requests[request.trial_key].directory
    return TorchTrainer(
        loop,
        torch_config=torch_config("nccl" if resources.gpus else "gloo", folder, job.hang_after),
        scaling_config=ScalingConfig(
            num_workers=request.workers, use_gpu=resources.gpus > 0, resources_per_worker=per_worker
        ),
        # A name of its own, so that Train never finds and resumes an earlier attempt's snapshot.
        run_config=RunConfig(name=uuid.uuid4().hex, storage_path=str(job.scratch), callbacks=[Forward()]),
    )


def _judged(failure: Exception, errors: Mapping[int, Message]) -> Message:
    """The last message of a group that failed by itself; raises where a process was lost.

    A rank that fails in Python says so before it ends; one that ended silently was killed, perhaps for what
    another rank's device did.
    """
    if let_down := sorted(
        (message["usable"], rank) for rank, message in errors.items() if "usable" in message
    ):
        _, rank = let_down[0]
        return {**errors[rank], "kind": DEVICE_FAILED, "error": _of_rank(rank, errors)}
    failed: Collection[int] = set(getattr(failure, "worker_failures", {}))
    silent = not failed or not set(failed) <= set(errors)
    own = {
        rank: message
        for rank, message in errors.items()
        if not any(mark in message["error"] for mark in _PEER_LOST)
    }
    if silent or not own:
        raise WorkersLostError(str(failure)) from None
    short = [rank for rank, message in own.items() if "smaller" in message]
    rank = min(short or own)
    if short:
        return {"kind": OUT_OF_MEMORY, "smaller": own[rank]["smaller"], "error": _of_rank(rank, own)}
    return {"kind": FAILED, "error": _of_rank(rank, own)}


def _of_rank(rank: int, errors: Mapping[int, Message]) -> str:
    return f"On rank {rank}:\n{errors[rank]['error']}"
