"""What workers and the driver ask of a storage, and its error."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from ablation.credentials import hidden
from ablation.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageError(UserError):
    """A storage cannot be used: on which machine, what failed, why, and what to do."""


class Storage(Protocol):
    """The files of all trials. Picklable.

    `directory` is always the trial's directory on this machine, and a path is one in it, with `/`.
    """

    @property
    def url(self) -> str:
        """As fsspec opens it; may hold a password."""
        ...

    def directory(self, trial_key: str) -> Path:
        """Where a worker of this machine keeps the trial's files; made when absent."""
        ...

    def fetch(self, trial_key: str, directory: Path, folder: str = "") -> list[str]:
        """Before an attempt: makes the directory equal to what is stored of the trial.

        Args:
            folder: of the directory; nothing outside it is fetched but the log.

        Returns:
            A line for each stored file that was left out because it is damaged.

        Raises:
            StorageError: the storage cannot be read, or this machine's disk is full.
        """
        ...

    def upload(self, trial_key: str, directory: Path, files: Sequence[Path]) -> None:
        """Stores files of the directory; all of them count at once, or none.

        Raises:
            StorageError: the storage could not be written for `remote.WORKER_RETRY_S`.
            ValueError: a file lies outside the directory.
        """
        ...

    def prune(self, trial_key: str, directory: Path) -> None:
        """Deletes from the storage what was in this directory and has been deleted from it."""
        ...

    def delete(self, trial_key: str, paths: Collection[str]) -> None:
        """Deletes files from the storage; those in the driver's workspace stay."""
        ...

    def download(self, trial_key: str, path: str, directory: Path) -> Path:
        """Copies a stored file into the driver's `directory` of the trial; returns where it lies.

        Raises:
            StorageError: the file is absent or damaged, or the storage cannot be read.
            ValueError: the path leaves the directory.
        """
        ...

    def remove_copies(self, trial_key: str, directory: Path) -> None:
        """After a trial: deletes what a worker's machine has of it."""
        ...

    def ask_to_stop(self, trial_key: str) -> None:
        """Writes the stop marker."""
        ...

    def stop_asked(self, trial_key: str) -> bool:
        """Whether the stop marker is there; False where that cannot be told.

        Cheap; a remote no may be `remote.STOP_POLL_S` old.
        """
        ...

    def clear_stop(self, trial_key: str) -> None:
        """Deletes the stop marker."""
        ...

    def probe(self) -> None:
        """Writes, reads and deletes a small file; StorageError when that fails."""
        ...


def storage_error(error: Exception, action: str) -> StorageError:
    """The error as a person reads it: this machine, the action that failed, the reason, and what to do."""
    reason = hidden(str(error)) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        advice = "It does not exist: make the bucket or the folder first."
    elif isinstance(error, PermissionError):
        advice = "Access is denied: check the credentials and permissions on that machine."
    elif isinstance(error, OSError) and error.errno in DISK_FULL:
        advice = "The disk is full: free some space."
    else:
        advice = "The same command goes on from the last checkpoints once it answers."
    return StorageError(f"{socket.gethostname()} cannot {action}: {reason}. {advice}")
