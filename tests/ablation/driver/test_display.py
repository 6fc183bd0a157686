import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ablation.driver.display import (
    Board,
    LiveDisplay,
    PlainDisplay,
    display,
    facts,
    overall,
)
from ablation.plan import Plan
from ablation.protocol import Checkpointed, Evaluated, Noticed, Progress
from ablation.store import Store
from tests.support.toy_driver import PROGRESS, Toy, planned


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned([Toy("one"), Toy("two"), Toy("three")], Store.open(tmp_path / "store.db"))


def screen(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120, color_system=None), text


def test_time_left_follows_the_pace_since_the_attempt_began_and_not_since_the_trial_did(plan: Plan) -> None:
    clock, trial = Clock(), plan.trials[0]
    board = Board(plan, clock=clock)
    active = board.start(trial)
    assert facts(active, PROGRESS) == ["starting"]
    for step, now in ((50, 10.0), (60, 15.0)):  # resumed at 50 of 100: ten steps take five seconds
        clock.now = now
        board.report(trial, Progress(step, 100, {"loss": 1.25, "images_per_second": 80.4}))
    assert facts(active, PROGRESS) == ["60/100", "loss 1.250", "speed 80 images/s", "20 s left"]
    board.report(trial, Progress(100, 100))
    assert facts(active, PROGRESS) == ["100/100", "evaluating"]


def test_a_trial_that_failed_and_is_retried_counts_as_failed_no_more(plan: Plan) -> None:
    clock, trial = Clock(), plan.trials[0]
    board = Board(plan, clock=clock)
    for now, failed in ((10.0, True), (20.0, False)):
        board.start(trial)
        board.report(trial, Progress(2, 4))
        clock.now = now
        board.end(trial, failed=failed)
        assert board.failed == failed
    assert overall(board).startswith("1 of 3 trials done, ")
    assert board.seconds_left() == pytest.approx(40.0), "a third took 20 s"


def test_the_estimated_end_counts_only_what_this_run_has_done(plan: Plan) -> None:
    clock, (first, *others) = Clock(), plan.trials
    resumed = replace(first, step=50, total=100, cost=first.cost / 2)
    board = Board(replace(plan, trials=(resumed, *others)), clock=clock)
    assert board.seconds_left() is None
    board.start(resumed)
    board.report(resumed, Progress(50, 100))
    assert board.seconds_left() is None
    clock.now = 10.0
    board.report(resumed, Progress(100, 100))
    # Half a trial in 10 s; two whole ones are left.
    assert board.seconds_left() == pytest.approx(40.0)
    board.end(resumed)
    assert board.done == 1
    assert overall(board).startswith("1 of 3 trials done, 40 s left (about ")


def test_the_estimated_end_knows_that_the_longest_trials_come_first(tmp_path: Path) -> None:
    toys = [Toy("long", steps=80), Toy("short", steps=20), Toy("shortest", steps=10)]
    clock, plan = Clock(), planned(toys, Store.open(tmp_path / "store.db"))
    board = Board(plan, clock=clock)
    board.start(plan.trials[0])
    clock.now = 80.0
    board.end(plan.trials[0])
    assert board.seconds_left() == pytest.approx(30.0)
    board.start(plan.trials[1])
    board.report(plan.trials[1], Progress(10, 20))
    clock.now = 90.0
    assert board.seconds_left() == pytest.approx(20.0)
    board.lose(plan.trials[1])
    assert board.seconds_left() == pytest.approx(30.0 * 90 / 80)
    board.start(plan.trials[1])
    board.end(plan.trials[1], failed=True)
    assert board.seconds_left() == pytest.approx(10.0 * 90 / 80), "it was no pace"


def test_tables_fill_with_every_evaluation(plan: Plan) -> None:
    one, two, three = (trial.evaluations[0].key for trial in plan.trials)
    board = Board(plan, {three: {"AP": 39.96}})
    assert board.tables() == {"table1": "   ·    · 40.0"}
    board.start(plan.trials[1])
    board.report(plan.trials[1], Evaluated(two, {"AP": 40.0}))
    assert board.tables()["table1"] == "   · 40.0 40.0"
    board.start(plan.trials[0])
    board.report(plan.trials[0], Evaluated(one, {}))  # only an evaluation server can say
    assert board.tables()["table1"] == "   – 40.0 40.0"


def test_a_cell_of_several_seeds_shows_the_mean_of_those_that_are_there(tmp_path: Path) -> None:
    plan = planned([Toy("one")], Store.open(tmp_path / "store.db"), seeds=(0, 1, 2))
    board = Board(plan)
    for trial, ap in zip(plan.trials, (40.0, 41.0), strict=False):
        board.start(trial)
        board.report(trial, Evaluated(trial.evaluations[0].key, {"AP": ap}))
    assert board.tables() == {"table1": "40.5"}


def test_a_file_gets_one_plain_line_for_every_event(plan: Plan) -> None:
    console, text = screen(terminal=False)
    one, two, three = plan.trials
    with display(plan, {}, console) as shown:
        assert type(shown) is PlainDisplay
        shown.started(one)
        shown.reported(one, Progress(4, 4))
        shown.reported(one, Checkpointed(4, "path", "hash"))
        shown.reported(one, Evaluated(one.evaluations[0].key, {"AP": 41.26}))
        shown.reported(one, Noticed("passed over a broken checkpoint"))
        shown.finished(one)
        shown.started(two)
        shown.failed(two, "Traceback\n  in [loss]\nValueError: loss is [NaN]\n")
        shown.started(three)
        shown.lost(three, "Ray says a lot\nits process died")
        shown.stopping()
    lines = [line.split("  ", 1)[-1] for line in text.getvalue().splitlines()]
    assert "\x1b" not in text.getvalue()
    assert lines[0] == "started   table1 one, seed 0"
    assert lines[1] == "note      table1 one, seed 0: passed over a broken checkpoint"
    assert lines[2].startswith("finished  table1 one, seed 0: AP 41.3 %, 0 s; 1 of 3 trials done")
    assert lines[3] == "table1    41.3    ·    ·"
    assert lines[5] == "FAILED    table1 two, seed 0: ValueError: loss is [NaN]"
    assert lines[7] == "again     table1 three, seed 0: its process died"
    assert lines[8].startswith("Stopping")


def test_a_running_trial_gets_a_line_when_the_last_one_is_old(plan: Plan) -> None:
    lines: list[str] = []
    shown = PlainDisplay(Board(plan), lines.append, every_s=0.0)
    shown.started(plan.trials[0])
    shown.reported(plan.trials[0], Progress(1, 4, {"loss": 2.0}))
    assert lines[-1].endswith("running   table1 one, seed 0: 1/4, loss 2.000, ? left")


def test_how_the_tables_fill_is_said_once_and_only_of_those_that_did(plan: Plan) -> None:
    lines: list[str] = []
    shown = PlainDisplay(Board(plan), lines.append)
    one, two, _ = plan.trials
    for trial in (one, two):
        shown.started(trial)
    shown.reported(one, Evaluated(one.evaluations[0].key, {}))
    for trial in (one, two):
        shown.finished(trial)
    told = [line.split("  ", 1)[-1] for line in lines]
    assert [line for line in told if line.startswith("table")] == ["table1       –    ·    ·"]


def test_a_terminal_shows_running_trials_the_whole_and_the_tables(plan: Plan) -> None:
    console, text = screen(terminal=True)
    with display(plan, {}, console) as shown:
        assert isinstance(shown, LiveDisplay)
        shown.started(plan.trials[0])
        shown.reported(plan.trials[0], Progress(2, 4, {"loss": 2.0, "images_per_second": 51.0}))
        console.print(shown.picture())
        shown.failed(plan.trials[0], "ValueError: broken")
    seen = text.getvalue()
    for piece in (
        "table1 one, seed 0",
        "2/4",
        "loss 2.000",
        "speed 51 images/s",
        "0 of 3 trials",
        "   ·    ·    ·",
    ):
        assert piece in seen
    assert "FAILED    table1 one, seed 0: ValueError: broken" in seen
