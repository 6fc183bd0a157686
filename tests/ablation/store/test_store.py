"""What a store promises, wherever it is kept: the same tests on a file and on a server."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from ablation.protocol import Checkpointed, Described, Evaluated, Noticed, Progress
from ablation.store import AttemptOverError, DesiredState, DesiredStates, Start, Store, schema

KEY = "a" * 12
EVALUATION = "e" * 12
WHERE = ("shapes", "shapes-1", "atss")
"""profile, data, study."""
SETTING = ("atss", "shapes", "shapes-1")


Place = Path | str


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a new store is to be: everything below holds in a file and on a server."""
    if request.param == "sqlite":
        return tmp_path / "store.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def opened(place: Place, tmp_path: Path) -> Iterator[Store]:
    made = Store.open(place, root=tmp_path)
    made.add_study(*SETTING)
    made.ensure_trial(KEY, "table1 row, seed 0", "{}", 0, *WHERE, tables=["table1"])
    made.ensure_evaluation(EVALUATION, KEY, "{}")
    yield made
    made.close()


def add_trials(opened: Store, count: int) -> list[str]:
    keys = [f"{number:012x}" for number in range(count)]
    for key in keys:
        opened.ensure_trial(key, key, "{}", 0, *WHERE)
    return keys


def fall_silent(opened: Store, seconds: float) -> None:
    """Makes every heartbeat so much older."""
    with opened._transaction(writes=True) as t:
        t.execute(schema.attempts.update().values(heartbeat=t.now - timedelta(seconds=seconds)))


def claimed(opened: Store) -> int:
    attempt = opened.claim(KEY, "driver", {"commit": "c0ffee"})
    assert attempt is not None
    return attempt


def state(opened: Store) -> str:
    return opened.trial_states([KEY])[KEY].state


def evaluated(key: str = EVALUATION, value: float = 39.3) -> Evaluated:
    return Evaluated(key, {"AP": value})


# --- states --------------------------------------------------------------------------------------


def test_a_trial_goes_from_waiting_through_running_to_complete(opened: Store) -> None:
    assert state(opened) == "WAITING"
    attempt = claimed(opened)
    assert state(opened) == "RUNNING"
    opened.record(attempt, [Progress(50, 100), evaluated()])
    opened.finish(attempt)
    row = opened.trial_states()[KEY]
    assert (row.state, row.step, row.total, row.attempts, row.tables) == ("COMPLETE", 50, 100, 1, ("table1",))
    assert opened.attempts()[0].state == "COMPLETE"


def test_a_running_trial_cannot_be_claimed_again(opened: Store) -> None:
    claimed(opened)
    assert opened.claim(KEY, "another", {}) is None
    assert len(opened.attempts([KEY])) == 1


def test_an_unknown_trial_cannot_be_claimed(opened: Store) -> None:
    assert opened.claim("b" * 12, "driver", {}) is None


def test_a_failed_trial_keeps_its_traceback_and_waits_for_a_retry(opened: Store) -> None:
    opened.fail(claimed(opened), "Traceback: boom")
    assert opened.trial_states()[KEY].error == "Traceback: boom"
    assert opened.claim(KEY, "driver", {}) is None
    assert opened.retry([KEY]) == [KEY]
    assert opened.retry([KEY]) == []
    assert (state(opened), opened.trial_states()[KEY].error) == ("WAITING", None)
    claimed(opened)
    assert [(a.number, a.state, a.error) for a in opened.attempts()] == [
        (1, "FAILED", "Traceback: boom"),
        (2, "RUNNING", None),
    ]


def test_an_interrupted_trial_is_waiting_again(opened: Store) -> None:
    opened.release(claimed(opened))
    assert state(opened) == "WAITING"
    assert opened.attempts()[0].state == "INTERRUPTED"


@pytest.mark.parametrize("lost", [False, True])
def test_a_trial_whose_driver_went_after_its_last_result_is_complete(opened: Store, lost: bool) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [evaluated()])
    if lost:
        opened.reclaim_all()
    else:
        opened.release(attempt)
    assert state(opened) == "COMPLETE"
    assert opened.attempts()[0].state == ("LOST" if lost else "INTERRUPTED")


def test_a_new_evaluation_makes_a_complete_trial_work_again(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [evaluated()])
    opened.finish(attempt)
    opened.ensure_evaluation(EVALUATION, KEY, "{}")
    assert state(opened) == "COMPLETE"
    opened.ensure_evaluation("f" * 12, KEY, "{}")
    assert state(opened) == "WAITING"
    claimed(opened)


def test_a_trial_is_not_complete_while_an_evaluation_has_no_result(opened: Store) -> None:
    opened.finish(claimed(opened))
    assert state(opened) == "WAITING"


def test_a_trial_can_be_added_again_with_another_name_but_not_another_config(opened: Store) -> None:
    claimed(opened)
    opened.ensure_trial(KEY, "table3 row, seed 0", "{}", 0, *WHERE, tables=["table3", "table4"])
    row = opened.trial_states()[KEY]
    assert (row.name, row.tables, row.state) == ("table3 row, seed 0", ("table3", "table4"), "RUNNING")
    with pytest.raises(ValueError, match="another config"):
        opened.ensure_trial(KEY, "x", '{"a":1}', 0, *WHERE)


def test_a_trial_follows_its_study_to_another_name_of_the_data(opened: Store) -> None:
    opened.add_study("atss", "shapes", "renamed")
    opened.ensure_trial(KEY, "table1 row, seed 0", "{}", 0, "shapes", "renamed", "atss")
    assert opened.trial_states()[KEY].data_name == "renamed"


def test_a_trial_needs_its_study_and_an_evaluation_its_trial(opened: Store) -> None:
    with pytest.raises(IntegrityError):
        opened.ensure_trial("b" * 12, "x", "{}", 0, "smoke", "shapes-1", "atss")
    with pytest.raises(IntegrityError):
        opened.ensure_evaluation("f" * 12, "b" * 12, "{}")


# --- what people want ----------------------------------------------------------------------------


def test_cancelling_and_retrying_name_what_they_changed(opened: Store) -> None:
    assert opened.cancel([KEY, "b" * 12]) == [KEY]
    assert opened.cancel([KEY]) == []
    assert state(opened) == "CANCELLED"
    assert opened.claim(KEY, "driver", {}) is None
    assert opened.retry([KEY, "b" * 12]) == [KEY]
    opened.fail(claimed(opened), "boom")
    assert opened.cancel([KEY]) == [KEY]
    assert opened.trial_states()[KEY].error is None


def test_a_complete_trial_cannot_be_cancelled(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [evaluated()])
    opened.finish(attempt)
    assert opened.cancel([KEY]) == []
    assert state(opened) == "COMPLETE"


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (Store.release, "CANCELLED"),
        (lambda store, attempt: store.fail(attempt, "boom"), "CANCELLED"),
        (lambda store, _: store.reclaim_all(), "CANCELLED"),
        (lambda store, _: (fall_silent(store, 31), store.reclaim_silent()), "CANCELLED"),
        (Store.finish, "COMPLETE"),
    ],
    ids=["release", "fail", "reclaim_all", "reclaim_silent", "finish"],
)
def test_a_cancelled_trial_reports_until_it_ends_and_only_a_finish_changes_its_state(
    opened: Store, end: Callable[[Store, int], object], left: str
) -> None:
    attempt = claimed(opened)
    opened.cancel([KEY])
    opened.record(attempt, [Progress(5, 10), evaluated()])
    assert state(opened) == "CANCELLED"
    end(opened, attempt)
    assert state(opened) == left
    assert opened.attempts()[0].state != "RUNNING"


def test_a_cancelled_trial_that_lacks_an_evaluation_stays_cancelled_when_it_finishes(opened: Store) -> None:
    attempt = claimed(opened)
    opened.cancel([KEY])
    opened.finish(attempt)
    assert state(opened) == "CANCELLED"


def test_no_driver_can_start_a_retried_trial_whose_cancelled_attempt_has_not_ended(opened: Store) -> None:
    attempt = claimed(opened)
    opened.cancel([KEY])
    assert opened.retry([KEY]) == [KEY]
    assert opened.claim(KEY, "another", {}) is None
    opened.release(attempt)
    claimed(opened)


def test_desired_states_are_what_people_asked_for(opened: Store) -> None:
    (other,) = add_trials(opened, 1)
    assert opened.desired_states(*SETTING, [KEY]) == DesiredStates(
        False, {KEY: DesiredState("WAITING", 0, None)}
    )
    opened.set_paused(*SETTING, True)
    assert opened.prioritise([KEY, "b" * 12], 5) == [KEY]
    opened.set_micro_batch(KEY, 4)
    opened.cancel([other])
    wanted = {KEY: DesiredState("WAITING", 5, 4), other: DesiredState("CANCELLED", 0, None)}
    assert opened.desired_states(*SETTING, [KEY, other, "b" * 12]) == DesiredStates(True, wanted)
    row = opened.trial_states()[KEY]
    assert (row.priority, row.micro_batch) == (5, 4)
    opened.set_paused(*SETTING, False)
    opened.set_micro_batch(KEY, None)
    assert opened.desired_states(*SETTING, [KEY]) == DesiredStates(
        False, {KEY: DesiredState("WAITING", 5, None)}
    )


def test_a_desired_state_is_running_even_when_the_driver_is_silent(opened: Store) -> None:
    claimed(opened)
    fall_silent(opened, 3600)
    assert opened.desired_states(*SETTING, [KEY]).trials[KEY].state == "RUNNING"


def test_a_study_can_be_paused_before_anything_has_run(opened: Store) -> None:
    new = ("atss", "coco", "coco-2017")
    assert not opened.paused(*new)
    opened.set_paused(*new, True)
    assert opened.paused(*new)
    assert not opened.paused(*SETTING)


def test_more_keys_than_a_statement_takes_are_found(opened: Store) -> None:
    many = [f"{number:012d}" for number in range(40_000)]
    assert list(opened.trial_states([*many, KEY])) == [KEY]
    assert opened.prioritise([*many, KEY], 1) == [KEY]
    assert list(opened.desired_states(*SETTING, [*many, KEY]).trials) == [KEY]


# --- results -------------------------------------------------------------------------------------


def test_reports_are_kept(opened: Store, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / KEY
    folder.mkdir(parents=True)
    (folder / "matches.npz").write_bytes(b"matches")
    attempt = claimed(opened)
    opened.record(
        attempt,
        [
            Progress(10, 100, {"loss": 2.0, "lr": 0.1}),
            Checkpointed(10, str(folder / "10.pt"), "0" * 64),
            Noticed("a damaged checkpoint was passed over"),
            Progress(20, 100, {"loss": math.nan}),
            Evaluated(EVALUATION, {"AP": 39.3, "APs": math.nan}, {"matches": str(folder / "matches.npz")}),
        ],
    )
    rows = opened.metrics(attempt)
    assert [(row.step, row.name) for row in rows] == [(10, "loss"), (10, "lr"), (20, "loss")]
    assert math.isnan(rows[2].value)
    assert [row.id for row in opened.metrics(attempt, after=rows[1].id)] == [rows[2].id]
    checkpoint, matches = opened.artifacts(KEY)
    assert (checkpoint.kind, checkpoint.path, checkpoint.step) == ("checkpoint", f"artifacts/{KEY}/10.pt", 10)
    assert matches.sha256 is not None
    assert matches.evaluation_key == EVALUATION
    found = opened.evaluations([EVALUATION])[EVALUATION]
    assert found.metrics["AP"] == 39.3
    assert math.isnan(found.metrics["APs"])
    assert opened.resolve(found.artifacts["matches"]).read_bytes() == b"matches"
    assert [row.key for row in opened.evaluations_of(KEY)] == [EVALUATION]
    assert opened.notices(KEY) == ["a damaged checkpoint was passed over"]


def test_a_result_with_neither_numbers_nor_a_submission_is_refused(opened: Store) -> None:
    attempt = claimed(opened)
    with pytest.raises(ValueError, match=f"evaluation {EVALUATION} has neither numbers nor a submission"):
        opened.record(attempt, [Evaluated(EVALUATION, {}, {"detections": "artifacts/x"})])
    assert opened.evaluations() == {}


def test_an_evaluation_awaits_scores_when_it_left_a_submission_and_no_numbers(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [Evaluated(EVALUATION, {}, {"submission": "artifacts/x"})])
    assert opened.evaluations()[EVALUATION].awaits_scores


def test_an_evaluation_without_a_result_is_not_among_the_evaluations(opened: Store) -> None:
    assert opened.evaluations() == {}
    assert opened.evaluations([]) == {}


@pytest.mark.parametrize("how", ["finish", "release", "fail", "reclaim"])
def test_an_attempt_that_has_ended_never_changes(opened: Store, how: str) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [Progress(1, 10, {"loss": 1.0})])
    match how:
        case "finish":
            opened.finish(attempt)
        case "release":
            opened.release(attempt)
        case "fail":
            opened.fail(attempt, "boom")
        case _:
            assert opened.reclaim_all() == [KEY]
    before = (opened.attempts(), opened.metrics(attempt), opened.trial_states())
    for change in (
        lambda: opened.record(attempt, [Progress(2, 10, {"loss": 2.0})]),
        lambda: opened.record(attempt, [evaluated()]),
        lambda: opened.finish(attempt),
        lambda: opened.fail(attempt, "later"),
        lambda: opened.release(attempt),
    ):
        with pytest.raises(AttemptOverError):
            change()
    opened.heartbeat([attempt])
    assert before == (opened.attempts(), opened.metrics(attempt), opened.trial_states())


def test_a_result_is_never_replaced(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [evaluated(value=39.3)])
    with pytest.raises(ValueError, match="no evaluation"):
        opened.record(attempt, [evaluated(value=50.0)])
    assert opened.evaluations()[EVALUATION].metrics == {"AP": 39.3}


def test_reports_are_recorded_all_or_not_at_all(opened: Store, tmp_path: Path) -> None:
    attempt = claimed(opened)
    with pytest.raises(ValueError, match="no evaluation"):
        opened.record(attempt, [Progress(1, 10, {"loss": 1.0}), evaluated("f" * 12)])
    with pytest.raises(ValueError, match="must lie in the workspace"):
        opened.record(attempt, [Progress(1, 10, {"loss": 1.0}), Checkpointed(1, "/elsewhere/1.pt", "0" * 64)])
    with pytest.raises(ValueError, match="must lie in the workspace"):
        opened.record(attempt, [Checkpointed(1, "../1.pt", "0" * 64)])
    assert opened.metrics(attempt) == []


def test_an_attempt_ends_with_its_last_reports_or_not_at_all(opened: Store) -> None:
    attempt = claimed(opened)
    with pytest.raises(ValueError, match="no evaluation"):
        opened.finish(attempt, [Progress(1, 10, {"loss": 1.0}), evaluated("f" * 12)])
    assert (state(opened), opened.metrics(attempt)) == ("RUNNING", [])
    opened.finish(attempt, [Progress(10, 10, {"loss": 0.5}), evaluated(value=39.3)])
    assert state(opened) == "COMPLETE"
    assert opened.evaluations()[EVALUATION].metrics == {"AP": 39.3}
    assert [row.value for row in opened.metrics(attempt)] == [0.5]


def test_what_an_attempt_reports_with_its_failure_is_kept(opened: Store) -> None:
    attempt = claimed(opened)
    opened.fail(attempt, "ValueError: broken", [Noticed("a checkpoint was passed over")])
    assert (state(opened), opened.notices(KEY)) == ("FAILED", ["a checkpoint was passed over"])


def test_an_attempt_starts_from_the_results_there_are(opened: Store) -> None:
    attempt = claimed(opened)
    assert opened.start_of(KEY) == Start(1)
    opened.finish(attempt, [evaluated()])
    assert opened.start_of(KEY) == Start(1, frozenset({EVALUATION}))
    assert opened.renew({KEY: 1}) == [KEY]
    assert opened.start_of(KEY) == Start(2)
    assert opened.start_of(KEY).folder == opened.trial_states()[KEY].folder == "attempt-2"


def test_a_curve_takes_what_a_resumed_attempt_redid_from_that_attempt(opened: Store) -> None:
    first = claimed(opened)
    opened.record(first, [Progress(s, 40, {"loss": s / 10}) for s in (10, 20, 25)])
    opened.release(first)
    opened.release(claimed(opened))  # one that reported nothing
    third = claimed(opened)
    opened.record(third, [Progress(s, 40, {"loss": s / 10 + 100}) for s in (20, 30)])
    assert opened.curve(KEY, "loss") == [(10, 1.0), (20, 102.0), (30, 103.0)]


def test_ten_thousand_numbers_are_inserted_fast(opened: Store) -> None:
    attempt = claimed(opened)
    reports = [Progress(s, 2500, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}) for s in range(2500)]
    start = time.perf_counter()
    opened.record(attempt, reports)
    assert time.perf_counter() - start < 3  # about 0.1 s
    assert len(opened.metrics(attempt)) == 10_000


def test_an_attempt_has_the_environment_that_was_described_last(opened: Store) -> None:
    attempt = claimed(opened)
    assert opened.attempts()[0].environment is None
    opened.record(attempt, [Described({"host": "a"}), Described({"host": "b", "gpus": []})])
    opened.record(attempt, [Progress(1, 10)])
    assert opened.attempts()[0].environment == {"host": "b", "gpus": []}


def test_the_pace_is_between_the_first_and_the_last_progress(opened: Store) -> None:
    opened.release(claimed(opened))  # no progress, no pace
    attempt = claimed(opened)
    opened.record(attempt, [Progress(100, 1000, {"loss": 1.0})])
    time.sleep(0.05)
    opened.record(attempt, [Progress(400, 1000), Progress(600, 1000, {"loss": 1.0})])
    opened.record(attempt, [evaluated()])
    opened.finish(attempt)
    (row,) = opened.pace(*SETTING)
    assert (row.trial_key, row.attempt_id, row.steps, row.complete) == (KEY, attempt, 500, True)
    assert 0.04 < row.train_seconds <= row.total_seconds < 60
    assert row.total_seconds == pytest.approx(opened.attempts()[1].seconds)
    assert opened.pace("atss", "coco", "coco-2017") == []


def test_dropped_artifacts_are_those_of_the_attempts_and_kinds_named(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(
        attempt,
        [
            Checkpointed(1, "artifacts/1.pt", "0" * 64),
            Checkpointed(2, "artifacts/2.pt", "0" * 64),
            Evaluated(EVALUATION, {"AP": 39.3}, {"detections": "artifacts/d"}),
        ],
    )
    assert opened.drop_artifacts([attempt + 1], ["checkpoint"]) == []
    assert opened.drop_artifacts([attempt], ["checkpoint"]) == ["artifacts/1.pt", "artifacts/2.pt"]
    assert [row.kind for row in opened.artifacts(KEY)] == ["detections"]


def test_text_that_a_database_would_refuse_is_kept_readable(opened: Store) -> None:
    opened.fail(claimed(opened), "bad byte \0 and half a pair \udc80")
    assert opened.trial_states()[KEY].error == "bad byte \\x00 and half a pair \\udc80"


# --- renewed -------------------------------------------------------------------------------------


def complete(opened: Store, value: float, kind: str = "detections") -> int:
    attempt = claimed(opened)
    opened.record(attempt, [Progress(10, 10, {"loss": value})])
    opened.record(attempt, [Evaluated(EVALUATION, {"AP": value}, {kind: f"artifacts/{attempt}"})])
    opened.finish(attempt)
    return attempt


def test_a_renewed_trial_waits_without_results_and_its_earlier_ones_stay(opened: Store) -> None:
    first = complete(opened, 39.3)
    before = (opened.attempts(), opened.metrics(first), opened.artifacts(KEY))
    assert opened.renew({KEY: 1}) == [KEY]
    row = opened.trial_states()[KEY]
    assert (row.state, row.step, row.total, row.first_attempt, row.folder) == (
        "WAITING",
        0,
        0,
        2,
        "attempt-2",
    )
    assert (opened.evaluations(), opened.curve(KEY, "loss")) == ({}, [])
    assert before == (opened.attempts(), opened.metrics(first), opened.artifacts(KEY))
    (earlier,) = opened.earlier_results(KEY)
    assert (earlier.key, earlier.attempt_id, earlier.metrics) == (EVALUATION, first, {"AP": 39.3})


def test_a_result_has_the_files_of_its_own_attempt_alone(opened: Store) -> None:
    first = complete(opened, 39.3, "scores")
    opened.renew({KEY: 1})
    second = complete(opened, 40.1)
    now = opened.evaluations()[EVALUATION]
    assert (now.metrics, now.artifacts) == ({"AP": 40.1}, {"detections": f"artifacts/{second}"})
    assert not now.imported
    assert opened.earlier_results(KEY)[0].artifacts == {"scores": f"artifacts/{first}"}
    assert (state(opened), opened.curve(KEY, "loss")) == ("COMPLETE", [(10, 40.1)])


def test_a_trial_that_runs_or_was_started_since_is_not_renewed(opened: Store) -> None:
    complete(opened, 39.3)
    opened.ensure_evaluation("f" * 12, KEY, "{}")
    attempt = claimed(opened)
    assert opened.renew({KEY: 1}) == opened.renew({KEY: 2}) == []
    opened.cancel([KEY])
    assert opened.renew({KEY: 2}) == [], "its driver has yet to stop it"
    opened.release(attempt)
    assert opened.renew({KEY: 1}) == []
    assert opened.renew({KEY: 2}) == [KEY]
    assert opened.desired_states(*SETTING, [KEY]) == DesiredStates(
        False, {KEY: DesiredState("WAITING", 0, None, 3)}
    )


# --- life and death ------------------------------------------------------------------------------


def test_a_trial_whose_driver_is_silent_shows_as_waiting_with_its_progress(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [Progress(4, 10)])
    fall_silent(opened, 25)
    assert state(opened) == "RUNNING"
    fall_silent(opened, 35)
    row = opened.trial_states()[KEY]
    assert (row.state, row.step, row.total) == ("WAITING", 4, 10)
    opened.heartbeat([attempt])
    assert state(opened) == "RUNNING"


def test_the_holder_of_the_lock_reclaims_everything_whatever_clocks_and_processes_say(opened: Store) -> None:
    # Claimed by this very process, its heartbeat in the future: alive by any sign.
    attempt = claimed(opened)
    fall_silent(opened, -3600)
    ahead = opened.attempts()[0].heartbeat
    assert opened.reclaim_all() == [KEY]
    (row,) = opened.attempts()
    assert (row.id, row.state, row.ended) == (attempt, "LOST", ahead)
    assert state(opened) == "WAITING"
    assert opened.reclaim_all() == []


def test_only_silent_attempts_are_reclaimed_while_other_drivers_live(opened: Store) -> None:
    silent = claimed(opened)
    fall_silent(opened, 31)
    (other,) = add_trials(opened, 1)
    alive = opened.claim(other, "another", {})
    assert opened.reclaim_silent() == [KEY]
    assert [(row.id, row.state) for row in opened.attempts()] == [(silent, "LOST"), (alive, "RUNNING")]
    assert opened.reclaim_silent() == []
    with pytest.raises(AttemptOverError):
        opened.record(silent, [Progress(1, 10)])
    claimed(opened)


def test_reclaiming_ends_the_commands_that_were_killed_at_their_last_heartbeat(opened: Store) -> None:
    ended, silent, killed = (opened.start_invocation("ablation run", {}) for _ in range(3))
    opened.end_invocation(ended)
    opened.claim(KEY, "driver", {}, killed)
    before = opened.invocations()
    (attempt,) = opened.attempts()
    opened.reclaim_all()
    after = opened.invocations()
    assert after[0] == before[0]
    assert [row.ended for row in after[1:]] == [before[1].started, attempt.heartbeat]
    assert [row.id for row in after] == [ended, silent, killed]


KILLED = """
import sys, time
from pathlib import Path
from ablation.protocol import Progress
from ablation.store import Store
place, root = sys.argv[1], Path(sys.argv[2])
store = Store.open(place if "://" in place else Path(place), root=root)
attempt = store.claim("a" * 12, "driver", {})
store.record(attempt, [Progress(7, 10, {"loss": 1.0})])
with store._transaction(writes=True) as t:
    t.connection.exec_driver_sql("UPDATE trials SET step = 9")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.process
def test_after_a_kill_the_store_has_what_was_committed_and_nothing_else(
    opened: Store, place: Place, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(place), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reopened = Store.open(place, root=tmp_path)
    row = reopened.trial_states()[KEY]
    assert (row.state, row.step) == ("RUNNING", 7)
    assert reopened.reclaim_all() == [KEY]
    assert reopened.claim(KEY, "driver", {}) is not None
    reopened.close()


# --- several at once -----------------------------------------------------------------------------


def claim_all(place: Place, root: Path, keys: list[str], barrier: Any, results: Any) -> None:
    own = Store.open(place, root=root)
    barrier.wait()
    results.put([key for key in keys if own.claim(key, str(os.getpid()), {}) is not None])


@pytest.mark.process
@pytest.mark.parametrize("num_processes", [2, 8])
def test_every_trial_is_claimed_exactly_once_by_several_processes(
    opened: Store, place: Place, tmp_path: Path, num_processes: int
) -> None:
    keys = add_trials(opened, 40)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(num_processes), context.Queue()
    starts = [i * 40 // num_processes for i in range(num_processes)]
    processes = [
        context.Process(target=claim_all, args=(place, tmp_path, keys[i:] + keys[:i], barrier, results))
        for i in starts
    ]
    for process in processes:
        process.start()
    won = [key for _ in processes for key in results.get(timeout=120)]
    for process in processes:
        process.join()
    assert sorted(won) == keys
    assert {row.number for row in opened.attempts(keys)} == {1}


def run_together(works: Sequence[Callable[[], object]]) -> None:
    """Runs each in a thread of its own, and raises what one of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


def test_stores_can_be_made_by_several_threads_at_once(place: Place, tmp_path: Path) -> None:
    def make() -> None:
        made = Store.open(place, root=tmp_path)
        made.add_study(*SETTING)
        made.close()

    run_together([make] * 8)
    made = Store.open(place, root=tmp_path)
    assert made.studies() == [SETTING[:2]]
    made.close()


def test_drivers_that_start_the_same_study_at_once_add_its_trials_once(
    opened: Store, place: Place, tmp_path: Path
) -> None:
    others = [Store.open(place, root=tmp_path) for _ in range(3)]
    run_together([partial(add_trials, other, 20) for other in others])
    assert len(opened.trial_states()) == 21
    for other in others:
        other.close()


def test_readers_do_not_wait_for_a_writer_and_see_only_what_is_committed(
    opened: Store, place: Place, tmp_path: Path
) -> None:
    view = Store.open(place, root=tmp_path, read_only=True)
    with opened._transaction(writes=True) as connection:
        connection.execute(schema.trials.update().values(step=9))
        assert view.trial_states()[KEY].step == 0
    assert view.trial_states()[KEY].step == 9
    view.close()


def test_writers_of_several_threads_wait_for_each_other(opened: Store) -> None:
    attempt = claimed(opened)

    def write(name: str) -> None:
        for step in range(20):
            opened.record(attempt, [Progress(step, 20, {name: 0.0})])
            opened.trial_states()

    run_together([partial(write, f"m{i}") for i in range(4)])
    assert len(opened.metrics(attempt)) == 80


# --- invocations and the mirror --------------------------------------------------------------------


def test_attempts_refer_to_their_invocation_and_share_one_copy_of_the_diff(opened: Store) -> None:
    provenance = {"commit": "c0ffee", "diff": "+a", "diff_sha256": "d" * 64}
    invocation = opened.start_invocation("ablation run", provenance)
    attempt = opened.claim(KEY, "driver", provenance, invocation)
    opened.set_invocation_mlflow_run(invocation, "parent")
    opened.end_invocation(invocation)
    (row,) = opened.invocations()
    assert (row.command, row.pid, row.mlflow_run_id) == ("ablation run", os.getpid(), "parent")
    assert row.ended is not None
    assert row.ended >= row.started
    (own,) = opened.attempts()
    assert (own.id, own.invocation_id) == (attempt, invocation)
    assert own.provenance == {"commit": "c0ffee", "diff_sha256": "d" * 64}
    assert opened.diff("d" * 64) == "+a"
    assert opened.diff("0" * 64) is None


def test_the_mirror_is_told_what_it_lacks_and_only_that(opened: Store) -> None:
    attempt = claimed(opened)
    assert [row.id for row in opened.attempts_to_mirror()] == [attempt]
    opened.set_mlflow_run(attempt, "run")
    opened.mark_mirrored(attempt, 0, "RUNNING")
    assert opened.attempts_to_mirror() == []
    opened.record(attempt, [Progress(1, 10, {"loss": 1.0})])
    assert [row.mlflow_run_id for row in opened.attempts_to_mirror()] == ["run"]
    opened.mark_mirrored(attempt, opened.metrics(attempt)[-1].id, "RUNNING")
    assert opened.attempts_to_mirror() == []
    opened.fail(attempt, "boom")
    assert [row.state for row in opened.attempts_to_mirror()] == ["FAILED"]
    opened.mark_mirrored(attempt, opened.metrics(attempt)[-1].id, "FAILED")
    assert opened.attempts_to_mirror() == []


def test_times_are_aware_and_seconds_add_up(opened: Store) -> None:
    for _ in range(2):
        opened.release(claimed(opened))
    attempts = opened.attempts()
    assert all(row.started.utcoffset() == timedelta(0) for row in attempts)
    assert opened.trial_states()[KEY].seconds == pytest.approx(sum(row.seconds for row in attempts))


def test_runs_that_mlflow_has_lost_are_forgotten_and_not_mirrored_again(opened: Store) -> None:
    attempt = claimed(opened)
    opened.set_mlflow_run(attempt, "run")
    opened.mark_mirrored(attempt, 0, "RUNNING")
    opened.forget_mlflow_runs(["run", "unknown"])
    assert opened.attempts()[0].mlflow_run_id is None
    assert opened.attempts_to_mirror() == []


# --- joint measurements ----------------------------------------------------------------------------------


def test_the_newest_joint_measurement_of_a_setting_counts(opened: Store) -> None:
    assert opened.joint(*SETTING) is None
    for machine, speed in (("first", 10.0), ("second", 12.0)):
        facts = {"commit": "c0ffee", "diff": "a change", "diff_sha256": "d" * 64}
        opened.add_joint(SETTING, machine, facts, {EVALUATION: 1}, {EVALUATION: {"speed": [speed, 11.0]}})
    newest = opened.joint(*SETTING)
    assert newest is not None
    assert (newest.machine, newest.num_rounds) == ("second", 2)
    assert newest.rounds == {EVALUATION: {"speed": [12.0, 11.0]}}
    assert newest.provenance == {"commit": "c0ffee", "diff_sha256": "d" * 64}
    assert opened.diff("d" * 64) == "a change"
    opened.add_study("atss", "smoke", "shapes-1")
    assert opened.joint("atss", "smoke", "shapes-1") is None
