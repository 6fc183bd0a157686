from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from ablation import schema, store
from ablation.errors import UserError
from ablation.protocol import Checkpointed, Evaluated, Noticed, Progress
from ablation.store import AttemptOverError, Store

KEY = "a" * 12
EVALUATION = "e" * 12
WHERE = ("shapes", "shapes-1", "atss")
"""profile, data, study."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def opened(place: Path) -> Store:
    made = Store.open(place)
    made.add_study("atss", "shapes", "shapes-1")
    made.ensure_trial(KEY, "table1 row, seed 0", "{}", 0, *WHERE, tables=["table1"])
    made.ensure_evaluation(EVALUATION, KEY, "{}")
    return made


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


def test_a_trial_can_be_made_known_again_with_another_name_but_not_another_config(opened: Store) -> None:
    claimed(opened)
    opened.ensure_trial(KEY, "table3 row, seed 0", "{}", 0, *WHERE, tables=["table3", "table4"])
    row = opened.trial_states()[KEY]
    assert (row.name, row.tables, row.state) == ("table3 row, seed 0", ("table3", "table4"), "RUNNING")
    with pytest.raises(ValueError, match="another config"):
        opened.ensure_trial(KEY, "x", '{"a":1}', 0, *WHERE)


def test_a_trial_needs_its_study_and_an_evaluation_its_trial(opened: Store) -> None:
    with pytest.raises(IntegrityError):
        opened.ensure_trial("b" * 12, "x", "{}", 0, "smoke", "shapes-1", "atss")
    with pytest.raises(IntegrityError):
        opened.ensure_evaluation("f" * 12, "b" * 12, "{}")


# --- results -------------------------------------------------------------------------------------


def test_reports_are_kept(opened: Store, place: Path) -> None:
    folder = place.parent / "artifacts" / KEY
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


# --- life and death ------------------------------------------------------------------------------


def test_a_trial_whose_driver_is_silent_shows_as_waiting_with_its_progress(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [Progress(4, 10)])
    now = store._now()
    monkeypatch.setattr(store, "_now", lambda: now + timedelta(seconds=25))
    opened.heartbeat([attempt])
    monkeypatch.setattr(store, "_now", lambda: now + timedelta(seconds=50))
    assert state(opened) == "RUNNING"
    monkeypatch.setattr(store, "_now", lambda: now + timedelta(seconds=60))
    row = opened.trial_states()[KEY]
    assert (row.state, row.step, row.total) == ("WAITING", 4, 10)


def test_the_holder_of_the_lock_reclaims_everything_whatever_clocks_and_processes_say(opened: Store) -> None:
    # Claimed by this very process, its heartbeat in the future: alive by any sign.
    attempt = claimed(opened)
    ahead = store._now() + timedelta(hours=1)
    with opened._transaction(writes=True) as connection:
        connection.execute(schema.attempts.update().values(heartbeat=ahead))
    assert opened.reclaim_all() == [KEY]
    (row,) = opened.attempts()
    assert (row.id, row.state, row.ended) == (attempt, "LOST", ahead)
    assert state(opened) == "WAITING"
    assert opened.reclaim_all() == []


def test_reclaiming_ends_the_commands_that_were_killed_when_they_were_last_heard_of(opened: Store) -> None:
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
store = Store.open(Path(sys.argv[1]))
attempt = store.claim("a" * 12, "driver", {})
store.record(attempt, [Progress(7, 10, {"loss": 1.0})])
with store._transaction(writes=True) as connection:
    connection.exec_driver_sql("UPDATE trials SET step = 9")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_after_a_kill_the_store_has_what_was_committed_and_nothing_else(opened: Store, place: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reopened = Store.open(place)
    row = reopened.trial_states()[KEY]
    assert (row.state, row.step) == ("RUNNING", 7)
    assert reopened.reclaim_all() == [KEY]
    assert reopened.claim(KEY, "driver", {}) is not None


# --- several at once -----------------------------------------------------------------------------


def claim_all(place: Path, keys: list[str], barrier: Any, results: Any) -> None:
    own = Store.open(place)
    barrier.wait()
    results.put([key for key in keys if own.claim(key, str(os.getpid()), {}) is not None])


def test_every_trial_is_claimed_exactly_once_by_eight_processes(opened: Store, place: Path) -> None:
    keys = [f"{number:012x}" for number in range(40)]
    for key in keys:
        opened.ensure_trial(key, key, "{}", 0, *WHERE)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(8), context.Queue()
    processes = [
        context.Process(target=claim_all, args=(place, keys[i * 5 :] + keys[: i * 5], barrier, results))
        for i in range(8)
    ]
    for process in processes:
        process.start()
    won = [key for _ in processes for key in results.get(timeout=120)]
    for process in processes:
        process.join()
    assert sorted(won) == keys
    assert {row.number for row in opened.attempts(keys)} == {1}


def test_stores_can_be_made_by_several_threads_at_once(place: Path) -> None:
    errors: list[BaseException] = []

    def make() -> None:
        try:
            Store.open(place).add_study("atss", "shapes", "shapes-1")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_readers_do_not_wait_for_a_writer_and_see_only_what_is_committed(opened: Store, place: Path) -> None:
    view = Store.open(place, read_only=True)
    with opened._transaction(writes=True) as connection:
        connection.execute(schema.trials.update().values(step=9))
        assert view.trial_states()[KEY].step == 0
    assert view.trial_states()[KEY].step == 9


def test_writers_of_several_threads_wait_for_each_other(opened: Store) -> None:
    attempt = claimed(opened)

    def write(name: str) -> None:
        for step in range(20):
            opened.record(attempt, [Progress(step, 20, {name: 0.0})])
            opened.trial_states()

    threads = [threading.Thread(target=write, args=(f"m{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_newer_store_names_both_versions(opened: Store, place: Path) -> None:
    with opened._transaction(writes=True) as connection:
        connection.execute(schema.meta.update().values(value="7"))
    with pytest.raises(UserError, match=r"version 7; this program knows version 1\. Update"):
        Store.open(place)


def test_a_file_that_is_no_database_is_named(place: Path) -> None:
    place.write_text("this is a shopping list, not a database\n" * 100)
    with pytest.raises(UserError, match=r"store\.db cannot be used: file is not a database\. Move"):
        Store.open(place)


def test_another_programs_database_is_not_touched(place: Path) -> None:
    with sqlite3.connect(place) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    with pytest.raises(UserError, match="not a result store"):
        Store.open(place)


def test_a_truncated_store_is_named(opened: Store, place: Path) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [Progress(s, 1000, {"loss": 1.0}) for s in range(1000)])
    opened.close()
    with place.open("r+b") as file:
        file.truncate(place.stat().st_size // 2)
    with pytest.raises(UserError, match=r"store\.db cannot be used: .*malformed.*backup"):
        Store.open(place).metrics(attempt)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/store\.db cannot be used: unable to open"):
        Store.open(tmp_path / "file" / "store.db")


def test_a_view_of_an_absent_store_makes_none(place: Path) -> None:
    with pytest.raises(UserError, match="unable to open"):
        Store.open(place, read_only=True)
    assert not place.exists()


def test_a_view_cannot_write(opened: Store, place: Path) -> None:
    view = Store.open(place, read_only=True)
    with pytest.raises(UserError, match=r"readonly database\. Make the file and its folder writable"):
        view.add_study("other", "shapes", "shapes-1")


def test_a_store_that_cannot_be_written_is_refused_when_it_is_opened(
    opened: Store, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_readable = store._url(place, read_only=True)
    monkeypatch.setattr(store, "_url", lambda *_: only_readable)
    with pytest.raises(UserError, match="readonly"):
        Store.open(place)


def test_a_full_disk_loses_nothing_and_says_what_to_do(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [Progress(1, 10, {"loss": 1.0})])
    with opened._engine.connect() as connection:  # the pool hands this same connection out again
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    many = [Progress(s, 5000, {"loss": 1.0}) for s in range(5000)]
    with pytest.raises(UserError, match=r"store\.db cannot be used: .*disk is full\. Free some space"):
        opened.record(attempt, many)
    assert len(opened.metrics(attempt)) == 1
    with opened._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    opened.record(attempt, many)
    assert len(opened.metrics(attempt)) == 5001


def test_a_locked_store_says_so(opened: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 50)
    impatient = Store.open(place)
    with opened._transaction(writes=True), pytest.raises(UserError, match=r"locked\. Another program"):
        impatient.retry([KEY])


def test_the_schema_is_sql_that_postgresql_understands_too() -> None:
    for table in schema.metadata.sorted_tables:
        assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_a_store_by_url_needs_the_workspace(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/by-url.db"
    with pytest.raises(ValueError, match="needs the workspace"):
        Store.open(url)
    assert Store.open(url, root=tmp_path).trial_states() == {}


def test_a_bug_in_a_statement_is_not_taken_for_the_users_fault(opened: Store) -> None:
    with pytest.raises(Exception, match="no such table") as caught, opened._transaction(writes=False) as c:
        c.exec_driver_sql("SELECT * FROM no_such")
    assert not isinstance(caught.value, UserError)
