"""What a trial's process tells; with several workers it is run in tests/faults."""

import faulthandler
import queue
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablation.protocol import (
    Checkpointed,
    Described,
    Evaluated,
    EvaluationRequest,
    OutOfMemoryError,
    Progress,
    Report,
    Request,
    TrainFunction,
)
from ablation.resources import Resources
from ablation.storage import Storage, StorageError, storage_at
from ablation.worker import group, training
from ablation.worker.group import RankFailed, RankPreempted, WorkersLostError
from ablation.worker.harness import batches, messages, trial_process
from ablation.worker.messages import DeviceFailed, Ended, Failed, Failure, Message, OutOfMemory, Stopped
from ablation.worker.quarantine import Device, Fault
from ablation.worker.training import WorkerConfig

KEY = "0123456789ab"


@pytest.fixture
def config(tmp_path: Path) -> WorkerConfig:
    artifacts = tmp_path / "artifacts"
    return WorkerConfig(counts, storage_at(artifacts), artifacts, ("ablation",), (), 0.0, tmp_path)


@pytest.fixture
def request_(config: WorkerConfig) -> Request:
    evaluations = (EvaluationRequest("a", 1), EvaluationRequest("b", 2))
    return Request(KEY, "config", evaluations, config.artifacts / KEY, resources=Resources())


@dataclass
class Attempt:
    """What is needed for one attempt."""

    config: WorkerConfig
    request: Request

    def messages(self, train: TrainFunction) -> list[Message]:
        """All that it tells."""
        return list(messages(replace(self.config, train=train), self.request))


@pytest.fixture
def attempt(config: WorkerConfig, request_: Request) -> Attempt:
    return Attempt(config, request_)


def kinds(said: Iterable[Message]) -> list[type[Message]]:
    return [type(message) for message in said]


def counts(request: Request) -> Iterator[Report]:
    yield Progress(1, 2, {"loss": 0.5})
    yield Progress(2, 2)


def breaks(request: Request) -> Iterator[Report]:
    yield Progress(1, 2)
    raise FloatingPointError("loss is NaN at step 2")


def test_every_report_is_told_in_order_and_then_the_end(attempt: Attempt) -> None:
    said = attempt.messages(counts)
    assert kinds(said) == [Described, Progress, Progress, Described, Ended]
    assert said[1] == Progress(1, 2, {"loss": 0.5})


def test_an_attempt_describes_its_machine_and_the_modules_that_its_training_imported(
    attempt: Attempt,
) -> None:
    last = attempt.messages(counts)[-2]
    assert isinstance(last, Described)
    assert "ablation.worker.harness" in last.environment["modules"]
    assert last.environment["host"]


def test_modules_that_a_training_imports_when_it_is_called_are_described_before_its_first_report(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def imports(request: Request) -> Iterator[Report]:
        import_module("late_module")
        yield Progress(1, 1)

    attempt.config = replace(attempt.config, sources=("late_module",))
    said = attempt.messages(imports)
    assert kinds(said) == [Described, Described, Progress, Described, Ended]
    described = [m for m in said if isinstance(m, Described)]
    assert [list(m.environment["modules"]) for m in described[:2]] == [[], ["late_module"]]


def test_an_exception_is_a_message_with_its_traceback_and_does_not_escape(attempt: Attempt) -> None:
    said = attempt.messages(breaks)
    assert kinds(said) == [Described, Progress, Failed]
    assert isinstance(said[-1], Failed)
    assert said[-1].error.endswith("FloatingPointError: loss is NaN at step 2\n")
    assert "in breaks" in said[-1].error


def test_a_training_that_leaves_its_process_has_failed_with_its_reason(attempt: Attempt) -> None:
    def leaves(request: Request) -> Iterator[Report]:
        yield Progress(1, 2)
        sys.exit("no weights at weights.pth")

    said = attempt.messages(leaves)
    assert kinds(said) == [Described, Progress, Failed]
    assert isinstance(said[-1], Failed)
    assert said[-1].error.endswith("SystemExit: no weights at weights.pth\n")
    assert "SystemExit: no weights" in (attempt.config.artifacts / KEY / "log.txt").read_text()


def test_out_of_memory_is_told_with_what_to_try_next(attempt: Attempt) -> None:
    def full(request: Request) -> Iterator[Report]:
        yield Progress(1, 2)
        raise OutOfMemoryError("out of memory", 4)

    last = attempt.messages(full)[-1]
    assert isinstance(last, OutOfMemory)
    assert last.smaller == 4


def test_a_storage_that_is_away_is_no_failure_of_the_trial(attempt: Attempt) -> None:
    def away(request: Request) -> Iterator[Report]:
        yield Progress(1, 2)
        raise StorageError("the network is down")

    with pytest.raises(StorageError):
        attempt.messages(away)


def test_an_asked_for_stop_closes_the_training_at_a_report_so_that_it_can_save(attempt: Attempt) -> None:
    closed = []

    def endless(request: Request) -> Iterator[Report]:
        try:
            for step in range(1000):
                if step == 2:
                    attempt.config.storage.ask_to_stop(KEY)
                yield Progress(step, 1000)
        except GeneratorExit:
            closed.append(step)
            raise

    said = attempt.messages(endless)
    assert kinds(said) == [Described, Progress, Progress, Progress, Stopped]
    assert closed == [2]


def test_the_watchdog_looks_on_while_a_training_saves_its_state(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda limit, **_: limits.append(limit))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: limits.append(0))
    monkeypatch.setattr(training, "guarded", lambda *_: None)  # a process
    attempt.config = replace(attempt.config, hang_after=10.0)
    seen: list[float] = []

    def saves(request: Request) -> Iterator[Report]:
        try:
            yield Progress(1, 2)
        finally:
            seen.append(limits[-1])

    attempt.config.storage.ask_to_stop(KEY)
    assert kinds(attempt.messages(saves))[-1] is Stopped
    assert seen == [60.0]
    assert limits[-1] == 0


def test_a_stopped_training_keeps_its_files_whatever_their_names(attempt: Attempt, tmp_path: Path) -> None:
    (bucket := tmp_path / "bucket").mkdir()
    storage = storage_at(f"file://{bucket}")
    attempt.config = replace(attempt.config, storage=storage)

    def saves(request: Request) -> Iterator[Report]:
        try:
            yield Progress(1, 2)
        finally:
            (request.directory / "stopped_at.json").write_text("1")

    storage.ask_to_stop(KEY)
    assert kinds(attempt.messages(saves))[-1] is Stopped
    assert storage.download(KEY, "stopped_at.json", tmp_path / "driver").read_text() == "1"


def test_a_process_that_must_go_stops_its_training_too(attempt: Attempt) -> None:
    said = list(messages(attempt.config, attempt.request, lambda: True))
    assert kinds(said) == [Described, Progress, Stopped]


def test_nothing_in_the_trials_directory_is_touched_before_the_driver_has_the_first_report(
    attempt: Attempt,
) -> None:
    told = messages(attempt.config, attempt.request)
    assert isinstance(next(told), Described)
    assert not attempt.request.directory.exists()
    assert isinstance(next(told), Progress)
    assert attempt.request.directory.exists()


def test_files_are_stored_before_their_report_and_told_as_the_driver_knows_them(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "local").mkdir()
    (tmp_path / "far").mkdir()
    far: Storage = storage_at(f"file://{tmp_path / 'far'}")

    def saves(request: Request) -> Iterator[Report]:
        (request.directory / "1.pt").write_bytes(b"weights")
        yield Checkpointed(1, str(request.directory / "1.pt"), "")

    attempt.config = replace(attempt.config, storage=far)
    here, said = attempt.request.directory, attempt.messages(saves)
    assert said[1] == Checkpointed(1, str(here / "1.pt"), "")
    here.mkdir(parents=True)
    assert far.download(KEY, "1.pt", here).read_bytes() == b"weights"


ONE: dict[type[Message], Message] = {
    Described: Described({}),
    Progress: Progress(1, 2),
    Checkpointed: Checkpointed(1, "1.pt", ""),
    Evaluated: Evaluated("a", {}),
    Ended: Ended(),
}


def in_batches(request: Request, *told: type[Message]) -> list[list[type[Message]]]:
    return [kinds(batch) for batch in batches(iter([ONE[kind] for kind in told]), request)]


def test_messages_travel_together_where_nothing_long_lies_between_them(request_: Request) -> None:
    told = (Described, Described, Progress, Checkpointed, Evaluated, Evaluated, Described, Ended)
    assert in_batches(request_, *told) == [
        [],
        [Described, Described, Progress],
        [Checkpointed],
        [Evaluated],
        [Evaluated, Described, Ended],
    ]


@pytest.mark.parametrize("error", [WorkersLostError("killed"), StorageError("away")])
def test_a_result_that_waits_for_what_follows_is_told_before_an_error(
    error: Exception, request_: Request
) -> None:
    def told() -> Iterator[Message]:
        yield from (Evaluated("a", {}), Evaluated("b", {}))
        raise error

    travelling = batches(told(), request_)
    assert [kinds(next(travelling)) for _ in range(3)] == [[], [Evaluated], [Evaluated]]
    with pytest.raises(type(error)):
        next(travelling)


def test_a_group_starts_after_the_driver_has_heard_of_its_process(
    request_: Request,
) -> None:
    pair = replace(request_, resources=Resources(workers=2))
    assert in_batches(pair, Described, Ended) == [[], [Described], [Ended]]


def test_nothing_is_held_back_when_a_training_ends_without_its_evaluations(request_: Request) -> None:
    assert in_batches(request_, Described, Described) == [[], [Described, Described]]


def process(attempt: Attempt, resources: Resources, train: TrainFunction) -> Any:
    """The process of a trial, begun."""
    made = trial_process().__new__(trial_process())
    made._preempted, made._process, made._workers = False, None, replace(attempt.config, train=train)
    made._begin(replace(attempt.request, resources=resources))
    return made


def test_a_process_that_failed_with_a_gpu_ends_because_an_error_of_cuda_stays_with_it(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    ends: dict[float, list[bool]] = {0.0: [], 1.0: []}
    for gpus, done in ends.items():
        one = process(attempt, Resources(1, 1, gpus), breaks)
        while not isinstance(one._last, Failed):
            done.append(one.step()["done"])
    assert ends == {0.0: [False, False, True], 1.0: [False, False, False]}
    with pytest.raises(SystemExit):
        one.step()  # of the second


def test_a_request_knows_its_workers_and_gpus(request_: Request) -> None:
    request = replace(request_, resources=Resources(2, 4, 3.0))
    assert (request.workers, request.gpus) == (2, 3.0)
    probed = replace(request_, resources=None)
    assert (probed.workers, probed.gpus) == (1, None)


# --- a group ---------------------------------------------------------------------------------------------


class FakeQueue(queue.SimpleQueue[Any]):
    """Ray's queue, in this process."""

    def __init__(self, actor_options: dict[str, Any]) -> None:
        super().__init__()

    def shutdown(self) -> None:
        pass


def group_of(
    attempt: Attempt, tell: Callable[[FakeQueue], None], monkeypatch: pytest.MonkeyPatch
) -> list[Message]:
    """What a group passes on whose ranks put messages into the queue."""

    def trainer(config: WorkerConfig, request: Request, told: FakeQueue) -> Any:
        return SimpleNamespace(fit=lambda: tell(told))

    monkeypatch.setattr("ray.util.queue.Queue", FakeQueue)
    monkeypatch.setattr(group, "_trainer", trainer)
    attempt.request.directory.mkdir(parents=True)
    pair = replace(attempt.request, resources=Resources(workers=2))
    return list(messages(attempt.config, pair))


def test_reports_of_the_first_rank_pass_through_and_then_comes_the_end(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Progress(1, 2, {"loss": 0.5})
    assert group_of(attempt, lambda told: told.put(report), monkeypatch) == [report, Ended()]
    assert not attempt.config.storage.stop_asked(KEY)


def test_a_rank_that_is_asked_to_end_makes_its_group_stop_at_a_checkpoint(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert group_of(attempt, lambda told: told.put(RankPreempted()), monkeypatch) == [Ended()]
    assert attempt.config.storage.stop_asked(KEY)


def test_a_rank_that_is_asked_to_end_when_its_group_has_stopped_stops_no_other_attempt(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(told: FakeQueue) -> None:
        told.put(Stopped())
        told.put(RankPreempted())

    assert group_of(attempt, tell, monkeypatch) == [Stopped()]
    assert not attempt.config.storage.stop_asked(KEY)


def test_a_group_whose_rank_failed_says_so_at_the_end(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(told: FakeQueue) -> None:
        told.put(RankFailed(0, Failed("ValueError: zero")))
        raise GroupError(0)

    assert group_of(attempt, tell, monkeypatch) == [Failed("On rank 0:\nValueError: zero")]


# --- how a group ended ----------------------------------------------------------------------------------


class GroupError(Exception):
    def __init__(self, *ranks: int) -> None:
        super().__init__("the group failed")
        self.worker_failures = dict.fromkeys(ranks, ValueError())


def test_a_group_that_failed_in_python_names_the_lowest_rank_that_did() -> None:
    failures: dict[int, Failure] = {1: Failed("ValueError: one"), 0: Failed("ValueError: zero")}
    assert group.verdict(GroupError(0, 1), failures) == Failed("On rank 0:\nValueError: zero")


def test_a_group_with_one_rank_out_of_memory_is_out_of_memory() -> None:
    failures: dict[int, Failure] = {0: Failed("RuntimeError: something"), 1: OutOfMemory("too much", 2)}
    assert group.verdict(GroupError(0, 1), failures) == OutOfMemory("On rank 1:\ntoo much", 2)


def test_a_group_under_which_devices_failed_names_one_that_cannot_be_used() -> None:
    a, b = (Fault(Device(node, "host", "10.0.0.1", ("0",), 1), "ECC") for node in "ab")
    failures: dict[int, Failure] = {
        0: Failed("NCCL communicator was aborted"),
        1: DeviceFailed("CUDA error", a, usable=True),
        2: DeviceFailed("CUDA error", b, usable=False),
        3: Failed("RuntimeError: something"),
    }
    ended = group.verdict(GroupError(0, 1, 2, 3, 4), failures)  # rank 4 died without a word
    assert ended == DeviceFailed("On rank 2:\nCUDA error", b, usable=False)


@pytest.mark.parametrize(
    ("failed", "failures"),
    [
        (GroupError(0, 1), {0: Failed("RuntimeError: something")}),  # rank 1 died without a word
        (GroupError(0), {0: Failed("RuntimeError: Connection closed by peer [127.0.0.1]:1234")}),
        (GroupError(0), {0: Failed("ablation.storage.StorageError: the network is down")}),
        (RuntimeError("the controller died"), {}),
    ],
)
def test_a_group_that_lost_a_process_or_the_storage_may_start_again(
    failed: Exception, failures: dict[int, Failure]
) -> None:
    with pytest.raises(WorkersLostError):
        group.verdict(failed, failures)
