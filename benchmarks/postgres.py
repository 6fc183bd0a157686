"""A PostgreSQL server of our own, for as long as it is needed: benchmarks and tests use no other."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from ablation.cluster.connection import free_port

PASSWORD = "not-to-be-seen"
START_S = 60.0


@dataclass
class PostgresServer:
    """A PostgreSQL server on a loopback port; PostgreSQL refuses to run as root.

    Attributes:
        binaries: folder of its programs.
        folder: where its files go, of the account that it runs as.
        user: that account; None for one's own.
    """

    binaries: Path
    folder: Path
    user: str | None
    port: int
    process: subprocess.Popen[bytes] | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str) -> str:
        """Address of a database, with the password."""
        return f"postgresql+psycopg://tester:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """URL of a database in which nothing is."""
        name = f"test{next(self.numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection as the server's administrator."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname="postgres",
            user="tester",
            password=PASSWORD,
            autocommit=True,
        )

    def create(self) -> None:
        """Makes its files."""
        password = self.folder / "password"
        password.write_text(PASSWORD)
        words = ["initdb", "-U", "tester", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run(self._command(*words), check=True, capture_output=True, **self._as_user())

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder, "fsync": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = self._command("postgres", "-p", str(self.port), *words)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user())
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: int = signal.SIGINT) -> None:
        """Ends it: SIGINT cuts connections and tidies up, SIGQUIT is as good as a crash."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)

    def _command(self, program: str, *words: str) -> list[str]:
        return [str(self.binaries / program), "-D", str(self.folder / "data"), *words]

    def _as_user(self) -> dict[str, Any]:
        own = {"cwd": self.folder, "start_new_session": True}
        return own if self.user is None else own | {"user": self.user, "extra_groups": []}


@contextmanager
def running_server() -> Iterator[PostgresServer | None]:
    """A server with an account of its own; None where its programs are not installed."""
    binaries = _binaries()
    if binaries is None:
        yield None
        return
    user = _unprivileged() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        if user is not None:
            shutil.chown(folder, user)
        server = PostgresServer(binaries, Path(folder), user, free_port())
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def _binaries() -> Path | None:
    """Where initdb is: on the PATH, or where Debian puts it, the newest version there."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    places = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(places, key=lambda path: float(path.parts[4]))[-1:]
    return newest[0].parent if newest else None


def _unprivileged() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
