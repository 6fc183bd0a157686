"""Where a study's files lie, and the lock that lets one driver at a time run in them.

<root>/store.db  <root>/mlflow.db  <root>/artifacts/<trial key>/  <root>/cache/  <root>/driver.lock
<results>/<study>-<profile>/
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from ablation.errors import UserError
from ablation.fingerprint import checked_key

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of one workspace. Making one touches no file.

    Attributes:
        root: what runs leave.
        results: what people read, a folder for each study and profile.
    """

    root: Path
    results: Path

    @staticmethod
    def at(folder: Path | None) -> Workspace:
        """The workspace in a folder, results inside; ./runs, with ./results beside it, when None."""
        if folder is None:
            return Workspace(Path("runs").absolute(), Path("results").absolute())
        return Workspace(folder.absolute(), folder.absolute() / "results")

    @property
    def store_path(self) -> Path:
        """The SQLite file of the store."""
        return self.root / "store.db"

    @property
    def mlflow_path(self) -> Path:
        """The SQLite file of the MLflow mirror."""
        return self.root / "mlflow.db"

    @property
    def mlflow_uri(self) -> str:
        """The MLflow mirror as MLflow wants it.

        Only what SQLAlchemy would misread is quoted: MLflow makes the folder of the text as it stands.
        """
        return f"sqlite:///{str(self.mlflow_path).replace('%', '%25').replace('?', '%3F')}"

    @property
    def artifacts(self) -> Path:
        """Checkpoints and evaluations, a folder for each trial."""
        return self.root / "artifacts"

    @property
    def cache(self) -> Path:
        """What can be made again: data sets drawn, weights converted."""
        return self.root / "cache"

    def trial_directory(self, trial_key: str) -> Path:
        """Where every attempt at a trial keeps its files; ValueError for anything but a key."""
        return self.artifacts / checked_key(trial_key)

    def results_directory(self, study: str, profile: str) -> Path:
        """Where a study's tables at a profile go; UserError for names that make no file name."""
        for name in (study, profile):
            if not _NAME.fullmatch(name):
                raise UserError(
                    f"Study and profile names become folder names: at most 100 letters, digits, '_', '-' "
                    f"and '.' are allowed, not '-' or '.' first; got {name!r}."
                )
        return self.results / f"{study}-{profile}"

    def create(self) -> None:
        """Makes the folders; UserError when they cannot be made or written in.

        A folder that held nothing else gets a `.gitignore` of everything, so that a workspace inside a
        checkout does not make its code look changed.
        """
        probe = self.root / f".write-test-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if all(entry == self.cache for entry in self.root.iterdir()):
                (self.root / ".gitignore").write_text("*\n")
            for folder in (self.artifacts, self.cache):
                folder.mkdir(exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"The workspace {self.root} cannot be written: {error.strerror} ({error.filename}). "
                "Make it writable, or choose another folder with --workspace."
            ) from error

    @contextmanager
    def driver_lock(self, command: str) -> Iterator[None]:
        """Holds the workspace for this process, until the block ends or the process does, however.

        The operating system keeps the lock; what the file says only tells others whom to look for.

        Raises:
            UserError: another driver holds it; names that driver.
        """
        with (self.root / "driver.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"The workspace {self.root} is in use by {_holder(file)}.") from None
            except OSError as error:
                raise UserError(
                    f"The file system of {self.root} has no file locks ({error.strerror}). "
                    "Choose a --workspace on another."
                ) from error
            _write_holder(file, command)
            try:
                yield
            finally:
                file.truncate(0)


def _write_holder(file: TextIO, command: str) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "command": command}
    file.truncate(0)
    file.write(json.dumps(holder))
    file.flush()


def _holder(file: TextIO) -> str:
    """Who holds the lock, as a clause, and what to do about it."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        text = "process {pid} on {host} since {started} ({command})".format(**holder)
    except (ValueError, KeyError, TypeError):
        return "another driver. Wait until it ends, or choose another --workspace"
    return f"{text}. Wait until it ends, end it, or choose another --workspace"
