"""A database that holds a result store: opening it, bringing it to today's version, transactions.

SQLite has one file and the machine's clock. What `writes` did is on disk when it returns: results and wishes
of people outlast a loss of power. What `tells` did gets there with the next of those, or when the system puts
it there: a loss of power takes back the last seconds of what drivers told of trials under way, which go on
from their checkpoints and tell it anew. A process that is killed loses nothing of either.

A PostgreSQL server keeps to its own settings. It has several drivers at a time on machines whose clocks
differ, so its own clock counts, and connections that break. What a transaction did is repeated after that
until it is certain to have happened, once (`Database.run`).
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import quote

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Executable,
    RowMapping,
    Select,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from ablation.errors import UserError
from ablation.store import schema
from ablation.store.schema import SCHEMA_VERSION

BUSY_TIMEOUT_MS = 10_000
"""How long to wait for what another transaction has locked."""
ON_DISK, SOON_ON_DISK = "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"
"""Before a transaction of `writes`, and of `tells`."""
IDLE_TIMEOUT_MS = 60_000
"""After this a server ends a transaction whose program says nothing more: its machine may be gone."""
PAUSES_S = (0.1, 0.3, 1, 2, 4, 8, 15)
"""Between tries to reach a server that was lost: half a minute in all."""
SCHEMA_LOCK = 0x61626C61
"""Number of the server's lock under which tables are made; no other program is likely to use it."""
MANY = 10_000
"""Keys in one statement; SQLite takes 32,766 values."""
ROLLED_BACK = {"40001", "40P01"}
"""SQLSTATE of what a server undoes when transactions get in each other's way."""

_ADVICE = (
    ("disk is full", "Free some space there, or move the workspace with --workspace."),
    ("no space left", "Free some space on the server."),
    ("readonly", "Make the file and its folder writable, or choose another --workspace."),
    ("read-only", "It was opened to look only, or the server allows no more: see its settings."),
    ("permission denied", "Let the server's administrator grant this account more."),
    ("not a database", "Move the file away (a new one is made) or restore it from a backup."),
    ("malformed", "The file is damaged. Restore it from a backup, or move it away: checkpoints stay usable."),
    ("locked", "Another program keeps it locked; end that program, then run the command again."),
    ("lock timeout", "Another program keeps it locked; end that program, then run the command again."),
    ("unable to open", "Check that its folder exists, is a folder and may be written to."),
    ("disk i/o", "The disk reports an error; check it, then run the command again."),
    ("too many clients", "Let the server take more connections, or end other programs."),
    ("connect", "Check that the database server runs and that its address and account are right."),
)

T = TypeVar("T")
P = ParamSpec("P")


class NoStoreError(UserError):
    """There is a database, but nothing has been stored in it yet."""


# --- transactions ------------------------------------------------------------------------------------


class Transaction:
    """A connection at work; whatever it does is committed as a whole or not at all."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @cached_property
    def now(self) -> datetime:
        """The time by the database's clock, the same throughout."""
        if self.connection.dialect.name == "sqlite":
            return datetime.now(UTC)
        clock = select(func.timezone("utc", func.clock_timestamp()))
        found: datetime = self.connection.execute(clock).scalar_one()
        return found.replace(tzinfo=UTC)

    def execute(
        self, statement: Executable, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        """Runs a statement, with values for its parameters and columns, or once for each of several rows."""
        return cast(CursorResult[Any], self.connection.execute(statement, values))

    def rows(self, query: Executable, values: Mapping[str, Any] | None = None) -> Sequence[RowMapping]:
        """Rows that a query finds."""
        return self.execute(query, values).mappings().all()

    def keys(self, query: Executable, values: Mapping[str, Any] | None = None) -> list[str]:
        """First column of what a query finds or a change returns."""
        return list(self.execute(query, values).scalars())

    def value(self, query: Executable, values: Mapping[str, Any] | None = None) -> Any:
        """The single value that a query finds."""
        return self.execute(query, values).scalar_one()

    def rows_among(
        self, query: Select[Any], column: ColumnElement[Any], keys: Collection[Any] | None
    ) -> list[RowMapping]:
        """Rows whose column is among the keys (all when None), however many keys there are."""
        if keys is None:
            return list(self.rows(query))
        return [row for some in in_parts(keys) for row in self.rows(query.where(column.in_(some)))]

    def insert_new(self, table: SqlTable, values: Mapping[str, Any]) -> bool:
        """Inserts a row unless its primary key is there; True when it was not."""
        sqlite_ = self.connection.dialect.name == "sqlite"
        insert = sqlite.insert(table) if sqlite_ else postgresql.insert(table)
        key = list(table.primary_key)
        new = insert.values(values).on_conflict_do_nothing(index_elements=key).returning(*key)
        return self.execute(new).first() is not None

    def insert_all(self, table: SqlTable, rows: Sequence[Mapping[str, Any]]) -> None:
        """Inserts all the rows, which have the same columns."""
        if rows:
            self.execute(table.insert(), rows)

    def insert(self, table: SqlTable, values: Mapping[str, Any]) -> int:
        """Inserts a row; returns its id."""
        key = self.execute(table.insert(), values).inserted_primary_key
        assert key is not None
        return int(key[0])


def in_parts(keys: Collection[T]) -> Iterator[Sequence[T]]:
    """The keys, as many at a time as a statement takes."""
    together = list(keys)
    for start in range(0, len(together), MANY):
        yield together[start : start + MANY]


class HasDatabase(Protocol):
    """What `reads`, `writes` and `tells` make methods of."""

    database: Database


H = TypeVar("H", bound=HasDatabase)


def reads(method: Callable[Concatenate[H, Transaction, P], T]) -> Callable[Concatenate[H, P], T]:
    """Makes a method one transaction that reads; it gets the transaction as its first argument."""
    return _whole(method, writes=False)


def writes(method: Callable[Concatenate[H, Transaction, P], T]) -> Callable[Concatenate[H, P], T]:
    """Makes a method one transaction that writes; it gets the transaction as its first argument."""
    return _whole(method, writes=True)


def tells(method: Callable[Concatenate[H, Transaction, P], T]) -> Callable[Concatenate[H, P], T]:
    """As `writes`, for what would be told anew after a loss of power: does not wait for the disk."""
    return _whole(method, writes=True, waits=False)


def _whole(
    method: Callable[Concatenate[H, Transaction, P], T], *, writes: bool, waits: bool = True
) -> Callable[Concatenate[H, P], T]:
    @wraps(method)
    def whole(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.database.run(lambda t: method(self, t, *args, **kwargs), writes=writes, waits=waits)

    return whole


# --- the database --------------------------------------------------------------------------------------


class Database:
    """An open database. Safe to use from several threads."""

    def __init__(self, engine: Engine, place: str) -> None:
        self.engine = engine
        self.place = place
        self._writer = _Writer()

    @classmethod
    def open(cls, place: Path | str, *, read_only: bool) -> Database:
        """Opens a database; see `Store.open`."""
        url = _url(place, read_only)
        if url.get_backend_name() == "sqlite":
            engine = create_engine(url)
            _prepare_sqlite(engine, read_only)
        else:
            engine = create_engine(url, pool_pre_ping=True, connect_args=_server_settings(url, read_only))
        database = cls(engine, str(place) if isinstance(place, Path) else _without_secrets(url))
        try:
            database._check_schema(read_only)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Gives the connections back."""
        self.engine.dispose()

    @property
    def shared(self) -> bool:
        """Whether it is a server, which several drivers may use at once."""
        return self.engine.dialect.name != "sqlite"

    def run(self, work: Callable[[Transaction], T], *, writes: bool, waits: bool = True) -> T:
        """Does work in a transaction of its own; one that writes and waits is on disk then.

        A server that restarts or a network that breaks is waited for (`PAUSES_S`), and the work is done
        again. Where only the answer to a commit was lost, the mark that the transaction left tells so, and
        it is not.

        Raises:
            UserError: the database cannot be used, or did not come back.
        """
        number, result = self._writer.next(), None
        for pause in (*PAUSES_S, None):
            try:
                with self._begun(writes, waits) as transaction:
                    if writes and self.shared and not self._writer.mark(transaction, number):
                        return cast(T, result)  # what the lost commit did
                    result = work(transaction)
                return result
            except DBAPIError as error:
                if pause is None or not self._passes(error):
                    raise self._explained(error) from error
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def transaction(self, *, writes: bool) -> Iterator[Transaction]:
        """A transaction that is tried only once; UserError where the database cannot be used."""
        try:
            with self._begun(writes) as transaction:
                yield transaction
        except DBAPIError as error:
            raise self._explained(error) from error

    @contextmanager
    def _begun(self, writes: bool, waits: bool = True) -> Iterator[Transaction]:
        with self.engine.connect() as connection:
            connection.execution_options(ablation_writes=writes, ablation_waits=waits)
            if self.shared and not writes:  # all that it reads is of one moment, as in SQLite
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield Transaction(connection)

    def _passes(self, error: DBAPIError) -> bool:
        """Whether it may be gone at the next try: no connection (then there is no statement), or a clash."""
        clash = getattr(error.orig, "sqlstate", None) in ROLLED_BACK
        return self.shared and (error.connection_invalidated or error.statement is None or clash)

    def _explained(self, error: DBAPIError) -> Exception:
        """What to tell a person; the error itself where it is a bug."""
        reason = " ".join(str(error.orig).split())
        lost = self.shared and (error.connection_invalidated or error.statement is None)
        said = f"{reason.lower()} {'connect' if lost else ''}"
        advice = next((text for mark, text in _ADVICE if mark in said), None)
        if advice is None or isinstance(error, IntegrityError):
            return error
        return UserError(f"The result store {self.place} cannot be used: {reason.rstrip('.')}. {advice}")

    # --- versions ------------------------------------------------------------------------------------

    def _check_schema(self, read_only: bool) -> None:
        """Makes the tables where there are none, and upgrades those of an older version."""
        with self.transaction(writes=not read_only) as t:
            if self.shared and not read_only:
                t.execute(select(func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            version = self._version(t)
            if version is None and read_only:
                raise NoStoreError(f"{self.place} holds no results yet: `ablation run` makes them.")
            if version is not None and version > SCHEMA_VERSION:
                raise UserError(
                    f"{self.place} is a store of version {version}; this program knows version "
                    f"{SCHEMA_VERSION}. Update the program, or {self._elsewhere}."
                )
            if version is not None and version < SCHEMA_VERSION and read_only:
                raise UserError(
                    f"{self.place} is a store of version {version}; this program writes version "
                    f"{SCHEMA_VERSION}. `ablation run` upgrades it; of a file it keeps a copy beside it."
                )
            if not read_only:
                self._bring_up(t, version)

    def _bring_up(self, t: Transaction, version: int | None) -> None:
        """To today's version. Always writes: it shows now rather than after hours whether that works."""
        if version is None:
            schema.metadata.create_all(t.connection)
        elif version < SCHEMA_VERSION:
            from ablation.store.migrations import (
                upgrade,  # alembic takes a while to import, and is needed once
            )

            if not self.shared:
                _back_up(Path(str(self.engine.url.database)), version)
            upgrade(t.connection, version)
        t.insert_new(schema.meta, {"name": "schema_version", "value": ""})
        own = schema.meta.c.name == "schema_version"
        t.execute(schema.meta.update().where(own).values(value=str(SCHEMA_VERSION)))
        w = schema.writers
        t.execute(w.delete().where(w.c.time < t.now - timedelta(days=1)))

    def _version(self, t: Transaction) -> int | None:
        """Version of the store; None where there are no tables at all."""
        names = set(inspect(t.connection).get_table_names())
        if not names:
            return None
        if not {"meta", "studies", "trials", "attempts", "metrics"} <= names:
            raise UserError(
                f"{self.place} is a database, but not a result store: it holds other tables. "
                f"{self._elsewhere.capitalize()}{'' if self.shared else ', or move the file away'}."
            )
        m = schema.meta
        return int(t.value(select(m.c.value).where(m.c.name == "schema_version")))

    @property
    def _elsewhere(self) -> str:
        return "name another database" if self.shared else "choose another --workspace"


class _Writer:
    """Leaves a mark in each transaction, so that one whose answer was lost can be looked up.

    A row for each thread, because the transactions of a thread follow each other. An old transaction
    that still goes on at the server holds the row, and the next try waits for its end.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._numbers = itertools.count(1)

    def next(self) -> int:
        """A number that no other transaction of this writer has."""
        return next(self._numbers)

    def mark(self, t: Transaction, number: int) -> bool:
        """Marks the transaction; False when one of this number has been committed."""
        if not hasattr(self._own, "id"):
            self._own.id = uuid.uuid4().hex
        w = schema.writers
        values = {"id": self._own.id, "last": number, "time": func.timezone("utc", func.clock_timestamp())}
        insert = postgresql.insert(w).values(values)
        newer = {"last": insert.excluded.last, "time": insert.excluded.time}
        marked = insert.on_conflict_do_update(index_elements=[w.c.id], set_=newer, where=w.c.last != number)
        return t.execute(marked.returning(w.c.id)).first() is not None


# --- opening -----------------------------------------------------------------------------------------


def _url(place: Path | str, read_only: bool) -> URL:
    if isinstance(place, Path):
        if not read_only:
            return URL.create("sqlite", database=str(place))
        file = f"file:{quote(str(place.absolute()))}"
        return URL.create("sqlite", database=file, query={"mode": "ro", "uri": "true"})
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):  # their messages hold parts of it, perhaps the password
        url = URL.create("unknown")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(
            "A store's address is postgresql+psycopg://USER@HOST:PORT/DATABASE (the password from PGPASSWORD "
            "or ~/.pgpass) or sqlite:////PATH; the one given is neither."
        )
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name() == "postgresql" else url


def _without_secrets(url: URL) -> str:
    """The address as it may be shown: options may hold a password too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _server_settings(url: URL, read_only: bool) -> dict[str, Any]:
    """What psycopg gives to libpq: nothing waits for ever for a server or a network that is gone."""
    settings = {
        "lock_timeout": BUSY_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT_MS,
        "default_transaction_read_only": "on" if read_only else "off",
    }
    own = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return {
        "application_name": "ablation",
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        "options": f"{url.query.get('options', '')} {own}",
    }


def _prepare_sqlite(engine: Engine, read_only: bool) -> None:
    """Write-ahead log, waiting for locks, checked references, and transactions that begin when we say."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            _use_write_ahead_log(connection)

    # A transaction that reads and then writes would fail at once, without waiting, when another has
    # written in between. So one that writes takes the lock at its start. A commit with FULL puts on disk
    # whatever the log holds, of other connections too; with NORMAL the log stays whole, but may end earlier.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("ablation_writes", False):
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(ON_DISK if options["ablation_waits"] else SOON_ON_DISK)
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _use_write_ahead_log(connection: Any) -> None:
    """Set the journal mode. Alone among statements it does not wait for another's lock, so this waits."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _back_up(file: Path, version: int) -> None:
    """A copy of the store beside it, `store.db.v1`, whole or not there."""
    copy = file.with_name(f"{file.name}.v{version}")
    partial = copy.with_name(f"{copy.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        with (
            closing(sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(partial)) as target,
        ):
            source.backup(target)
        partial.replace(copy)
    except (sqlite3.Error, OSError) as error:
        raise UserError(
            f"The store {file} is to be upgraded, but cannot be copied to {copy}: {error}."
        ) from error
