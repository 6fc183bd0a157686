"""The attempts of a driver, from their claim to how they end, without Ray."""

from dataclasses import replace
from pathlib import Path

import pytest

from ablation.driver.attempts import Attempt, AttemptManager
from ablation.driver.display import Board, PlainDisplay
from ablation.driver.heartbeat import Heartbeat
from ablation.driver.shutdown import Shutdown, StopRun
from ablation.errors import UserError
from ablation.plan import Plan, PlannedTrial
from ablation.protocol import Checkpointed, Evaluated, Progress
from ablation.storage import StorageError, storage_at
from ablation.storage.names import HANG
from ablation.store import Store
from ablation.worker.messages import Ended, Failed, Message, OutOfMemory, Stopped
from ablation.workspace import Workspace
from tests.support.toy_driver import Toy, planned


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.db")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def plan(store: Store) -> Plan:
    return planned([Toy("one"), Toy("two")], store)


@pytest.fixture
def manager(store: Store, plan: Plan, tmp_path: Path, said: list[str]) -> AttemptManager:
    workspace = Workspace.at(tmp_path)
    listener = PlainDisplay(Board(plan), said.append)
    return AttemptManager(store, storage_at(workspace.artifacts), workspace, listener, {}, max_retries=1)


@pytest.fixture
def one(manager: AttemptManager, plan: Plan) -> Attempt:
    """An attempt, claimed."""
    return claimed(manager, plan.trials[0])


def claimed(manager: AttemptManager, trial: PlannedTrial) -> Attempt:
    attempt = manager.claim(trial)
    assert attempt is not None
    return attempt


def state(store: Store, attempt: Attempt) -> tuple[str, list[str]]:
    key = attempt.key
    return store.trial_states()[key].state, [row.state for row in store.attempts([key])]


def test_a_trial_is_claimed_recorded_and_finished(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    wanted = one.trial.evaluations[0].key
    manager.on_messages(one, [Progress(4, 4, {"loss": 0.5})])
    manager.on_messages(one, [Evaluated(wanted, {"AP": 40.0})])
    manager.on_messages(one, [Ended()])
    assert state(store, one) == ("COMPLETE", ["COMPLETE"])
    assert store.evaluations([wanted])[wanted].metrics == {"AP": 40.0}
    assert manager.finished == [one.key]


def test_an_attempt_says_what_data_and_weights_it_rests_on(
    store: Store, plan: Plan, manager: AttemptManager
) -> None:
    config = '{"data": {"fingerprint": "3f"}, "weights": {"sha256": "9a"}, "steps": 4}'
    claimed(manager, replace(plan.trials[0], config_json=config))
    (row,) = store.attempts([plan.trials[0].key])
    assert row.provenance == {"inputs": {"data.fingerprint": "3f", "weights.sha256": "9a"}}


def test_a_trial_that_another_driver_has_claimed_is_left_alone(manager: AttemptManager, one: Attempt) -> None:
    other = replace(manager, running={})
    assert other.claim(one.trial) is None
    assert other.running == {}


def test_a_trial_that_failed_has_no_running_attempt_any_more(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    assert manager.find(one.key, one.id) is one
    manager.on_messages(one, [Failed("ValueError: broken")])
    assert manager.find(one.key, one.id) is None
    assert state(store, one) == ("FAILED", ["FAILED"])
    assert manager.failed == {one.key: "ValueError: broken"}


def test_a_lost_trial_may_start_again_as_a_new_attempt(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    manager.on_worker_lost(one, "killed")
    again = claimed(manager, one.trial)
    assert state(store, again) == ("RUNNING", ["INTERRUPTED", "RUNNING"])
    assert store.notices(one.key) == ["killed"]
    assert manager.find(one.key, one.id) is None
    assert manager.find(one.key, again.id) is again


def test_a_trial_that_is_lost_again_without_a_new_checkpoint_fails(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    manager.on_worker_lost(one, "killed")
    manager.on_worker_lost(claimed(manager, one.trial), "killed again")
    assert state(store, one) == ("FAILED", ["INTERRUPTED", "FAILED"])
    assert manager.failed == {one.key: "killed again"}


def test_a_new_checkpoint_between_two_losses_gives_the_trial_its_retries_back(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    attempt = one
    for step in range(1, 5):
        path = manager.workspace.trial_directory(one.key) / f"{step}.pt"
        manager.on_messages(attempt, [Checkpointed(step, str(path), "")])
        manager.on_worker_lost(attempt, "killed")
        attempt = claimed(manager, one.trial)
    assert state(store, one)[0] == "RUNNING"


def test_a_lost_trial_that_hung_says_so_and_its_log_has_where(
    store: Store, manager: AttemptManager, one: Attempt, tmp_path: Path
) -> None:
    directory = manager.storage.directory(one.key)
    (directory / f"{HANG}.123").write_text("Thread 0x1: in all_reduce")
    manager.on_worker_lost(one, "the process died")
    assert "It hung and was ended" in store.notices(one.key)[0]
    assert "in all_reduce" in (directory / "log.txt").read_text()
    assert not list(directory.glob(f"{HANG}*"))


def test_too_little_memory_makes_the_next_attempt_smaller_and_says_so(
    store: Store, manager: AttemptManager, one: Attempt, said: list[str]
) -> None:
    manager.on_messages(one, [OutOfMemory("out of memory", 4)])
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])
    assert store.trial_states()[one.key].micro_batch == 4
    assert "continues with a micro-batch of 4 and the same total batch" in said[-1]


def test_too_little_memory_for_a_single_image_fails_the_trial(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    manager.on_messages(one, [OutOfMemory("out of memory", None)])
    assert state(store, one) == ("FAILED", ["FAILED"])


def test_a_stopped_trial_waits_and_is_no_loss(store: Store, manager: AttemptManager, one: Attempt) -> None:
    manager.ask_to_stop(one)
    assert manager.storage.stop_asked(one.key)
    manager.on_messages(one, [Stopped()])
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])
    assert claimed(manager, one.trial).losses == 0
    assert not manager.storage.stop_asked(one.key), "the next attempt would stop at once"


def test_a_cancelled_trial_stays_cancelled_when_its_attempt_ends(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    store.cancel([one.key])
    manager.on_messages(one, [Stopped()])
    assert state(store, one) == ("CANCELLED", ["INTERRUPTED"])


def test_an_attempt_that_another_driver_took_over_is_let_go(
    store: Store, manager: AttemptManager, one: Attempt, said: list[str]
) -> None:
    store.reclaim_all()
    manager.on_messages(one, [Progress(1, 4)])
    assert manager.running == {}
    assert "another driver has taken it over" in said[-1]


def test_closing_leaves_what_ran_waiting(store: Store, manager: AttemptManager, one: Attempt) -> None:
    manager.close()
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])


def test_closing_passes_over_an_attempt_that_has_ended_elsewhere(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    store.finish(one.id)
    manager.close()
    assert state(store, one) == ("WAITING", ["COMPLETE"])


def test_an_interrupted_run_first_lets_its_trials_write_a_checkpoint(
    manager: AttemptManager, one: Attempt, said: list[str]
) -> None:
    manager.on_messages(one, [Progress(1, 4)])
    shutdown = Shutdown(grace=60.0)
    shutdown.poll(manager)
    assert manager.storage.stop_asked(one.key)
    assert said[-1] == "Stopping; once more to end at once."
    manager.on_messages(one, [Stopped()])
    with pytest.raises(StopRun):
        shutdown.poll(manager)


def test_an_interrupted_run_asks_again_where_the_storage_was_away(
    manager: AttemptManager, one: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageError("the bucket does not answer")

    manager.on_messages(one, [Progress(1, 4)])
    shutdown = Shutdown(grace=60.0)
    with monkeypatch.context() as broken:
        broken.setattr(type(manager.storage), "ask_to_stop", away)
        shutdown.poll(manager)
    assert not one.stop_requested
    shutdown._ask_at = 0.0
    shutdown.poll(manager)
    assert one.stop_requested
    assert manager.storage.stop_asked(one.key)


def test_an_interrupted_run_waits_for_no_process_that_has_not_started(
    manager: AttemptManager, one: Attempt
) -> None:
    with pytest.raises(StopRun):
        Shutdown(grace=60.0).poll(manager)


def test_an_interrupted_run_ends_when_its_grace_is_over(manager: AttemptManager, one: Attempt) -> None:
    manager.on_messages(one, [Progress(1, 4)])
    with pytest.raises(StopRun):
        Shutdown(grace=-1.0).poll(manager)


@pytest.mark.parametrize("message", [Ended(), Failed("boom"), Stopped(), Progress(1, 4)])
def test_an_end_that_the_store_did_not_take_leaves_the_attempt_to_be_released(
    store: Store,
    manager: AttemptManager,
    one: Attempt,
    monkeypatch: pytest.MonkeyPatch,
    message: Message,
) -> None:
    with monkeypatch.context() as broken:
        one.done = one.lacks
        for name in ("finish", "fail", "release", "record"):
            broken.setattr(store, name, lambda *_: (_ for _ in ()).throw(UserError("disk is full")))
        with pytest.raises(UserError, match="disk is full"):
            manager.on_messages(one, [message])
    manager.close()
    assert state(store, one) == ("WAITING", ["INTERRUPTED"])


def test_reports_that_come_with_the_end_are_told_before_it(
    store: Store, manager: AttemptManager, one: Attempt, said: list[str]
) -> None:
    wanted = one.trial.evaluations[0].key
    manager.on_messages(one, [Evaluated(wanted, {"AP": 40.0}), Ended()])
    assert state(store, one) == ("COMPLETE", ["COMPLETE"])
    assert store.evaluations([wanted])[wanted].metrics == {"AP": 40.0}
    assert "AP 40.0" in next(line for line in said if "finished" in line)


def test_an_end_with_a_report_that_the_store_refuses_is_a_failure(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    manager.on_messages(one, [Evaluated("nobody asked", {"AP": 1.0}), Ended()])
    assert state(store, one) == ("FAILED", ["FAILED"])
    assert (manager.finished, one.done) == ([], set())


def test_a_report_that_the_store_refuses_fails_its_trial_and_nothing_else(
    store: Store, manager: AttemptManager, one: Attempt
) -> None:
    manager.on_messages(one, [Evaluated("nobody asked", {"AP": 1.0})])
    assert state(store, one) == ("FAILED", ["FAILED"])


def test_a_storage_that_is_away_at_the_start_of_an_attempt_does_not_leave_it_running(
    store: Store, plan: Plan, manager: AttemptManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def clear_stop(self, trial_key: str) -> None:
            raise StorageError("the bucket cannot be reached")

        def probe(self) -> None:
            self.clear_stop("")

    with monkeypatch.context() as broken:
        broken.setattr(manager, "storage", Away())
        with pytest.raises(StorageError):
            manager.claim(plan.trials[0])
    again = claimed(manager, plan.trials[0])
    assert state(store, again) == ("RUNNING", ["INTERRUPTED", "RUNNING"])
    assert again.losses == 0


def test_closing_while_the_storage_is_away_asks_it_once(
    store: Store, plan: Plan, manager: AttemptManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [claimed(manager, trial) for trial in plan.trials]
    manager.ask_to_stop(*attempts)
    asked: list[str] = []

    def away(_: object, key: str) -> None:
        asked.append(key)
        raise StorageError("the bucket does not answer")

    monkeypatch.setattr(type(manager.storage), "clear_stop", away)
    manager.close()
    assert len(asked) == 1
    assert {state(store, attempt)[0] for attempt in attempts} == {"WAITING"}


def test_a_driver_that_could_not_reach_the_store_gives_others_time_to_come_back(
    store: Store, manager: AttemptManager, one: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    reclaimed: list[bool] = []
    monkeypatch.setattr(store, "reclaim_silent", lambda: reclaimed.append(True))
    heartbeat = Heartbeat(manager)
    heartbeat.sent -= 60
    heartbeat.send()  # the thread that sends them may be the first to come back
    heartbeat.reclaim()
    assert not reclaimed
    heartbeat.patient_until = 0.0
    heartbeat.reclaim()
    assert reclaimed
