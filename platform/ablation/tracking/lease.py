"""The lease on copying to MLflow: one process at a time has it. It is a row of the store."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field

from ablation.errors import UserError
from ablation.store import Store

LEASE_SECONDS = 120.0
"""How long a lease lasts: longer than any request but an upload, which two processes may repeat safely."""

RENEWAL_SECONDS = 20.0
"""Age at which a lease is renewed before the next request."""


class MirrorBusyError(UserError):
    """Another process has the lease, or this one was told to stop."""


@dataclass
class Lease:
    """This process's lease on copying a store to MLflow.

    Attributes:
        abandoned: once set, `renew` raises and `acquire` waits no longer.
    """

    store: Store
    abandoned: threading.Event = field(default_factory=threading.Event)
    _holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}")
    _renewed: float = 0.0

    def acquire(self, patience: float) -> None:
        """Takes the lease, or waits `patience` seconds for the process that has it.

        Raises:
            MirrorBusyError: the other process still has it.
        """
        deadline = time.monotonic() + patience
        while not self.store.lease_mirror(self._holder, LEASE_SECONDS):
            if time.monotonic() >= deadline or self.abandoned.wait(0.2):
                raise MirrorBusyError("another process is copying to MLflow")
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Renews an old lease. Called before each request that may take long.

        Raises:
            MirrorBusyError: the lease ran out and another process took it, or the mirror was closed.
        """
        if self.abandoned.is_set():
            raise MirrorBusyError("the copy was stopped before its end")
        if time.monotonic() - self._renewed > RENEWAL_SECONDS:
            self.acquire(0)

    def release(self) -> None:
        """Gives the lease back."""
        self.store.lease_mirror(self._holder, 0)
