"""What starts next, as the store and the machines have it, without a Ray that runs."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ablation.driver.attempts import Attempt, AttemptManager
from ablation.driver.dispatch import (
    POLL_EVERY_S,
    START_AFTER_LOSS_S,
    START_WITHIN_S,
    STORAGE_AWAY_S,
    Dispatcher,
)
from ablation.driver.display import Board, PlainDisplay
from ablation.driver.heartbeat import Heartbeat
from ablation.driver.scheduler import GangScheduler
from ablation.driver.shutdown import Shutdown, StopRun, errors_end_the_run
from ablation.errors import UserError
from ablation.protocol import Evaluated, Noticed, Request
from ablation.resources import Node, Resources
from ablation.storage import StorageError, storage_at
from ablation.store import Store
from ablation.worker.messages import DeviceFailed, End, Ended, Message, Stopped
from ablation.worker.quarantine import Device, Fault
from ablation.workspace import Workspace
from tests.support.toy_driver import Toy, planned

GPU = Device("a", "host", "10.0.0.1", ("3",), 1)


@dataclass
class World:
    """A dispatcher over a clock and machines that the test moves."""

    store: Store
    folder: Path
    now: float = 0.0
    nodes: tuple[Node, ...] = (Node("a", 2, 0, 1 << 40),)
    said: list[str] = field(default_factory=list)

    def dispatcher(self, toys: list[Toy], seeds: tuple[int, ...] = (0,)) -> Dispatcher:
        plan, workspace = planned(toys, self.store, seeds), Workspace.at(self.folder)
        listener = PlainDisplay(Board(plan), self.said.append)
        workspace.create()
        storage = storage_at(workspace.artifacts)
        manager = AttemptManager(self.store, storage, workspace, listener, {}, max_retries=1)
        return Dispatcher(
            plan,
            manager,
            GangScheduler(self.nodes),
            Shutdown(grace=60.0),
            Heartbeat(manager),
            {trial.key: trial.cost for trial in plan.trials},
            {trial.key: trial.resources or Resources() for trial in plan.trials},
            None,
            lambda: self.nodes,
            clock=lambda: self.now,
        )

    def later(self) -> None:
        self.now += POLL_EVERY_S


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Store.open(tmp_path / "store.db"), tmp_path)


def next_request(dispatcher: Dispatcher) -> Request | None:
    """What starts now, if anything does."""
    try:
        found = dispatcher.next()
    except StopRun:
        return None
    return found[1] if found else None


def started(dispatcher: Dispatcher) -> list[str]:
    """Names of all that start now."""
    names = []
    while request := next_request(dispatcher):
        names.append(request.config.name)
    return names


def key_of(dispatcher: Dispatcher, name: str, seed: int = 0) -> str:
    trials = dispatcher.plan.trials
    return next(trial.key for trial in trials if (trial.config.name, trial.seed) == (name, seed))


def attempt_of(dispatcher: Dispatcher, name: str) -> Attempt:
    """The running one."""
    return dispatcher.manager.running[key_of(dispatcher, name)]


def tell(dispatcher: Dispatcher, name: str, *messages: Message) -> bool:
    """As the process of the running attempt does."""
    attempt = attempt_of(dispatcher, name)
    return dispatcher.on_messages(attempt.key, attempt.id, messages)


def lose(dispatcher: Dispatcher, name: str, reason: str = "killed") -> Attempt:
    """The process of the running attempt dies; the attempt."""
    attempt = attempt_of(dispatcher, name)
    dispatcher.on_worker_lost(attempt.key, attempt.id, reason)
    return attempt


def fail(dispatcher: Dispatcher, name: str) -> None:
    attempt = attempt_of(dispatcher, name)
    dispatcher.manager.fail(attempt, "broken")
    dispatcher._release_ended()


def end(dispatcher: Dispatcher, name: str, how: End = Ended()) -> None:  # noqa: B008
    """With all its results where that is how it ends."""
    lacking = sorted(attempt_of(dispatcher, name).lacks) if isinstance(how, Ended) else []
    assert tell(dispatcher, name, *(Evaluated(key, {"AP": 4.0}) for key in lacking), how)


def mark_started(dispatcher: Dispatcher) -> None:
    for attempt in dispatcher.manager.running.values():
        attempt.started = True


def poll(dispatcher: Dispatcher) -> None:
    """Where nothing is left to do the loop ends, which is tested elsewhere."""
    with suppress(StopRun):
        dispatcher.poll()


def test_the_longest_start_first_as_far_as_there_is_room(world: World) -> None:
    dispatcher = world.dispatcher([Toy("short", 10), Toy("longest", 30), Toy("long", 20)])
    assert started(dispatcher) == ["longest", "long"]


def test_all_of_an_earlier_seed_start_before_a_later_one(world: World) -> None:
    world.nodes = (Node("a", 3, 0, 0),)
    dispatcher = world.dispatcher([Toy("short", 10), Toy("long", 20)], seeds=(0, 1))
    found = [next_request(dispatcher) for _ in range(3)]
    seeds = [dispatcher.trials[request.trial_key].seed for request in found if request]
    assert seeds == [0, 0, 1]


def test_what_a_person_prioritises_while_it_runs_starts_next(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a", 30), Toy("b", 20), Toy("c", 10), Toy("d", 5)])
    assert started(dispatcher) == ["a", "b"]
    world.store.prioritise([key_of(dispatcher, "d")], 1)
    world.later()
    poll(dispatcher)
    dispatcher.scheduler.release(key_of(dispatcher, "a"))
    assert started(dispatcher) == ["d"]


def test_what_a_process_told_before_it_died_counts(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    evaluation = dispatcher.plan.trials[0].evaluations[0].key
    tell(dispatcher, "a", Evaluated(evaluation, {"AP": 50.0}))
    attempt = lose(dispatcher, "a")
    assert list(world.store.evaluations([evaluation])) == [evaluation]
    assert attempt.done == {evaluation}


def test_a_process_that_dies_after_its_last_result_has_finished_its_trial(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    tell(dispatcher, "a", Evaluated(dispatcher.plan.trials[0].evaluations[0].key, {"AP": 50.0}))
    attempt = lose(dispatcher, "a")
    assert dispatcher.manager.finished == [attempt.key]
    assert states(world, dispatcher) == {"a": "COMPLETE"}
    assert world.store.notices(attempt.key) == ["killed"]


def test_a_training_that_leaves_a_result_out_has_failed_and_is_not_repeated(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    wanted, key = dispatcher.plan.trials[0].evaluations[0].key, key_of(dispatcher, "a")
    world.later()
    assert tell(dispatcher, "a", Noticed("almost"), Ended())
    world.later()
    assert started(dispatcher) == []
    assert states(world, dispatcher) == {"a": "FAILED"}
    assert f"ended without a result of the evaluation {wanted}" in dispatcher.manager.failed[key]
    assert world.store.notices(key) == ["almost"]


@pytest.mark.parametrize(
    "fault", [StorageError("the bucket does not answer"), ValueError("no such evaluation")]
)
def test_a_process_that_goes_on_after_its_attempt_has_ended_is_not_kept(
    fault: Exception, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another attempt may work in its folder: that the storage or the store failed is not known to it."""
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    report = Evaluated(dispatcher.plan.trials[0].evaluations[0].key, {"AP": 4.0})

    def refused(*_: object) -> None:
        raise fault

    monkeypatch.setattr(AttemptManager, "_record", refused)
    assert not tell(dispatcher, "a", report)
    assert dispatcher.manager.running == {}
    world.later()
    if isinstance(fault, StorageError):
        assert started(dispatcher) == ["a"]
        assert tell(dispatcher, "a", report, Stopped()), "it ends by itself, and may be used again"


def test_an_attempt_whose_process_is_there_is_not_given_up_however_slow_its_first_steps(
    world: World,
) -> None:
    world.nodes = (Node("a", 3, 0, 1 << 40),)
    dispatcher = world.dispatcher([Toy("a"), Toy("pair", workers=2)])
    assert sorted(started(dispatcher)) == ["a", "pair"]
    tell(dispatcher, "a")
    tell(dispatcher, "pair")  # its process is there, its workers are not
    world.now += START_WITHIN_S + POLL_EVERY_S
    poll(dispatcher)
    assert list(dispatcher.manager.running) == [key_of(dispatcher, "a")]


def test_a_storage_that_is_away_makes_trials_wait_and_counts_for_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("b")])
    for what in ("clear_stop", "probe"):
        monkeypatch.setattr(type(dispatcher.manager.storage), what, away)
    for _ in range(5):
        assert started(dispatcher) == []
        world.now += STORAGE_AWAY_S
    assert [attempt.losses for attempt in dispatcher.manager.ended.values()] == [0]
    assert len(world.store.attempts()) == 1, "one attempt found it away, and no other was made to ask again"
    assert world.said[-1].endswith(
        "No trial starts until the storage of trials answers again: the bucket does not answer"
    )
    monkeypatch.undo()
    assert sorted(started(dispatcher)) == ["a", "b"]
    assert any(said.endswith("The storage of trials answers again.") for said in world.said)


def test_the_last_trial_waits_for_its_storage_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    for what in ("clear_stop", "probe"):
        monkeypatch.setattr(type(dispatcher.manager.storage), what, away)
    assert started(dispatcher) == []
    assert not dispatcher.over
    monkeypatch.undo()
    world.now += STORAGE_AWAY_S
    assert started(dispatcher) == ["a"]
    end(dispatcher, "a")
    assert started(dispatcher) == []
    assert dispatcher.over


def test_a_trial_whose_own_folder_cannot_be_had_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = world.dispatcher([Toy("bad", 30), Toy("good", 10)])
    bad, clear = key_of(dispatcher, "bad"), type(dispatcher.manager.storage).clear_stop
    monkeypatch.setattr(
        type(dispatcher.manager.storage),
        "clear_stop",
        lambda self, key: away() if key == bad else clear(self, key),
    )
    assert started(dispatcher) == ["good"]
    assert started(dispatcher) == []
    assert dispatcher.manager.failed == {bad: "the bucket does not answer"}, "after its one retry"


def test_a_trial_that_another_driver_claims_first_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    monkeypatch.setattr(dispatcher.manager.store, "claim", lambda *_: None)
    claimed = Store.claim(world.store, key, "another:1", {})
    assert claimed is not None
    assert started(dispatcher) == []
    assert not dispatcher.over


def away(*_: object) -> None:
    raise StorageError("the bucket does not answer")


def test_messages_of_an_attempt_that_has_ended_are_refused(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    first = lose(dispatcher, "a")
    world.later()
    assert started(dispatcher) == ["a"]
    assert not dispatcher.on_messages(first.key, first.id, [Ended()])
    dispatcher.on_worker_lost(first.key, first.id, "killed again")
    assert attempt_of(dispatcher, "a").id == first.id + 1
    assert dispatcher.scheduler.running.keys() == {first.key}


def test_a_paused_study_starts_nothing_and_stops_what_runs_until_it_is_resumed(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("b"), Toy("c")])
    assert len(started(dispatcher)) == 2
    mark_started(dispatcher)
    world.store.set_paused("toy", "toy", "none", True)
    world.later()
    assert started(dispatcher) == []
    assert len(dispatcher.manager.running) == 2
    assert all(dispatcher.manager.storage.stop_asked(key) for key in dispatcher.manager.running)
    for name in ("a", "b"):
        end(dispatcher, name, Stopped())
    assert started(dispatcher) == []
    assert not dispatcher.over, "a paused run waits to be resumed"
    world.store.set_paused("toy", "toy", "none", False)
    world.later()
    assert len(started(dispatcher)) == 2


def test_a_cancelled_trial_does_not_start_and_a_running_one_is_stopped(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a", 30), Toy("b", 20), Toy("c", 10)])
    assert started(dispatcher) == ["a", "b"]
    mark_started(dispatcher)
    world.store.cancel([key_of(dispatcher, "a"), key_of(dispatcher, "c")])
    world.later()
    assert started(dispatcher) == []
    assert dispatcher.manager.storage.stop_asked(key_of(dispatcher, "a"))
    assert not dispatcher.manager.storage.stop_asked(key_of(dispatcher, "b"))
    end(dispatcher, "a", Stopped())
    end(dispatcher, "b", Stopped())
    assert started(dispatcher) == ["b"]


def test_a_failed_trial_that_a_person_retries_starts_in_the_run_that_is_going_on(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("b")])
    started(dispatcher)
    key = key_of(dispatcher, "a")
    fail(dispatcher, "a")
    assert started(dispatcher) == []
    world.store.retry([key])
    world.later()
    assert started(dispatcher) == ["a"]


def test_a_person_who_retries_a_trial_gives_it_its_retries_back(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    for _ in range(2):
        assert started(dispatcher) == ["a"]
        attempt = lose(dispatcher, "a")
    assert states(world, dispatcher) == {"a": "FAILED"}
    world.store.retry([attempt.key])
    world.later()
    assert started(dispatcher) == ["a"]
    lose(dispatcher, "a")
    assert states(world, dispatcher) == {"a": "WAITING"}


def test_a_run_is_over_when_nothing_runs_waits_or_is_paused(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    started(dispatcher)
    assert not dispatcher.over
    fail(dispatcher, "a")
    assert started(dispatcher) == []
    assert dispatcher.over


def test_what_another_driver_runs_is_waited_for_and_not_started(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    world.store.claim(key_of(dispatcher, "a"), "another", {})
    assert started(dispatcher) == []
    assert not dispatcher.over


def test_an_attempt_starts_with_the_smallest_number_of_images_that_was_asked_for(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    dispatcher.micro_batch = 8
    world.store.set_micro_batch(key_of(dispatcher, "a"), 4)
    request = next_request(dispatcher)
    assert request is not None
    assert request.micro_batch == 4


def test_a_machine_that_joins_is_used_and_one_that_leaves_is_not(world: World) -> None:
    toys = [Toy(name, 10) for name in "abcd"]
    dispatcher = world.dispatcher(toys)
    assert len(started(dispatcher)) == 2
    world.nodes = (*world.nodes, Node("b", 1, 0, 0))
    world.later()
    assert len(started(dispatcher)) == 1
    world.nodes = world.nodes[:1]
    world.later()
    assert started(dispatcher) == []


def test_a_trial_that_no_longer_fits_is_said_once(world: World) -> None:
    dispatcher = world.dispatcher([Toy("wide", workers=2)])
    world.nodes = (Node("a", 1, 0, 0),)
    for _ in range(3):
        assert started(dispatcher) == []
        world.later()
    assert [line for line in world.said if "waits for nodes" in line] == world.said[-1:]
    assert not dispatcher.over


def device_fails(dispatcher: Dispatcher, name: str, *, usable: bool) -> None:
    """The GPU of a running trial."""
    tell(dispatcher, name, DeviceFailed("Traceback ...", Fault(GPU, "CUDA error: ECC"), usable))


def test_a_gpu_that_cannot_be_used_is_quarantined_and_its_trial_goes_on_elsewhere(world: World) -> None:
    world.nodes = (Node("a", 8, 2, 0),)
    dispatcher = world.dispatcher([Toy(name, workers=1, gpus=1.0) for name in ("a", "b", "c")])
    assert started(dispatcher) == ["a", "b"]
    device_fails(dispatcher, "a", usable=False)
    assert any(
        "Quarantined until this run ends" in line and "GPU 3 of host (10.0.0.1)" in line
        for line in world.said
    )
    assert started(dispatcher) == []
    end(dispatcher, "b")
    assert started(dispatcher) == ["a"], "it goes on elsewhere"
    end(dispatcher, "a")
    assert started(dispatcher) == ["c"]


@pytest.mark.parametrize("usable", [True, False])
def test_a_trial_under_which_one_gpu_after_the_other_fails_is_the_one_at_fault(
    usable: bool, world: World
) -> None:
    world.nodes = (Node("a", 8, 8, 0),)
    dispatcher = world.dispatcher([Toy("a", workers=1, gpus=1.0)])
    for _ in range(2):
        assert started(dispatcher) == ["a"]
        device_fails(dispatcher, "a", usable=usable)
    assert started(dispatcher) == []
    reason = dispatcher.manager.failed[key_of(dispatcher, "a")].splitlines()[-1]
    assert reason.startswith("On GPU 3 of host (10.0.0.1): CUDA error: ECC")
    assert ("a new process can use it" in reason) == usable
    assert dispatcher.over


def test_a_device_is_quarantined_once_where_another_driver_is_first_at_its_trial(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.nodes = (Node("a", 8, 2, 0),)
    dispatcher = world.dispatcher([Toy("a", workers=1, gpus=1.0), Toy("b", workers=1, gpus=1.0)])
    dispatcher.manager.max_retries = 9
    assert started(dispatcher) == ["a", "b"]
    world.later()
    end(dispatcher, "b")
    device_fails(dispatcher, "a", usable=False)
    with monkeypatch.context() as another:
        another.setattr(dispatcher.manager.store, "claim", lambda *_: None)
        assert started(dispatcher) == []
    world.later()
    assert started(dispatcher) == ["a"], "on the GPU that is left"


@pytest.mark.parametrize("joins", [True, False])
def test_a_run_without_a_gpu_left_ends_and_on_a_cluster_waits_for_another_first(
    joins: bool, world: World
) -> None:
    world.nodes = (Node("a", 8, 1, 0),)
    dispatcher = world.dispatcher([Toy("a", workers=1, gpus=1.0)])
    dispatcher.more_may_join = joins
    assert started(dispatcher) == ["a"]
    device_fails(dispatcher, "a", usable=False)
    if joins:
        assert started(dispatcher) == []
        assert "waits for nodes" in world.said[-1]
        world.now += START_WITHIN_S + POLL_EVERY_S
    with pytest.raises(
        UserError,
        match=r"1 trial, table1 a, .*\n1 device quarantined, as:\nGPU 3 of host .*ECC",
    ):
        started(dispatcher)
    assert not dispatcher.manager.failed


def test_estimates_are_corrected_by_what_finished_trials_took(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.nodes = (Node("a", 1, 0, 0),)
    dispatcher = world.dispatcher([Toy("a", 200), Toy("b", 100)])
    before: Callable[[], float] = lambda: dispatcher.scheduler.waiting[key_of(dispatcher, "b")].seconds  # noqa: E731
    assert started(dispatcher) == ["a"]
    estimated = before()
    world.now += 3 * dispatcher.seconds[key_of(dispatcher, "a")]
    end(dispatcher, "a")
    monkeypatch.setattr(dispatcher.scheduler, "next", lambda now: None)
    dispatcher.next()
    assert before() == pytest.approx(3 * estimated)


def test_what_the_plan_no_longer_wants_of_a_trial_does_not_start_it_again(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    world.store.ensure_evaluation("of another run", key, "{}")
    started(dispatcher)
    (wanted,) = dispatcher.plan.trials[0].missing
    tell(dispatcher, "a", Evaluated(wanted.key, {"AP": 4.0}), Ended())
    world.later()
    assert world.store.trial_states()[key].state == "WAITING"
    assert started(dispatcher) == []
    assert dispatcher.over


def test_an_evaluation_that_another_driver_did_is_not_asked_for_again(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    (wanted,) = dispatcher.plan.trials[0].missing
    poll(dispatcher)
    attempt = world.store.claim(key, "another", {})
    assert attempt is not None
    world.store.ensure_evaluation("of another run", key, "{}")
    world.store.record(attempt, [Evaluated(wanted.key, {"AP": 4.0})])
    world.store.release(attempt)
    request = next_request(dispatcher)
    assert request is not None
    assert request.evaluations == ()
    end(dispatcher, "a")
    world.later()
    assert started(dispatcher) == []


def test_a_process_that_never_starts_is_given_up(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    world.now += START_WITHIN_S + POLL_EVERY_S
    assert started(dispatcher) == []
    assert started(dispatcher) == ["a"], "it is tried anew"
    attempts = world.store.attempts([key_of(dispatcher, "a")])
    assert [attempt.state for attempt in attempts] == ["INTERRUPTED", "RUNNING"]


def test_a_process_that_was_to_start_when_a_machine_was_lost_is_given_up_sooner(world: World) -> None:
    world.nodes = (Node("a", 1, 0, 1 << 40), Node("b", 1, 0, 1 << 40))
    dispatcher = world.dispatcher([Toy("before", 30), Toy("reported", 20)])
    assert started(dispatcher) == ["before", "reported"]
    attempt_of(dispatcher, "reported").started = True
    world.nodes = (Node("a", 1, 0, 1 << 40), Node("c", 1, 0, 1 << 40))
    world.later()
    poll(dispatcher)
    world.now += START_AFTER_LOSS_S
    poll(dispatcher)
    assert states(world, dispatcher) == {"before": "RUNNING", "reported": "RUNNING"}
    world.later()
    poll(dispatcher)
    assert states(world, dispatcher) == {"before": "WAITING", "reported": "RUNNING"}
    assert started(dispatcher) == ["before"]
    world.now += START_AFTER_LOSS_S + POLL_EVERY_S
    poll(dispatcher)
    assert states(world, dispatcher)["before"] == "RUNNING", "it began after the loss"


def states(world: World, dispatcher: Dispatcher) -> dict[str, str]:
    rows = world.store.trial_states()
    return {dispatcher.trials[key].config.name: row.state for key, row in rows.items()}


def test_what_is_to_be_done_anew_since_a_run_began_is_left_to_the_next(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    poll(dispatcher)
    attempt = world.store.claim(key, "another", {})
    assert attempt is not None
    world.store.release(attempt)
    assert world.store.renew({key: 1}) == [key]
    world.later()
    assert started(dispatcher) == []
    assert dispatcher.over
    request = next_request(world.dispatcher([Toy("a")]))
    assert request is not None
    assert request.directory.name == "attempt-2"


# --- how the loop ends ------------------------------------------------------------------------------------


def test_a_run_waits_for_no_process_once_all_is_done(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    dispatcher.poll()
    evaluation = dispatcher.plan.trials[0].evaluations[0].key
    tell(dispatcher, "a", Evaluated(evaluation, {"AP": 4.0}), Ended())
    with pytest.raises(StopRun) as stop:
        dispatcher.poll()
    assert stop.value.__cause__ is None


def test_an_interrupted_run_starts_nothing(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("b"), Toy("c")])
    assert len(started(dispatcher)) == 2
    mark_started(dispatcher)
    dispatcher.shutdown.requested = True
    dispatcher.scheduler.release(key_of(dispatcher, "a"))
    assert dispatcher.next() is None
    assert all(attempt.stop_requested for attempt in dispatcher.manager.running.values())


def test_an_error_of_the_store_leaves_tunes_loop_with_its_cause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    monkeypatch.setattr(world.store, "record", lambda *_: (_ for _ in ()).throw(UserError("disk is full")))
    with pytest.raises(StopRun) as stop, errors_end_the_run():
        tell(dispatcher, "a", Noticed("something"))
    assert str(stop.value.__cause__) == "disk is full"
