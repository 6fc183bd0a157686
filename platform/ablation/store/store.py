"""The state of every trial: what is wanted, which attempts ran, what the results are.

Each method is one transaction, which commits whole or not at all. Its decorator supplies the argument `t`
(`transactions.write`). Drivers write attempts, commands write what people want, and any process may read at
the same time. States of a trial:

    WAITING --claim--> RUNNING --finish--> COMPLETE --ensure_evaluation (a new one)--> WAITING
       ^------------------|  |--fail-----> FAILED   --retry--> WAITING
        release, reclaim
    WAITING, RUNNING, FAILED --cancel--> CANCELLED --retry--> WAITING
    all but RUNNING --renew--> WAITING, without results

A running attempt of a cancelled trial goes on until its driver ends it; only a finish changes the trial's
state then. An attempt that has ended never changes, except for the notes of the MLflow mirror and for numbers
that an evaluation server returns (`import_scores`).

Several drivers may share a database server. A transaction that changes an attempt and its trial locks the
attempt first and the trial second, which prevents deadlocks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from ablation.store.attempts import Attempts
from ablation.store.database import Database
from ablation.store.mirroring import Mirroring
from ablation.store.transactions import Transaction
from ablation.store.trials import Trials


class Store(Trials, Attempts, Mirroring):
    """The store of one workspace. Safe to use from several threads."""

    @classmethod
    def open(cls, place: Path | str, *, root: Path | None = None, read_only: bool = False) -> Store:
        """Opens a store; makes its tables where there are none, and upgrades those of an older version.

        Args:
            place: path of an SQLite file, or a database URL. An SQLite file is copied beside itself before
                an upgrade.
            root: the workspace that artifact paths are relative to; the file's folder when None.
            read_only: never writes; an absent store is an error.

        Raises:
            NoStoreError: read only, and the database is empty.
            UserError: it cannot be opened or written, is no store, or is of a newer version (read only: of
                another version). No message shows a password.
        """
        if root is None:
            if not isinstance(place, Path):
                raise ValueError("a store given by URL needs the workspace's root")
            root = place.parent
        return cls(Database.open(place, read_only=read_only), root.resolve())

    def close(self) -> None:
        """Closes the connections; the store may not be used afterwards."""
        self.database.close()

    @property
    def shared(self) -> bool:
        """Whether several drivers may use it at once: it is on a database server, not in a file."""
        return self.database.shared

    def _transaction(self, *, writes: bool) -> AbstractContextManager[Transaction]:
        """A transaction for a test or benchmark."""
        return self.database.transaction(writes=writes)
