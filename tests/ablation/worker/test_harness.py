"""What a trial's process tells; with several workers it is run in tests/faults."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ablation.protocol import (
    Checkpointed,
    EvaluationRequest,
    OutOfMemoryError,
    Progress,
    Report,
    Request,
    TrainFunction,
)
from ablation.resources import Resources
from ablation.storage import Storage, StorageError, storage_at
from ablation.worker import harness as worker
from ablation.worker.harness import (
    DEVICE_FAILED,
    ENDED,
    FAILED,
    OUT_OF_MEMORY,
    STOPPED,
    Job,
    Message,
    Order,
    batches,
    messages,
    trial_process,
)

KEY = "0123456789ab"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    evaluations = (EvaluationRequest("a", 1), EvaluationRequest("b", 2))
    request = Request(KEY, "config", evaluations, tmp_path / "artifacts" / KEY)
    return Job(counts, {KEY: request}, storage_at(tmp_path / "artifacts"), ("ablation",), 0.0, tmp_path)


ORDER = Order(KEY, (), None, Resources())


def told(job: Job, train: TrainFunction, order: Order = ORDER) -> list[Message]:
    return list(messages(replace(job, train=train), order))


def counts(request: Request) -> Iterator[Report]:
    yield Progress(1, 2, {"loss": 0.5})
    yield Progress(2, 2)


def breaks(request: Request) -> Iterator[Report]:
    yield Progress(1, 2)
    raise FloatingPointError("loss is NaN at step 2")


def test_every_report_is_told_in_order_and_then_the_end(job: Job) -> None:
    said = told(job, counts)
    assert [m["kind"] for m in said] == ["described", "progress", "progress", "described", ENDED]
    assert said[1] == {"kind": "progress", "step": 1, "total": 2, "metrics": {"loss": 0.5}}


def test_an_attempt_describes_the_machine_and_the_modules_that_its_training_imported(job: Job) -> None:
    last = told(job, counts)[-2]["environment"]
    assert "ablation.worker.harness" in last["modules"]
    assert last["host"]


def test_modules_that_a_training_imports_when_it_is_called_are_described_before_its_first_report(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def imports(request: Request) -> Iterator[Report]:
        import_module("late_module")
        yield Progress(1, 1)

    said = told(replace(job, sources=("late_module",)), imports)
    assert [m["kind"] for m in said] == ["described", "described", "progress", "described", ENDED]
    assert [list(m["environment"]["modules"]) for m in said[:2]] == [[], ["late_module"]]


def test_an_exception_is_a_message_with_its_traceback_and_does_not_escape(job: Job) -> None:
    said = told(job, breaks)
    assert [m["kind"] for m in said] == ["described", "progress", FAILED]
    assert said[-1]["error"].endswith("FloatingPointError: loss is NaN at step 2\n")
    assert "in breaks" in said[-1]["error"]


def test_want_of_memory_is_told_with_what_to_try_next(job: Job) -> None:
    def full(request: Request) -> Iterator[Report]:
        yield Progress(1, 2)
        raise OutOfMemoryError("out of memory", 4)

    last = told(job, full)[-1]
    assert (last["kind"], last["smaller"]) == (OUT_OF_MEMORY, 4)


def test_a_storage_that_is_away_is_no_failure_of_the_trial(job: Job) -> None:
    def away(request: Request) -> Iterator[Report]:
        yield Progress(1, 2)
        raise StorageError("the network is down")

    with pytest.raises(StorageError):
        told(job, away)


def test_an_asked_for_stop_closes_the_training_at_a_report_so_that_it_can_save(job: Job) -> None:
    closed = []

    def endless(request: Request) -> Iterator[Report]:
        try:
            for step in range(1000):
                if step == 2:
                    job.storage.ask_to_stop(KEY)
                yield Progress(step, 1000)
        except GeneratorExit:
            closed.append(step)
            raise

    said = told(job, endless)
    assert [m["kind"] for m in said] == ["described", "progress", "progress", "progress", STOPPED]
    assert closed == [2]


def test_a_process_that_must_go_stops_its_training_too(job: Job) -> None:
    said = list(messages(job, ORDER, lambda: True))
    assert [m["kind"] for m in said] == ["described", "progress", STOPPED]


def test_an_order_travels_as_plain_data_and_changes_the_request(job: Job) -> None:
    order = Order(KEY, ("a",), 8, Resources(2, 3.0, 1.0, 5), "attempt-2")
    assert Order.from_config(order.to_config()) == order
    request = order.applied_to(job.requests[KEY])
    assert request.evaluations == (EvaluationRequest("b", 2),)
    assert (request.workers, request.micro_batch) == (2, 8)
    assert request.directory == job.requests[KEY].directory / "attempt-2"


def test_files_are_stored_before_their_report_and_told_as_the_driver_knows_them(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "local").mkdir()
    (tmp_path / "far").mkdir()
    far: Storage = storage_at(f"file://{tmp_path / 'far'}")

    def saves(request: Request) -> Iterator[Report]:
        (request.directory / "1.pt").write_bytes(b"weights")
        yield Checkpointed(1, str(request.directory / "1.pt"), "")

    said = told(replace(job, storage=far), saves)
    here = job.requests[KEY].directory
    assert said[1]["path"] == str(here / "1.pt")
    here.mkdir(parents=True)
    assert far.download(KEY, "1.pt", here).read_bytes() == b"weights"


def test_messages_travel_together_where_nothing_long_lies_between_them() -> None:
    kinds = ["described", "progress", "checkpointed", "evaluated", "evaluated", "described", ENDED]
    parts = list(batches(({"kind": kind} for kind in kinds), evaluations=2))
    assert [[m["kind"] for m in part] for part in parts] == [
        ["described", "progress"],
        ["checkpointed"],
        ["evaluated"],
        ["evaluated", "described", ENDED],
    ]


def test_nothing_is_held_back_when_a_training_ends_without_its_evaluations() -> None:
    assert list(batches(iter([{"kind": "described"}]), 1)) == [[{"kind": "described"}]]


def process(job: Job, resources: Resources, train: TrainFunction) -> Any:
    """The process of a trial, begun."""
    made = trial_process().__new__(trial_process())
    made._preempted, made._job = False, replace(job, train=train)
    made._begin(Order(KEY, (), None, resources).to_config())
    return made


def test_a_process_that_failed_with_a_gpu_goes_since_an_error_of_cuda_stays_with_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    ends: dict[float, list[bool]] = {0.0: [], 1.0: []}
    for gpus, done in ends.items():
        one = process(job, Resources(1, 1, gpus), breaks)
        while one._busy:
            done.append(one.step()["done"])
    assert ends == {0.0: [False, True], 1.0: [False, False]}, "asked for a step more, the process leaves"
    with pytest.raises(SystemExit):
        one.step()


def test_a_trial_knows_which_gpus_it_holds(job: Job) -> None:
    request = Order(KEY, (), None, Resources(2, 4, 3.0)).applied_to(job.requests[KEY])
    assert (request.workers, request.gpus) == (2, 3.0)


# --- judging a group ------------------------------------------------------------------------------------


class GroupError(Exception):
    def __init__(self, *ranks: int) -> None:
        super().__init__("the group failed")
        self.worker_failures = dict.fromkeys(ranks, ValueError())


def wrong(text: str, **more: Any) -> Message:
    return {"kind": "rank failed", "error": text, **more}


def test_a_group_that_failed_in_python_names_the_lowest_rank_that_did() -> None:
    errors = {1: wrong("ValueError: one"), 0: wrong("ValueError: zero")}
    said = worker._judged(GroupError(0, 1), errors)
    assert said == {"kind": FAILED, "error": "On rank 0:\nValueError: zero"}


def test_a_group_with_one_rank_out_of_memory_is_out_of_memory() -> None:
    errors = {0: wrong("RuntimeError: something"), 1: wrong("too much", smaller=2)}
    said = worker._judged(GroupError(0, 1), errors)
    assert said == {"kind": OUT_OF_MEMORY, "smaller": 2, "error": "On rank 1:\ntoo much"}


def test_a_group_that_a_device_let_down_names_the_one_that_works_no_more() -> None:
    errors = {
        0: wrong("NCCL communicator was aborted"),
        1: wrong("CUDA error", usable=True, why="launch failure", place={"node": "a"}),
        2: wrong("CUDA error", usable=False, why="ECC", place={"node": "b"}),
        3: wrong("RuntimeError: something"),
    }
    said = worker._judged(GroupError(0, 1, 2, 3, 4), errors)  # rank 4 died without a word
    assert said == {**errors[2], "kind": DEVICE_FAILED, "error": "On rank 2:\nCUDA error"}


@pytest.mark.parametrize(
    ("failed", "errors"),
    [
        (GroupError(0, 1), {0: wrong("RuntimeError: something")}),  # rank 1 died without a word
        (GroupError(0), {0: wrong("RuntimeError: Connection closed by peer [127.0.0.1]:1234")}),
        (GroupError(0), {0: wrong("ablation.storage.StorageError: the network is down")}),
        (RuntimeError("the controller died"), {}),
    ],
)
def test_a_group_that_lost_a_process_or_the_storage_may_start_again(
    failed: Exception, errors: dict[int, Message]
) -> None:
    with pytest.raises(worker.WorkersLostError):
        worker._judged(failed, errors)
