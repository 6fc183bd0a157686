"""Opening a store, bringing an old one up to date, and what goes wrong: files first, then servers."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from ablation.errors import UserError
from ablation.protocol import Evaluated, Progress
from ablation.store import Store, database, engines, migrations, schema, transactions
from ablation.store.database import Database, NoStoreError
from ablation.store.transactions import Transaction

KEY = "a" * 12
SETTING = ("atss", "smoke", "shapes-1")
OLD = {
    version: (Path(__file__).resolve().parents[2] / "data" / f"store_v{version}.sql").read_text()
    for version in (1, 2)
}
"""What makes a store of each older version."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def filled(place: Path | str, root: Path) -> Store:
    made = Store.open(place, root=root)
    made.add_study(*SETTING)
    made.ensure_trial(KEY, "table1 row, seed 0", "{}", 0, "smoke", "shapes-1", "atss", tables=["table1"])
    return made


@pytest.fixture
def opened(place: Path) -> Store:
    return filled(place, place.parent)


def claimed(opened: Store) -> int:
    attempt = opened.claim(KEY, "driver", {"commit": "c0ffee"})
    assert attempt is not None
    return attempt


# --- versions ------------------------------------------------------------------------------------


SERVED = [pytest.param(("postgresql", version), marks=pytest.mark.process) for version in (1, 2)]


@pytest.fixture(params=[("sqlite", 1), ("sqlite", 2), *SERVED], ids=str)
def old(request: pytest.FixtureRequest, place: Path) -> Path | str:
    """A store of an older version."""
    kind, version = request.param
    if kind == "sqlite":
        with closing(sqlite3.connect(place)) as connection:
            connection.executescript(OLD[version])
        return place
    url: str = request.getfixturevalue("postgres_url")
    ddl = OLD[version].replace("    id INTEGER NOT NULL", "    id SERIAL NOT NULL")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(ddl.replace("DATETIME", "TIMESTAMP"))
    engine.dispose()
    return url


def test_an_old_store_keeps_its_results_when_it_is_upgraded(old: Path | str, tmp_path: Path) -> None:
    upgraded = Store.open(old, root=tmp_path)
    states = {key[0]: row.state for key, row in upgraded.trial_states().items()}
    assert states == {"a": "COMPLETE", "b": "FAILED", "c": "WAITING"}  # the last one's driver is dead
    assert upgraded.evaluations()["e" * 12].metrics == {"AP": 39.3}
    assert (upgraded.earlier_results(KEY), upgraded.trial_states()[KEY].first_attempt) == ([], 1)
    assert upgraded.curve(KEY, "loss")[:3] == [(10, 2.0), (20, 1.5), (30, 1.0)]
    assert not upgraded.paused(*SETTING)
    wanted = upgraded.desired_states(*SETTING, [KEY]).trials[KEY]
    assert (wanted.priority, wanted.micro_batch) == (0, None)
    paces = {row.attempt_id: (row.steps, row.train_seconds) for row in upgraded.pace(*SETTING)}
    assert paces == {1: (10, 10.0), 2: (10, 30.0), 4: (0, 0.0)}
    assert [row.id for row in upgraded.attempts_to_mirror()] == [2, 3, 4]
    assert upgraded.reclaim_silent() == ["c" * 12]
    assert upgraded.claim("c" * 12, "driver", {}) == 5
    upgraded.close()


def test_an_upgraded_store_has_the_tables_of_a_new_one(old: Path | str, tmp_path: Path) -> None:
    upgraded = Store.open(old, root=tmp_path)
    with upgraded._transaction(writes=False) as t:
        assert compare_metadata(MigrationContext.configure(t.connection), schema.metadata) == []
        new_indexes = {index.name for table in schema.metadata.tables.values() for index in table.indexes}
        assert new_indexes == {
            index["name"]
            for table in schema.metadata.tables
            for index in database.inspect(t.connection).get_indexes(table)
            if not index.get("duplicates_constraint")
        }
    upgraded.close()


def test_a_file_is_copied_before_it_is_upgraded(place: Path) -> None:
    with closing(sqlite3.connect(place)) as connection:
        connection.executescript(OLD[1])
        before = list(connection.iterdump())
    Store.open(place).close()
    with closing(sqlite3.connect(place.with_name("store.db.v1"))) as copy:
        assert list(copy.iterdump()) == before
    assert not list(place.parent.glob("*.partial"))


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(
    old: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = migrations.upgrade

    def fails(*arguments: Any) -> None:
        complete(*arguments)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "upgrade", fails)
        with pytest.raises(RuntimeError, match="power cut"):
            Store.open(old, root=tmp_path)
    with pytest.raises(UserError, match=r"is a store of version [12]"):
        Store.open(old, root=tmp_path, read_only=True)
    assert len(Store.open(old, root=tmp_path).trial_states()) == 3


def test_a_store_that_cannot_be_copied_is_not_upgraded(place: Path) -> None:
    with closing(sqlite3.connect(place)) as connection:
        connection.executescript(OLD[1])
    (place.parent / "store.db.v1.partial").mkdir()
    with pytest.raises(UserError, match="cannot be copied to"):
        Store.open(place)
    with pytest.raises(UserError, match="is a store of version 1"):
        Store.open(place, read_only=True)


def test_several_programs_may_upgrade_at_once(old: Path | str, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def upgrade() -> None:
        try:
            Store.open(old, root=tmp_path).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_view_of_an_old_store_says_how_to_upgrade_it(old: Path | str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"version [12]; this program writes version 4\. The next run upgrades"
    ):
        Store.open(old, root=tmp_path, read_only=True)


def test_a_newer_store_names_both_versions(opened: Store, place: Path) -> None:
    with opened._transaction(writes=True) as t:
        t.execute(schema.meta.update().values(value="7"))
    with pytest.raises(UserError, match=r"version 7; this program knows version 4\. Update"):
        Store.open(place)


# --- files ---------------------------------------------------------------------------------------


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
    only_readable = engines._url(place, read_only=True)
    monkeypatch.setattr(engines, "_url", lambda *_: only_readable)
    with pytest.raises(UserError, match="readonly"):
        Store.open(place)


def test_a_full_disk_loses_nothing_and_says_what_to_do(opened: Store) -> None:
    attempt = claimed(opened)
    opened.record(attempt, [Progress(1, 10, {"loss": 1.0})])
    engine = opened.database.engine
    with engine.connect() as connection:  # the pool hands this same connection out again
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    many = [Progress(s, 5000, {"loss": 1.0}) for s in range(5000)]
    with pytest.raises(UserError, match=r"store\.db cannot be used: .*disk is full\. Free some space"):
        opened.record(attempt, many)
    assert len(opened.metrics(attempt)) == 1
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    opened.record(attempt, many)
    assert len(opened.metrics(attempt)) == 5001


def test_a_locked_store_says_so(opened: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", 50)
    monkeypatch.setattr(database, "PAUSES_S", (0.1,))
    impatient = Store.open(place)
    with (
        opened._transaction(writes=True),
        pytest.raises(UserError, match=r"locked\. Another program holds the lock"),
    ):
        impatient.retry([KEY])


def test_a_store_that_is_locked_for_a_moment_is_waited_for(
    opened: Store, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", 50)
    patient = Store.open(place)
    held, pauses = ExitStack(), list[float]()
    held.enter_context(opened._transaction(writes=True))

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            held.close()

    monkeypatch.setattr(database.time, "sleep", pause)
    patient.cancel([KEY])
    assert pauses == list(database.PAUSES_S[:3])
    assert patient.trial_states()[KEY].state == "CANCELLED"


def test_a_bug_in_a_statement_is_not_taken_for_the_users_fault(opened: Store) -> None:
    with pytest.raises(OperationalError, match="no such table"), opened._transaction(writes=False) as t:
        t.connection.exec_driver_sql("SELECT * FROM no_such")


def test_only_what_a_driver_would_not_report_again_waits_for_the_disk(opened: Store) -> None:
    opened.ensure_evaluation("e" * 12, KEY, "{}")
    levels: list[str] = []

    def level_of(act: Callable[..., Any], *arguments: Any) -> str:
        levels.clear()
        act(*arguments)
        (level,) = levels
        return level

    @event.listens_for(opened.database.engine, "before_cursor_execute")
    def listen(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN IMMEDIATE"):
            value = cursor.execute("PRAGMA synchronous").fetchone()[0]
            levels.append({1: "NORMAL", 2: "FULL"}[value])

    assert level_of(claimed, opened) == "NORMAL"
    assert level_of(opened.heartbeat, [1]) == "NORMAL"
    assert level_of(opened.record, 1, [Progress(1, 10, {"loss": 1.0})]) == "NORMAL"
    assert level_of(opened.record, 1, [Evaluated("e" * 12, {"AP": 1.0})]) == "FULL"
    assert level_of(opened.prioritise, [KEY], 1) == "FULL"
    assert level_of(opened.finish, 1) == "FULL"
    assert level_of(opened.cancel, [KEY]) == "FULL"


def test_no_query_scans_the_metrics_table(opened: Store) -> None:
    attempt = claimed(opened)
    asked: list[tuple[str, Any]] = []
    event.listen(
        opened.database.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, parameters, *_: asked.append((statement, parameters)),
    )
    opened.record(attempt, [Progress(1, 10, {"loss": 1.0})])
    opened.metrics(attempt, 3)
    opened.curve(KEY, "loss")
    opened.pace(*SETTING)
    opened.attempts_to_mirror()
    queries = [query for query in asked if query[0].startswith(("SELECT", "UPDATE"))]
    with opened._transaction(writes=False) as t:
        plans = [
            " ".join(
                row[3] for row in t.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", parameters)
            )
            for query, parameters in queries
        ]
    assert any("metrics USING INDEX ix_metrics_attempt" in plan for plan in plans)
    assert any("USING INDEX ix_attempts_to_mirror" in plan for plan in plans)
    assert not any("SCAN metrics" in plan for plan in plans)


# --- addresses -----------------------------------------------------------------------------------


def test_a_store_by_url_needs_the_workspace(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/by-url.db"
    with pytest.raises(ValueError, match="needs the workspace"):
        Store.open(url)
    opened = Store.open(url, root=tmp_path)
    assert opened.trial_states() == {}
    assert not opened.shared


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:s3cret@host:port/db",  # no number where the port is
        "mysql://me:s3cret@host/db",
        "postgresql//me:s3cret@host/db",
        "nonsense+s3cret://host/db",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="address") as caught:
        Store.open(url, root=tmp_path)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_password_is_never_shown(postgres_url: str, postgres: Any, tmp_path: Path) -> None:
    right = make_url(postgres_url)
    wrong = right.set(password="s3cret").render_as_string(hide_password=False)
    with pytest.raises(UserError, match=r"tester:\*\*\*@.*address and account are right") as caught:
        Store.open(wrong, root=tmp_path)
    hidden = right._replace(password=None).update_query_dict({"password": "s3cret"})
    with pytest.raises(UserError) as in_query:
        Store.open(hidden.render_as_string(), root=tmp_path)
    store = Store.open(postgres_url, root=tmp_path)
    shown = [*map(traceback.format_exception, (caught.value, in_query.value)), repr(vars(store.database))]
    store.close()
    for text in map("".join, shown):
        assert "s3cret" not in text
        assert str(right.password) not in text


def test_the_password_may_come_from_the_environment(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(postgres_url)
    monkeypatch.setenv("PGPASSWORD", str(url.password))
    bare = url._replace(password=None, drivername="postgresql")
    opened = Store.open(bare.render_as_string(), root=tmp_path)
    assert opened.shared
    opened.close()


# --- servers -------------------------------------------------------------------------------------


@pytest.fixture
def served(postgres_url: str, tmp_path: Path) -> Store:
    return filled(postgres_url, tmp_path)


def test_reading_an_empty_database_raises_an_error_of_its_own(postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(NoStoreError, match="holds no results yet"):
        Store.open(postgres_url, root=tmp_path, read_only=True)


def test_a_view_on_a_server_cannot_write(served: Store, postgres_url: str, tmp_path: Path) -> None:
    view = Store.open(postgres_url, root=tmp_path, read_only=True)
    with pytest.raises(UserError, match="read-only transaction"):
        view.cancel([KEY])
    view.close()


def test_a_store_on_a_server_keeps_apart_from_other_tables(postgres_url: str, tmp_path: Path) -> None:
    with create_engine(postgres_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(UserError, match=r"not a result store.*Name another database"):
        Store.open(postgres_url, root=tmp_path)


OPENS = """
import sys
from pathlib import Path
from ablation.store import Store
print("ready", flush=True)
sys.stdin.readline()
Store.open(sys.argv[1], root=Path(sys.argv[2])).add_study("atss", "smoke", "shapes-1")
"""


def test_drivers_that_start_at_once_make_the_tables_once(postgres_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENS, postgres_url, str(tmp_path)]
    pipe = subprocess.PIPE
    drivers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for driver in drivers:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        driver.communicate("go\n", timeout=60)
    assert [driver.returncode for driver in drivers] == [0, 0]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_a_store_works_again_after_its_server_was_restarted(served: Store, postgres: Any, how: int) -> None:
    attempt = claimed(served)
    postgres.stop(how)
    postgres.start()
    served.record(attempt, [Progress(1, 10, {"loss": 1.0})])
    assert len(served.metrics(attempt)) == 1
    assert served.trial_states()[KEY].state == "RUNNING"


def test_an_operation_waits_for_a_server_that_is_away_for_a_moment(served: Store, postgres: Any) -> None:
    attempt = claimed(served)
    postgres.stop()
    back = threading.Timer(0.8, postgres.start)
    back.start()
    served.record(attempt, [Progress(1, 10, {"loss": 1.0})])
    back.join()
    assert [row.step for row in served.metrics(attempt)] == [1]


def test_a_server_that_stays_away_is_named(
    served: Store, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PAUSES_S", (0.05, 0.05))
    postgres.stop()
    try:
        for operation in (served.trial_states, lambda: served.cancel([KEY])):
            with pytest.raises(UserError, match=r"tester:\*\*\*@.*Check that the database server runs"):
                operation()
    finally:
        postgres.start()
    assert served.cancel([KEY]) == [KEY]


class Cut:
    """Breaks the connection of one write: before its commit reaches the server, or after."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
        dialect, self.commits = store.database.engine.dialect, 0
        commit: Callable[[Any], None] = dialect.do_commit

        def cut(connection: Any) -> None:
            self.commits += 1
            if self.commits == 1:
                if after:
                    commit(connection)
                connection.driver_connection.close()  # as when the network breaks
            commit(connection)

        monkeypatch.setattr(dialect, "do_commit", cut)


@pytest.mark.parametrize("after", [False, True], ids=["nothing was committed", "only the answer was lost"])
@pytest.mark.parametrize(
    ("write", "outcome"),
    [
        (lambda store, attempt: store.record(attempt, [Progress(2, 10, {"loss": 1.0})]), None),
        (lambda store, attempt: store.release(attempt), None),
        (lambda store, attempt: store.claim("b" * 12, "driver", {}) is None, False),
        (lambda store, attempt: store.cancel(["b" * 12]), ["b" * 12]),
    ],
    ids=["record", "release", "claim", "cancel"],
)
def test_a_write_whose_connection_broke_happens_exactly_once(
    served: Store,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
    write: Callable[[Store, int], object],
    outcome: object,
) -> None:
    served.ensure_trial("b" * 12, "other", "{}", 1, "smoke", "shapes-1", "atss")
    attempt = claimed(served)
    cut = Cut(served, monkeypatch, after=after)
    assert write(served, attempt) == outcome
    assert cut.commits >= 2
    assert len(served.metrics(attempt)) <= 1
    assert len(served.attempts(["b" * 12])) <= 1


def test_transactions_that_wait_for_each_other_in_a_circle_both_happen(served: Store) -> None:
    served.ensure_trial("b" * 12, "other", "{}", 1, "smoke", "shapes-1", "atss")
    r, barrier = schema.trials, threading.Barrier(2)

    def raise_both(keys: list[str]) -> None:
        first = [True]

        def work(t: Transaction) -> None:
            for key in keys:
                t.execute(r.update().where(r.c.key == key).values(priority=r.c.priority + 1))
                if first:
                    first.clear()
                    barrier.wait()

        served.database.run(work, writes=True)

    both = [KEY, "b" * 12]
    threads = [threading.Thread(target=raise_both, args=(keys,)) for keys in (both, both[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.priority for row in served.trial_states(both).values()] == [2, 2]


def test_heartbeats_follow_the_servers_clock(served: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2001, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(transactions, "datetime", Behind)
    attempt = claimed(served)
    served.heartbeat([attempt])
    assert abs(served.attempts()[0].heartbeat.timestamp() - time.time()) < 60
    assert served.reclaim_silent() == []


def test_marks_of_programs_that_are_gone_are_removed(
    served: Store, postgres_url: str, tmp_path: Path
) -> None:
    with served._transaction(writes=True) as t:
        t.execute(schema.writers.insert().values(id="old", last=1, time=datetime(2001, 1, 1, tzinfo=UTC)))
    Database.open(postgres_url, read_only=False).close()
    with served._transaction(writes=False) as t:
        assert "old" not in t.scalars(schema.writers.select())
