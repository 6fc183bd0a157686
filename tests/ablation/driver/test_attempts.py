"""The driver's book-keeping of trials, without Ray."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.driver.attempts import Desk, StopNow
from ablation.driver.display import Board, PlainDisplay
from ablation.errors import UserError
from ablation.protocol import Checkpointed, Evaluated, Progress, to_wire
from ablation.storage import StorageError, storage_at
from ablation.storage.names import HANG
from ablation.store import Store
from ablation.worker.harness import ENDED, FAILED, OUT_OF_MEMORY, STOPPED
from ablation.workspace import Workspace
from tests.support.toy_driver import Toy, planned


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.db")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def desk(store: Store, tmp_path: Path, said: list[str]) -> Desk:
    plan, workspace = planned([Toy("one"), Toy("two")], store), Workspace.at(tmp_path)
    trials = {trial.key: trial for trial in plan.trials}
    listener = PlainDisplay(Board(plan), said.append)
    storage = storage_at(workspace.artifacts)
    return Desk(trials, store, storage, workspace, listener, {}, max_retries=1, grace=60.0)


@pytest.fixture
def one(desk: Desk) -> str:
    """A trial, claimed."""
    key = next(iter(desk.trials))
    assert desk.claim(key)
    return key


def state(store: Store, key: str) -> tuple[str, list[str]]:
    return store.trial_states()[key].state, [attempt.state for attempt in store.attempts([key])]


def test_a_trial_is_claimed_recorded_and_finished(store: Store, desk: Desk, one: str) -> None:
    wanted = desk.trials[one].evaluations[0].key
    desk.receive(one, [to_wire(Progress(4, 4, {"loss": 0.5}))])
    desk.receive(one, [to_wire(Evaluated(wanted, {"AP": 40.0}))])
    desk.receive(one, [{"kind": ENDED}])
    assert state(store, one) == ("COMPLETE", ["COMPLETE"])
    assert store.evaluations([wanted])[wanted].metrics == {"AP": 40.0}
    assert desk.finished == [one]


def test_an_attempt_says_what_data_and_weights_it_rests_on(store: Store, desk: Desk, one: str) -> None:
    assert store.attempts([one])[0].provenance == {"inputs": {}}


def test_a_trial_that_another_driver_has_claimed_is_left_alone(store: Store, desk: Desk, one: str) -> None:
    other = replace(desk, running={})
    assert not other.claim(one)
    assert other.running == {}


def test_a_trial_that_failed_takes_no_more_messages(store: Store, desk: Desk, one: str) -> None:
    desk.receive(one, [{"kind": FAILED, "error": "ValueError: broken"}])
    desk.receive(one, [{"kind": ENDED}])
    assert state(store, one) == ("FAILED", ["FAILED"])
    assert desk.failed == {one: "ValueError: broken"}


def test_a_lost_trial_may_start_again_as_a_new_attempt(store: Store, desk: Desk, one: str) -> None:
    desk.lose(one, "killed")
    assert desk.claim(one)
    assert state(store, one) == ("RUNNING", ["INTERRUPTED", "RUNNING"])
    assert store.notices(one) == ["killed"]


def test_a_trial_that_is_lost_again_and_again_without_getting_on_fails(
    store: Store, desk: Desk, one: str
) -> None:
    desk.lose(one, "killed")
    desk.claim(one)
    desk.lose(one, "killed again")
    assert state(store, one) == ("FAILED", ["INTERRUPTED", "FAILED"])
    assert desk.failed == {one: "killed again"}


def test_a_new_checkpoint_between_two_losses_gives_the_trial_its_retries_back(
    store: Store, desk: Desk, one: str, tmp_path: Path
) -> None:
    for step in range(1, 5):
        path = desk.workspace.trial_directory(one) / f"{step}.pt"
        desk.receive(one, [to_wire(Checkpointed(step, str(path), ""))])
        desk.lose(one, "killed")
        assert desk.claim(one)
    assert state(store, one)[0] == "RUNNING"


def test_a_lost_trial_that_hung_says_so_and_its_log_has_where(
    store: Store, desk: Desk, one: str, tmp_path: Path
) -> None:
    directory = desk.storage.directory(one)
    (directory / f"{HANG}.123").write_text("Thread 0x1: in all_reduce")
    desk.lose(one, "the process died")
    assert "It hung, and was ended" in store.notices(one)[0]
    assert "in all_reduce" in (directory / "log.txt").read_text()
    assert not list(directory.glob(f"{HANG}*"))


def test_want_of_memory_makes_the_next_attempt_smaller_and_says_so(
    store: Store, desk: Desk, one: str, said: list[str]
) -> None:
    desk.receive(one, [{"kind": OUT_OF_MEMORY, "smaller": 4, "error": "out of memory"}])
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])
    assert store.trial_states()[one].micro_batch == 4
    assert "goes on with 4 images at a time and the same total batch" in said[-1]


def test_want_of_memory_for_a_single_image_fails_the_trial(store: Store, desk: Desk, one: str) -> None:
    desk.receive(one, [{"kind": OUT_OF_MEMORY, "smaller": None, "error": "out of memory"}])
    assert state(store, one) == ("FAILED", ["FAILED"])


def test_a_stopped_trial_waits_and_is_no_loss(store: Store, desk: Desk, one: str) -> None:
    desk.ask_to_stop(one)
    assert desk.storage.stop_asked(one)
    desk.receive(one, [{"kind": STOPPED}])
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])
    assert desk.losses == {}
    assert desk.claim(one)
    assert not desk.storage.stop_asked(one), "the next attempt would stop at once"


def test_a_cancelled_trial_stays_cancelled_when_its_attempt_ends(store: Store, desk: Desk, one: str) -> None:
    store.cancel([one])
    desk.receive(one, [{"kind": STOPPED}])
    assert state(store, one) == ("CANCELLED", ["INTERRUPTED"])


def test_an_attempt_that_another_driver_took_over_is_let_go(
    store: Store, desk: Desk, one: str, said: list[str]
) -> None:
    store.reclaim_all()
    desk.receive(one, [to_wire(Progress(1, 4))])
    assert desk.running == {}
    assert "another driver has taken it over" in said[-1]


def test_closing_leaves_what_ran_waiting(store: Store, desk: Desk, one: str) -> None:
    desk.close()
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])


def test_closing_passes_over_an_attempt_that_has_ended_elsewhere(store: Store, desk: Desk, one: str) -> None:
    store.finish(desk.running[one])
    desk.close()
    assert state(store, one) == ("WAITING", ["COMPLETE"])


def test_an_interrupted_run_first_lets_its_trials_write_a_checkpoint(
    desk: Desk, one: str, said: list[str]
) -> None:
    desk.receive(one, [to_wire(Progress(1, 4))])
    desk.interrupted = True
    desk.check()
    assert desk.storage.stop_asked(one)
    assert said[-1] == "Stopping; once more to end at once."
    desk.receive(one, [{"kind": STOPPED}])
    with pytest.raises(StopNow):
        desk.check()


def test_an_interrupted_run_asks_again_where_the_storage_was_away(
    desk: Desk, one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageError("the bucket does not answer")

    desk.receive(one, [to_wire(Progress(1, 4))])
    desk.interrupted = True
    monkeypatch.setattr(type(desk.storage), "ask_to_stop", away)
    desk.check()
    assert not desk.stopping
    monkeypatch.undo()
    monkeypatch.setattr(desk, "ask_at", 0.0)
    desk.check()
    assert desk.storage.stop_asked(one)


def test_an_interrupted_run_waits_for_no_process_that_has_not_started(desk: Desk, one: str) -> None:
    desk.interrupted = True
    with pytest.raises(StopNow):
        desk.check()


def test_an_interrupted_run_ends_when_its_grace_is_over(desk: Desk, one: str) -> None:
    desk.receive(one, [to_wire(Progress(1, 4))])
    desk.interrupted, desk.deadline = True, time.monotonic() - 1
    with pytest.raises(StopNow):
        desk.check()


def test_an_error_of_the_store_ends_the_run_and_nothing_is_written_after_it(
    store: Store, desk: Desk, one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "record", lambda *_: (_ for _ in ()).throw(UserError("disk is full")))
    desk.guard(desk.receive, one, [to_wire(Progress(1, 4))])
    desk.guard(desk.receive, one, [{"kind": ENDED}])
    assert state(store, one)[0] == "RUNNING"
    assert str(desk.failure) == "disk is full"
    with pytest.raises(StopNow):
        desk.check()


@pytest.mark.parametrize(
    "message", [{"kind": ENDED}, {"kind": FAILED, "error": "boom"}, to_wire(Progress(1, 4))]
)
def test_an_end_that_the_store_did_not_take_leaves_the_attempt_to_be_released(
    store: Store, desk: Desk, one: str, monkeypatch: pytest.MonkeyPatch, message: dict[str, object]
) -> None:
    with monkeypatch.context() as broken:
        for name in ("finish", "fail", "record"):
            broken.setattr(store, name, lambda *_: (_ for _ in ()).throw(UserError("disk is full")))
        desk.guard(desk.receive, one, [message])
    assert str(desk.failure) == "disk is full"
    desk.close()
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])


def test_reports_that_come_with_the_end_are_told_before_it(
    store: Store, desk: Desk, one: str, said: list[str]
) -> None:
    wanted = desk.trials[one].evaluations[0].key
    desk.receive(one, [to_wire(Evaluated(wanted, {"AP": 40.0})), {"kind": ENDED}])
    assert state(store, one) == ("COMPLETE", ["COMPLETE"])
    assert store.evaluations([wanted])[wanted].metrics == {"AP": 40.0}
    assert "AP 40.0" in next(line for line in said if "finished" in line)


def test_an_end_with_a_report_that_makes_no_sense_is_a_failure(store: Store, desk: Desk, one: str) -> None:
    desk.receive(one, [to_wire(Evaluated("nobody asked", {"AP": 1.0})), {"kind": ENDED}])
    assert state(store, one) == ("FAILED", ["FAILED"])
    assert (desk.finished, desk.done.get(one, [])) == ([], [])


def test_a_report_that_makes_no_sense_fails_its_trial_and_nothing_else(
    store: Store, desk: Desk, one: str
) -> None:
    desk.guard(desk.receive, one, [to_wire(Evaluated("nobody asked", {"AP": 1.0}))])
    assert desk.failure is None
    assert state(store, one) == ("FAILED", ["FAILED"])


def test_a_storage_that_is_away_at_the_start_of_an_attempt_does_not_leave_it_running(
    store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = next(iter(desk.trials))

    class Away:
        def clear_stop(self, trial_key: str) -> None:
            raise StorageError("the bucket cannot be reached")

        def probe(self) -> None:
            self.clear_stop("")

    monkeypatch.setattr(desk, "storage", Away())
    with pytest.raises(StorageError):
        desk.claim(key)
    assert state(store, key) == ("WAITING", ["INTERRUPTED"])
    assert desk.losses == {}


def test_a_driver_that_was_cut_off_itself_gives_others_time_to_come_back(
    store: Store, desk: Desk, one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reclaimed: list[bool] = []
    monkeypatch.setattr(store, "reclaim_silent", lambda: reclaimed.append(True))
    desk.beaten -= 60
    desk.reclaim()
    assert not reclaimed
    desk.patient_until = 0.0
    desk.reclaim()
    assert reclaimed
