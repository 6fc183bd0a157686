"""The database of a result store: opening, upgrading and transactions that survive a lost server.

SQLite is one file and uses the machine's clock. A transaction of `write` is on disk when it returns, so
results and what people want survive a power failure. One of `write_async` reaches the disk with the next of
those, or when the operating system writes it: a power failure loses the last seconds of progress, which
drivers report again after they resumed at a checkpoint. A killed process loses nothing of either.

PostgreSQL uses the server's settings and the server's clock, because the clocks of several drivers differ.
A transaction whose connection broke is repeated until it is certain that it was committed exactly once
(`Database.run`).
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

from sqlalchemy import Engine, func, inspect, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError

from ablation.errors import UserError
from ablation.store import engines, schema
from ablation.store.schema import SCHEMA_VERSION
from ablation.store.transactions import Transaction

PAUSES_S = (0.1, 0.3, 1, 2, 4, 8, 15)
"""Pauses between tries to reach a lost server: half a minute in all."""
SCHEMA_LOCK = 0x61626C61
"""Number of the PostgreSQL advisory lock under which tables are made and upgraded."""
ROLLED_BACK = {"40001", "40P01", "55P03"}
"""SQLSTATE of serialization failures, deadlocks and lock timeouts: the transaction may be repeated."""

_ADVICE = (
    ("disk is full", "Free some space there, or move the workspace with --workspace."),
    ("no space left", "Free some space on the server."),
    ("readonly", "Make the file and its folder writable, or choose another --workspace."),
    ("read-only", "It was opened read only, or the server is read only: check its settings."),
    ("permission denied", "Ask the server's administrator to grant this account the right."),
    ("not a database", "Move the file away (a new one is made) or restore it from a backup."),
    ("malformed", "The file is damaged. Restore it from a backup, or move it away: checkpoints stay usable."),
    ("locked", "Another program holds the lock; end that program, then run the command again."),
    ("lock timeout", "Another program holds the lock; end that program, then run the command again."),
    ("unable to open", "Check that its folder exists, is a folder and may be written to."),
    ("disk i/o", "Check the disk, then run the command again."),
    ("too many clients", "Raise the server's limit of connections, or end other programs."),
    ("connect", "Check that the database server runs and that its address and account are right."),
)

T = TypeVar("T")


class NoStoreError(UserError):
    """The database exists, but has no tables of a store."""


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
        database = cls(*engines.make(place, read_only))
        try:
            database._check_schema(read_only)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    @property
    def shared(self) -> bool:
        """Whether it is a server, which several drivers may use at once."""
        return self.engine.dialect.name != "sqlite"

    def run(self, work: Callable[[Transaction], T], *, writes: bool, durable: bool = True) -> T:
        """Does work in a transaction; a durable one that writes is on disk when this returns.

        When the connection breaks, or another program holds the lock for long, the work is repeated after a
        pause (`PAUSES_S`). When only the answer to a commit was lost, the transaction's mark shows that it
        was committed, and the work is not repeated.

        Raises:
            UserError: the database cannot be used, or the server did not come back.
        """
        number, result = self._writer.next(), None
        for pause in (*PAUSES_S, None):
            try:
                with self._begun(writes, durable) as transaction:
                    if writes and self.shared and not self._writer.mark(transaction, number):
                        return cast(T, result)  # the commit whose answer was lost
                    result = work(transaction)
                return result
            except DBAPIError as error:
                if pause is None or not self._is_transient(error):
                    raise self._explained(error) from error
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def transaction(self, *, writes: bool) -> Iterator[Transaction]:
        """A transaction that is not repeated; UserError where the database cannot be used."""
        try:
            with self._begun(writes) as transaction:
                yield transaction
        except DBAPIError as error:
            raise self._explained(error) from error

    @contextmanager
    def _begun(self, writes: bool, durable: bool = True) -> Iterator[Transaction]:
        with self.engine.connect() as connection:
            connection.execution_options(ablation_writes=writes, ablation_durable=durable)
            if self.shared and not writes:  # it sees one state of the database, as in SQLite
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield Transaction(connection)

    def _is_transient(self, error: DBAPIError) -> bool:
        """Whether a repetition may succeed: the connection broke, or nothing of the transaction was kept."""
        if not self.shared:
            return "locked" in str(error.orig)
        return _is_disconnect(error) or getattr(error.orig, "sqlstate", None) in ROLLED_BACK

    def _explained(self, error: DBAPIError) -> Exception:
        """A UserError with advice; the error itself where it is a bug."""
        reason = " ".join(str(error.orig).split())
        symptoms = f"{reason.lower()} {'connect' if self.shared and _is_disconnect(error) else ''}"
        advice = next((text for symptom, text in _ADVICE if symptom in symptoms), None)
        if advice is None or isinstance(error, IntegrityError):
            return error
        return UserError(f"The result store {self.place} cannot be used: {reason.rstrip('.')}. {advice}")

    # --- versions ------------------------------------------------------------------------------------

    def _check_schema(self, read_only: bool) -> None:
        """Makes the tables where there are none; upgrades those of an older version."""
        with self.transaction(writes=not read_only) as t:
            if self.shared and not read_only:
                t.execute(select(func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            version = self._version(t)
            if version is None and read_only:
                raise NoStoreError(f"{self.place} holds no results yet; a run makes them.")
            if version is not None and version > SCHEMA_VERSION:
                raise UserError(
                    f"{self.place} is a store of version {version}; this program knows version "
                    f"{SCHEMA_VERSION}. Update the program, or {self._elsewhere}."
                )
            if version is not None and version < SCHEMA_VERSION and read_only:
                raise UserError(
                    f"{self.place} is a store of version {version}; this program writes version "
                    f"{SCHEMA_VERSION}. The next run upgrades it, and keeps a copy of a file beside it."
                )
            if not read_only:
                self._upgrade(t, version)

    def _upgrade(self, t: Transaction, version: int | None) -> None:
        """Brings the tables to `SCHEMA_VERSION`. Always writes, so that a read-only database fails here."""
        if version is None:
            schema.metadata.create_all(t.connection)
        elif version < SCHEMA_VERSION:
            from ablation.store.migrations import upgrade  # imports alembic, which takes a while

            if not self.shared:
                engines.back_up(Path(str(self.engine.url.database)), version)
            upgrade(t.connection, version)
        t.insert_new(schema.meta, {"name": "schema_version", "value": ""})
        own = schema.meta.c.name == "schema_version"
        t.execute(schema.meta.update().where(own).values(value=str(SCHEMA_VERSION)))
        w = schema.writers
        t.execute(w.delete().where(w.c.time < t.now - timedelta(days=1)))

    def _version(self, t: Transaction) -> int | None:
        """Version of the store; None where there are no tables."""
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
    """Writes a mark in each transaction, which shows whether one whose answer was lost was committed.

    Each thread has a row, because the transactions of a thread follow each other. A transaction that the
    server has not ended yet holds the row's lock, and its repetition waits for it.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._numbers = itertools.count(1)

    def next(self) -> int:
        """A number for the next transaction, unique in this process."""
        return next(self._numbers)

    def mark(self, t: Transaction, number: int) -> bool:
        """Marks the transaction; False when one of this number was committed already."""
        if not hasattr(self._own, "id"):
            self._own.id = uuid.uuid4().hex
        w = schema.writers
        values = {"id": self._own.id, "last": number, "time": func.timezone("utc", func.clock_timestamp())}
        insert = postgresql.insert(w).values(values)
        newer = {"last": insert.excluded.last, "time": insert.excluded.time}
        marked = insert.on_conflict_do_update(index_elements=[w.c.id], set_=newer, where=w.c.last != number)
        return t.execute(marked.returning(w.c.id)).first() is not None


def _is_disconnect(error: DBAPIError) -> bool:
    """Whether the connection broke, or could not be made (then there is no statement)."""
    return error.connection_invalidated or error.statement is None
