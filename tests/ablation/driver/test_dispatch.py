"""What starts next, as the store and the machines have it, without a Ray that runs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from ablation.driver.attempts import Desk, StopNow
from ablation.driver.dispatch import (
    LOOK_EVERY_S,
    STORAGE_AWAY_S,
    UNHEARD_AFTER_LOSS_S,
    UNHEARD_S,
    Dispatcher,
)
from ablation.driver.display import Board, PlainDisplay
from ablation.driver.scheduler import GangScheduler
from ablation.driver.tune import _callback
from ablation.errors import UserError
from ablation.protocol import Evaluated, to_wire
from ablation.resources import Node, Resources
from ablation.storage import StorageError, storage_at
from ablation.store import Store
from ablation.worker.harness import DEVICE_FAILED, ENDED, STOPPED
from ablation.worker.quarantine import Place
from ablation.workspace import Workspace
from tests.support.toy_driver import Toy, planned

GPU = Place("a", "host", "10.0.0.1", ("3",), 1)


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
        trials = {trial.key: trial for trial in plan.trials}
        listener = PlainDisplay(Board(plan), self.said.append)
        workspace.create()
        storage = storage_at(workspace.artifacts)
        desk = Desk(trials, self.store, storage, workspace, listener, {}, max_retries=1, grace=60.0)
        resources = {trial.key: trial.resources or Resources() for trial in plan.trials}
        seconds = {trial.key: trial.cost for trial in plan.trials}
        scheduler = GangScheduler(self.nodes)
        return Dispatcher(
            plan, desk, scheduler, seconds, resources, None, lambda: self.nodes, clock=lambda: self.now
        )

    def later(self) -> None:
        self.now += LOOK_EVERY_S


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Store.open(tmp_path / "store.db"), tmp_path)


def started(dispatcher: Dispatcher) -> list[str]:
    """Names of all that start now."""
    names = []
    while order := dispatcher.next():
        names.append(dispatcher.desk.trials[order.key].config.name)
    return names


def key_of(dispatcher: Dispatcher, name: str, seed: int = 0) -> str:
    trials = dispatcher.plan.trials
    return next(trial.key for trial in trials if (trial.config.name, trial.seed) == (name, seed))


def end(dispatcher: Dispatcher, name: str, kind: str = ENDED) -> None:
    key = key_of(dispatcher, name)
    dispatcher.desk.receive(key, [{"kind": kind}])
    dispatcher.ended(key)


def test_the_longest_start_first_as_far_as_there_is_room(world: World) -> None:
    dispatcher = world.dispatcher([Toy("short", 10), Toy("longest", 30), Toy("long", 20)])
    assert started(dispatcher) == ["longest", "long"]


def test_all_of_an_earlier_seed_start_before_a_later_one(world: World) -> None:
    world.nodes = (Node("a", 3, 0, 0),)
    dispatcher = world.dispatcher([Toy("short", 10), Toy("long", 20)], seeds=(0, 1))
    orders = [dispatcher.next() for _ in range(3)]
    seeds = [dispatcher.desk.trials[order.key].seed for order in orders if order]
    assert seeds == [0, 0, 1]


def test_what_a_person_prioritises_while_it_runs_starts_next(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a", 30), Toy("b", 20), Toy("c", 10), Toy("d", 5)])
    assert started(dispatcher) == ["a", "b"]
    world.store.prioritise([key_of(dispatcher, "d")], 1)
    world.later()
    dispatcher.look()
    dispatcher.scheduler.release(key_of(dispatcher, "a"))
    assert started(dispatcher) == ["d"]


def test_what_a_process_told_before_it_died_counts(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    key = key_of(dispatcher, "a")
    attempt, evaluation = dispatcher.desk.running[key], dispatcher.plan.trial(key).evaluations[0].key
    dispatcher.hear(key, attempt, [to_wire(Evaluated(evaluation, {"AP": 50.0}))])
    dispatcher.lose(key, attempt, "killed")
    assert list(world.store.evaluations([evaluation])) == [evaluation]
    assert dispatcher.desk.losses == {key: 1}


def test_a_trial_that_has_its_place_is_not_given_up_however_long_its_first_steps_take(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("pair", workers=2)])
    world.nodes = (Node("a", 3, 0, 1 << 40),)
    assert sorted(started(dispatcher)) == ["a", "pair"]
    for key in dispatcher.desk.running:
        dispatcher.start(key)
    world.now += UNHEARD_S + LOOK_EVERY_S
    dispatcher.look()
    assert list(dispatcher.desk.running) == [key_of(dispatcher, "a")], "a pair's workers tell themselves"


def test_a_storage_that_is_away_makes_trials_wait_and_counts_for_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("b")])
    for what in ("clear_stop", "probe"):
        monkeypatch.setattr(type(dispatcher.desk.storage), what, away)
    for _ in range(5):
        assert started(dispatcher) == []
        world.now += STORAGE_AWAY_S
    assert dispatcher.desk.losses == {}
    assert len(world.store.attempts()) == 1, "one attempt found it away, and no other was made to ask again"
    assert world.said[-1].endswith("Nothing new starts until the storage is back: the bucket does not answer")
    monkeypatch.undo()
    assert sorted(started(dispatcher)) == ["a", "b"]
    assert any(said.endswith("The storage is back.") for said in world.said)


def test_the_last_trial_waits_for_its_storage_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    for what in ("clear_stop", "probe"):
        monkeypatch.setattr(type(dispatcher.desk.storage), what, away)
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
    bad, clear = key_of(dispatcher, "bad"), type(dispatcher.desk.storage).clear_stop
    monkeypatch.setattr(
        type(dispatcher.desk.storage),
        "clear_stop",
        lambda self, key: away() if key == bad else clear(self, key),
    )
    assert started(dispatcher) == ["good"]
    assert started(dispatcher) == []
    assert dispatcher.desk.failed == {bad: "the bucket does not answer"}, "after its one retry"


def test_a_trial_that_another_driver_claims_first_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    monkeypatch.setattr(dispatcher.desk.store, "claim", lambda *_: None)
    claimed = Store.claim(world.store, key, "another:1", {})
    assert claimed is not None
    assert started(dispatcher) == []
    assert not dispatcher.over


def away(*_: object) -> None:
    raise StorageError("the bucket does not answer")


def test_an_attempt_that_is_over_is_not_listened_to(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    key = key_of(dispatcher, "a")
    first = dispatcher.desk.running[key]
    dispatcher.lose(key, first, "killed")
    world.later()
    assert started(dispatcher) == ["a"]
    dispatcher.hear(key, first, [{"kind": ENDED}])
    dispatcher.lose(key, first, "killed again")
    assert dispatcher.desk.holds(key, first + 1)
    assert dispatcher.scheduler.running.keys() == {key}


def test_a_paused_study_starts_nothing_and_stops_what_runs_until_it_is_resumed(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("b"), Toy("c")])
    assert len(started(dispatcher)) == 2
    dispatcher.desk.heard.update(dispatcher.desk.running)
    world.store.set_paused("toy", "toy", "none", True)
    world.later()
    assert started(dispatcher) == []
    assert len(dispatcher.desk.running) == 2
    assert all(dispatcher.desk.storage.stop_asked(key) for key in dispatcher.desk.running)
    for name in ("a", "b"):
        end(dispatcher, name, STOPPED)
    assert started(dispatcher) == []
    assert not dispatcher.over, "a paused run waits to be resumed"
    world.store.set_paused("toy", "toy", "none", False)
    world.later()
    assert len(started(dispatcher)) == 2


def test_a_cancelled_trial_does_not_start_and_a_running_one_is_stopped(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a", 30), Toy("b", 20), Toy("c", 10)])
    assert started(dispatcher) == ["a", "b"]
    dispatcher.desk.heard.update(dispatcher.desk.running)
    world.store.cancel([key_of(dispatcher, "a"), key_of(dispatcher, "c")])
    world.later()
    assert started(dispatcher) == []
    assert dispatcher.desk.storage.stop_asked(key_of(dispatcher, "a"))
    assert not dispatcher.desk.storage.stop_asked(key_of(dispatcher, "b"))
    end(dispatcher, "a", STOPPED)
    end(dispatcher, "b", STOPPED)
    assert started(dispatcher) == ["b"]


def test_a_failed_trial_that_a_person_retries_starts_in_the_run_that_is_going_on(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a"), Toy("b")])
    started(dispatcher)
    key = key_of(dispatcher, "a")
    dispatcher.desk.fail(key, "broken")
    dispatcher.ended(key)
    assert started(dispatcher) == []
    world.store.retry([key])
    world.later()
    assert started(dispatcher) == ["a"]


def test_a_run_is_over_when_nothing_runs_waits_or_is_paused(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    started(dispatcher)
    assert not dispatcher.over
    dispatcher.desk.fail(key_of(dispatcher, "a"), "broken")
    dispatcher.ended(key_of(dispatcher, "a"))
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
    order = dispatcher.next()
    assert order is not None
    assert order.micro_batch == 4


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
    assert [line for line in world.said if "waits for machines" in line] == world.said[-1:]
    assert not dispatcher.over


def let_down(dispatcher: Dispatcher, name: str, *, usable: bool) -> None:
    """Its GPU fails under it."""
    key = key_of(dispatcher, name)
    why = {"error": "Traceback ...", "why": "CUDA error: ECC", "usable": usable, "place": asdict(GPU)}
    dispatcher.hear(key, dispatcher.desk.running[key], [{"kind": DEVICE_FAILED, **why}])
    dispatcher.keep()


def test_a_gpu_that_cannot_be_used_is_set_aside_and_its_trial_goes_on_elsewhere(world: World) -> None:
    world.nodes = (Node("a", 8, 2, 0),)
    dispatcher = world.dispatcher([Toy(name, workers=1, gpus=1.0) for name in ("a", "b", "c")])
    assert started(dispatcher) == ["a", "b"]
    let_down(dispatcher, "a", usable=False)
    assert any("set aside until this run ends: GPU 3 of host (10.0.0.1): CUDA" in line for line in world.said)
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
        let_down(dispatcher, "a", usable=usable)
    assert started(dispatcher) == []
    reason = dispatcher.desk.failed[key_of(dispatcher, "a")].splitlines()[-1]
    assert reason.startswith("On GPU 3 of host (10.0.0.1): CUDA error: ECC")
    assert ("a new process can use it" in reason) == usable
    assert dispatcher.over


@pytest.mark.parametrize("joins", [True, False])
def test_a_run_without_a_gpu_left_ends_and_on_a_cluster_waits_for_another_first(
    joins: bool, world: World
) -> None:
    world.nodes = (Node("a", 8, 1, 0),)
    dispatcher = world.dispatcher([Toy("a", workers=1, gpus=1.0)])
    dispatcher.more_may_join = joins
    assert started(dispatcher) == ["a"]
    let_down(dispatcher, "a", usable=False)
    if joins:
        assert started(dispatcher) == []
        assert "waits for machines" in world.said[-1]
        world.now += UNHEARD_S + LOOK_EVERY_S
    with pytest.raises(UserError, match=r"no place any more.\n1 set aside, as:\nGPU 3 of host .*ECC"):
        started(dispatcher)
    assert not dispatcher.desk.failed


def test_estimates_are_corrected_by_what_finished_trials_took(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.nodes = (Node("a", 1, 0, 0),)
    dispatcher = world.dispatcher([Toy("a", 200), Toy("b", 100)])
    before: Callable[[], float] = lambda: dispatcher.scheduler.waiting[key_of(dispatcher, "b")].seconds  # noqa: E731
    assert started(dispatcher) == ["a"]
    estimated = before()
    world.now += 3 * dispatcher.seconds[key_of(dispatcher, "a")]
    dispatcher.desk.finished.append(key_of(dispatcher, "a"))
    dispatcher.desk._forget(key_of(dispatcher, "a"))
    dispatcher.ended(key_of(dispatcher, "a"))
    dispatcher.desk.running["b"] = 0  # keeps the one place
    monkeypatch.setattr(dispatcher.scheduler, "next", lambda now: None)
    dispatcher.next()
    assert before() == pytest.approx(3 * estimated)


def test_what_the_plan_no_longer_wants_of_a_trial_does_not_start_it_again(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    world.store.ensure_evaluation("of another run", key, "{}")
    started(dispatcher)
    (wanted,) = dispatcher.plan.trials[0].missing
    dispatcher.desk.receive(key, [to_wire(Evaluated(wanted.key, {"AP": 4.0})), {"kind": ENDED}])
    dispatcher.ended(key)
    world.later()
    assert world.store.trial_states()[key].state == "WAITING"
    assert started(dispatcher) == []
    assert dispatcher.over


def test_an_evaluation_that_another_driver_did_is_not_asked_for_again(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    (wanted,) = dispatcher.plan.trials[0].missing
    dispatcher.look()
    attempt = world.store.claim(key, "another", {})
    assert attempt is not None
    world.store.ensure_evaluation("of another run", key, "{}")
    world.store.record(attempt, [Evaluated(wanted.key, {"AP": 4.0})])
    world.store.release(attempt)
    order = dispatcher.next()
    assert order is not None
    assert order.done == (wanted.key,)
    end(dispatcher, "a")
    world.later()
    assert started(dispatcher) == []


def test_a_process_that_never_starts_is_given_up(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    assert started(dispatcher) == ["a"]
    world.now += UNHEARD_S + LOOK_EVERY_S
    assert started(dispatcher) == []
    assert started(dispatcher) == ["a"], "it is tried anew"
    attempts = world.store.attempts([key_of(dispatcher, "a")])
    assert [attempt.state for attempt in attempts] == ["INTERRUPTED", "RUNNING"]


def test_a_process_that_was_to_start_when_a_machine_was_lost_is_given_up_sooner(world: World) -> None:
    world.nodes = (Node("a", 1, 0, 1 << 40), Node("b", 1, 0, 1 << 40))
    dispatcher = world.dispatcher([Toy("before", 30), Toy("heard", 20)])
    assert started(dispatcher) == ["before", "heard"]
    dispatcher.desk.heard.add(key_of(dispatcher, "heard"))
    world.nodes = (Node("a", 1, 0, 1 << 40), Node("c", 1, 0, 1 << 40))
    world.later()
    dispatcher.look()
    world.now += UNHEARD_AFTER_LOSS_S
    dispatcher.look()
    assert states(world, dispatcher) == {"before": "RUNNING", "heard": "RUNNING"}
    world.later()
    dispatcher.look()
    assert states(world, dispatcher) == {"before": "WAITING", "heard": "RUNNING"}
    assert started(dispatcher) == ["before"]
    world.now += UNHEARD_AFTER_LOSS_S + LOOK_EVERY_S
    dispatcher.look()
    assert states(world, dispatcher)["before"] == "RUNNING", "it began after the loss"


def states(world: World, dispatcher: Dispatcher) -> dict[str, str]:
    rows = world.store.trial_states()
    return {dispatcher.desk.trials[key].config.name: row.state for key, row in rows.items()}


def test_what_is_to_be_done_anew_since_a_run_began_is_left_to_the_next(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    key = key_of(dispatcher, "a")
    dispatcher.look()
    attempt = world.store.claim(key, "another", {})
    assert attempt is not None
    world.store.release(attempt)
    assert world.store.renew({key: 1}) == [key]
    world.later()
    assert started(dispatcher) == []
    assert dispatcher.over
    order = world.dispatcher([Toy("a")]).next()
    assert order is not None
    assert order.folder == "attempt-2"


# --- what Tune is told ------------------------------------------------------------------------------------


@dataclass
class TuneTrial:
    """What the callback looks at of Tune's own trial."""

    config: dict[str, object] = field(default_factory=dict)
    temporary_state: object = field(default_factory=lambda: SimpleNamespace(ray_actor="its process"))


def test_a_run_waits_for_no_process_once_all_is_done(world: World) -> None:
    dispatcher = world.dispatcher([Toy("a")])
    finished = False
    tell = _callback(dispatcher, SimpleNamespace(is_finished=lambda: finished))
    given_up = [TuneTrial()]
    tell.on_step_begin(1, given_up)
    finished = True
    with pytest.raises(StopNow):
        tell.on_step_begin(2, given_up)


def test_a_process_that_was_given_up_is_killed_when_it_starts_after_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr("ray.kill", killed.append)
    dispatcher = world.dispatcher([Toy("a")])
    tell = _callback(dispatcher, None)
    assert started(dispatcher) == ["a"]
    key = key_of(dispatcher, "a")
    attempt = dispatcher.desk.running[key]
    tell.on_trial_start(1, [], TuneTrial({"key": key, "attempt": attempt}))
    assert (killed, dispatcher.desk.heard) == ([], {key})
    tell.on_trial_start(2, [], TuneTrial({"key": key, "attempt": attempt - 1}))
    assert killed == ["its process"]
