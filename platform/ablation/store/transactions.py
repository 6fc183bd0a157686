"""One transaction of the store, and the decorators that make a method one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from sqlalchemy import ColumnElement, Connection, CursorResult, Executable, RowMapping, Select, func, select
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects import postgresql, sqlite

if TYPE_CHECKING:
    from ablation.store.database import Database

MANY = 10_000
"""Keys in one statement; SQLite takes 32,766 values."""

T = TypeVar("T")
P = ParamSpec("P")


class Transaction:
    """An open transaction, which is committed whole or not at all."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @cached_property
    def now(self) -> datetime:
        """The database's time, the same throughout the transaction."""
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

    def scalars(self, query: Executable, values: Mapping[str, Any] | None = None) -> list[str]:
        """First column, which is text, of the rows that a query finds or a change returns."""
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
        """Inserts a row unless its primary key exists; returns whether it was inserted."""
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
    """The keys, in parts of at most `MANY`."""
    together = list(keys)
    for start in range(0, len(together), MANY):
        yield together[start : start + MANY]


class HasDatabase(Protocol):
    """A class whose methods `read`, `write` and `write_async` decorate."""

    database: Database


H = TypeVar("H", bound=HasDatabase)


def read(method: Callable[Concatenate[H, Transaction, P], T]) -> Callable[Concatenate[H, P], T]:
    """Makes a method one reading transaction, which it gets as its first argument."""
    return _transactional(method, writes=False)


def write(method: Callable[Concatenate[H, Transaction, P], T]) -> Callable[Concatenate[H, P], T]:
    """Makes a method one writing transaction, which it gets as its first argument."""
    return _transactional(method, writes=True)


def write_async(method: Callable[Concatenate[H, Transaction, P], T]) -> Callable[Concatenate[H, P], T]:
    """As `write`, but does not wait for the disk: for what a driver reports again after a power failure."""
    return _transactional(method, writes=True, durable=False)


def _transactional(
    method: Callable[Concatenate[H, Transaction, P], T], *, writes: bool, durable: bool = True
) -> Callable[Concatenate[H, P], T]:
    @wraps(method)
    def whole(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.database.run(lambda t: method(self, t, *args, **kwargs), writes=writes, durable=durable)

    return whole
