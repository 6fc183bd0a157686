"""The driver's heartbeat: keeps its attempts alive in the store, and notices when Ray is gone.

A thread sends it. Other drivers, and `ablation status`, read it in the store: what sends none for
`store.SILENCE` is reclaimed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from ablation.cluster import connection as cluster
from ablation.driver.attempts import AttemptManager
from ablation.errors import UserError
from ablation.resources import Node
from ablation.store import SILENCE

EVERY_S = 2.0
LATE_S = 10.0
"""A heartbeat later than this was delayed, by the store or because the whole machine slept."""


@dataclass(slots=True)
class Heartbeat:
    """Says that the running attempts are alive, and reclaims those of drivers that no longer do."""

    manager: AttemptManager
    sent: float = field(default_factory=time.monotonic)
    patient_until: float = 0.0

    def send(self) -> None:
        """To the store.

        Where this driver could not reach the store for a while, others could not either: they get as long
        to send a heartbeat.
        """
        self.manager.store.heartbeat([attempt.id for attempt in list(self.manager.running.values())])
        before, self.sent = self.sent, time.monotonic()
        if self.sent - before > LATE_S:
            self.patient_until = self.sent + SILENCE.total_seconds()

    def reclaim(self) -> None:
        """Frees the trials of drivers that are gone."""
        self.send()
        if time.monotonic() >= self.patient_until:
            self.manager.store.reclaim_silent()


class Monitor:
    """The thread that sends heartbeats, counts nodes, and watches Ray's processes while the block runs.

    Ray's own library does not notice for a minute that its central process (GCS) is dead, and never that the
    node's (raylet) is.

    Args:
        nodes: the present ones.
        endpoints: addresses of Ray's processes.
        patience: failed rounds in a row after which Ray counts as dead.
        on_ray_lost: called then, once.

    Attributes:
        nodes: the present ones, as last seen.
        failure: why the run must end, when it must.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        nodes: tuple[Node, ...],
        endpoints: Sequence[tuple[str, int]],
        patience: int,
        on_ray_lost: Callable[[], None],
    ) -> None:
        self.nodes = nodes
        self.failure: Exception | None = None
        self._heartbeat = heartbeat
        self._endpoints = endpoints
        self._patience = patience
        self._on_ray_lost = on_ray_lost
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        missed = 0
        while not self._over.wait(EVERY_S):
            self._send()
            missed = 0 if all(map(cluster.opens, self._endpoints)) else missed + 1
            if not missed:
                with suppress(Exception):  # Ray may be ending; the next round sees it
                    self.nodes = cluster.nodes()
            if missed == self._patience:
                self.failure = UserError(
                    "Ray stopped in the middle of the run (its processes are gone). The running trials are "
                    "interrupted; the same command continues from their last checkpoints."
                )
                self._on_ray_lost()

    def _send(self) -> None:
        try:
            self._heartbeat.send()
        except Exception as error:  # the loop raises it in the main thread
            self.failure = self.failure or error
