"""A folder that every machine sees under one path: all work in the same trial directories."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ablation.files import write_whole
from ablation.fingerprint import checked_key
from ablation.storage.base import storage_error
from ablation.storage.names import STOP, checked_path


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The `artifacts` folder of a workspace. Files need no copying, so most methods do nothing."""

    root: Path

    @property
    def url(self) -> str:
        """Its path."""
        return str(self.root)

    def directory(self, trial_key: str) -> Path:
        """The one directory of the trial; made when absent."""
        directory = self.root / checked_key(trial_key)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def fetch(self, trial_key: str, directory: Path, folder: str = "") -> list[str]:
        """Does nothing."""
        return []

    def upload(self, trial_key: str, directory: Path, files: Sequence[Path]) -> None:
        """Does nothing."""

    def prune(self, trial_key: str, directory: Path) -> None:
        """Does nothing."""

    def delete(self, trial_key: str, paths: Collection[str]) -> None:
        """Does nothing: the files lie in the workspace."""

    def download(self, trial_key: str, path: str, directory: Path) -> Path:
        """Where the file lies already."""
        return directory / checked_path(path)

    def remove_copies(self, trial_key: str, directory: Path) -> None:
        """Does nothing: there are no copies."""

    def ask_to_stop(self, trial_key: str) -> None:
        """Writes the stop marker."""
        with self._errors():
            (self.directory(trial_key) / STOP).touch()

    def stop_asked(self, trial_key: str) -> bool:
        """Whether the stop marker is there; False while the folder cannot be read."""
        try:
            return (self.root / checked_key(trial_key) / STOP).exists()
        except OSError:  # of a network file system, for example
            return False

    def clear_stop(self, trial_key: str) -> None:
        """Deletes the stop marker."""
        with self._errors():
            (self.root / checked_key(trial_key) / STOP).unlink(missing_ok=True)

    def probe(self) -> None:
        """Writes, reads and deletes a small file; StorageError when that fails."""
        path = self.root / f".probe-{uuid.uuid4().hex}"
        with self._errors():
            write_whole(path, path.name)
            path.read_text()
            path.unlink()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, f"use the shared folder {self.root}") from error
