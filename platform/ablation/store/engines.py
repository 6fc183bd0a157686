"""How a connection to SQLite or PostgreSQL is made and set up."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from ablation.errors import UserError

BUSY_TIMEOUT_MS = 5_000
"""How long a transaction waits for another's lock before it is repeated (`database.PAUSES_S`)."""

IDLE_TIMEOUT_MS = 60_000
"""After this a server ends a transaction without statements: the driver's machine may be gone."""

ON_DISK, SOON_ON_DISK = "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"
"""Set before a transaction of `write`, and of `write_async`."""


def make(place: Path | str, read_only: bool) -> tuple[Engine, str]:
    """An engine for an SQLite file or a URL, and the place's name without secrets, for messages.

    Raises:
        UserError: the URL is not one of SQLite or PostgreSQL.
    """
    url = _url(place, read_only)
    name = str(place) if isinstance(place, Path) else _without_secrets(url)
    if url.get_backend_name() != "sqlite":
        settings = _server_settings(url, read_only)
        return create_engine(url, pool_pre_ping=True, connect_args=settings), name
    engine = create_engine(url)
    _prepare_sqlite(engine, read_only)
    return engine, name


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
    """The address without password and options, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _server_settings(url: URL, read_only: bool) -> dict[str, Any]:
    """Settings of libpq: timeouts, so that nothing waits for ever for a lost server or network."""
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
    """Sets the write-ahead log, lock timeout, foreign keys, and when transactions begin."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            _use_write_ahead_log(connection)

    # SQLite fails a transaction that reads and then writes, without waiting, when another has written in
    # between. So a writing transaction takes the lock at its start. A commit with FULL syncs the whole log,
    # other connections' transactions too; with NORMAL a power failure may cut the log's end off.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("ablation_writes", False):
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(ON_DISK if options["ablation_durable"] else SOON_ON_DISK)
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _use_write_ahead_log(connection: Any) -> None:
    """Sets the journal mode. This statement does not wait for locks by itself, so it is repeated."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def back_up(file: Path, version: int) -> None:
    """Copies the store to `store.db.v<version>` beside it; the copy is complete or absent."""
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
            f"The store {file} needs an upgrade, but cannot be copied to {copy}: {error}."
        ) from error
