"""Two thin harnesses around a train function: what runs in the processes that Ray starts.

A trial with one worker runs in the process of its Tune trial, which the next trial uses again. One with
several starts a Ray Train group that runs the same train function on every rank; every rank yields the
same sequence of reports, and those of rank 0 are passed on. Either way a report reaches the driver as the
dictionary that `protocol.to_wire` makes.

A Python exception is a result like others: it is reported (`FAILED`) and the process goes on to the next
trial. Only a process that dies makes Tune start the trial again.
"""

from __future__ import annotations

import threading
import traceback
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablation.protocol import Request, TrainFunction, to_wire

FAILED = "failed"
"""The `kind` of the message that carries a traceback; the other kinds are those of the protocol."""

_RANK_FAILED = "rank failed"
# What a rank's own exception says when it failed only because another rank's process died.
_PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


class WorkersLostError(RuntimeError):
    """A process of a trial's worker group died; the trial can go on from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the trial processes get, once for all trials.

    Attributes:
        requests: by index.
        gpus_per_worker: may be a fraction for trials of one worker.
        scratch: folder for what Ray Train leaves; of no use afterwards.
    """

    train: TrainFunction
    requests: Sequence[Request]
    gpus_per_worker: float
    scratch: Path


def trainable(job: Job) -> Callable[[dict[str, Any]], None]:
    """The Tune function of all trials; its config holds `index` and `done` (keys of evaluations)."""

    def run_trial(config: dict[str, Any]) -> None:
        request = without(job.requests[config["index"]], config["done"])
        error = run_group(job, request) if request.workers > 1 else run_here(job.train, request)
        if error:
            _send({"kind": FAILED, "error": error})

    return run_trial


def without(request: Request, done: Collection[str]) -> Request:
    """The request without the evaluations that an earlier attempt has done."""
    return replace(request, evaluations=tuple(e for e in request.evaluations if e.key not in done))


def run_here(train: TrainFunction, request: Request) -> str | None:
    """Trains in this process, the Tune trial's own; returns the traceback when it fails."""
    try:
        for report in train(request):
            _send(to_wire(report))
    except Exception:
        return traceback.format_exc()
    return None


def run_group(job: Job, request: Request) -> str | None:
    """Trains in a group of processes started by Ray Train; returns the traceback when it fails.

    Reports come over a queue of our own, not Ray's `TuneReportCallback`: that one puts them into Tune's
    session behind the back of this thread, and a last report still on its way when the group ends
    collides there with Tune's own end message.

    Raises:
        WorkersLostError: a process died, or Ray could not run the group.
    """
    from ray.train import TrainingFailedError
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})
    errors: dict[int, str] = {}
    sender = threading.Thread(target=_send_all, args=(queue, errors), daemon=True)
    sender.start()
    failure: Exception | None = None
    try:
        _trainer(job, request, queue).fit()
    except TrainingFailedError as error:
        failure = error
    finally:
        queue.put(None)
        sender.join()
        queue.shutdown()
    return None if failure is None else _judged(failure, errors)


def _trainer(job: Job, request: Request, queue: Any) -> Any:
    """A Ray Train trainer whose ranks run the train function, none of it tried twice by Train itself."""
    from ray.train import RunConfig, ScalingConfig, get_context, report
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.callback import UserCallback

    train = job.train

    class Forward(UserCallback):  # type: ignore[misc]
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            queue.put(metrics[0])

    def loop() -> None:
        try:
            for item in train(request):
                report(to_wire(item))
        except Exception:
            rank = get_context().get_world_rank()
            queue.put({"kind": _RANK_FAILED, "rank": rank, "error": traceback.format_exc()})
            raise

    gpus = job.gpus_per_worker
    return TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=request.workers, use_gpu=gpus > 0, resources_per_worker={"CPU": 1, "GPU": gpus}
        ),
        # A name of its own, so that Train never finds and resumes an earlier attempt's snapshot.
        run_config=RunConfig(name=uuid.uuid4().hex, storage_path=str(job.scratch), callbacks=[Forward()]),
    )


def _send(message: Mapping[str, Any]) -> None:
    """To the driver; returns when the driver has it."""
    from ray import tune

    tune.report(dict(message))


def _send_all(queue: Any, errors: dict[int, str]) -> None:
    """Passes on what the group puts in its queue, until None; keeps the ranks' own tracebacks here."""
    while (message := queue.get()) is not None:
        if message["kind"] == _RANK_FAILED:
            errors[message["rank"]] = message["error"]
        else:
            _send(message)


def _judged(failure: Exception, errors: Mapping[int, str]) -> str:
    """The traceback of a group that failed by itself; raises where a process was lost.

    A rank that fails in Python says so before it ends; one that ended silently was killed.
    """
    failed = set(getattr(failure, "worker_failures", {}))
    silent = not failed or not failed <= set(errors)
    own = {rank: text for rank, text in errors.items() if not any(mark in text for mark in _PEER_LOST)}
    if silent or not own:
        raise WorkersLostError(str(failure)) from None
    rank = min(own)
    return f"On rank {rank}:\n{own[rank]}"
