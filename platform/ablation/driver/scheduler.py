"""Which trial starts next, and on which nodes: a group of workers starts whole or not at all.

The order of the queue is highest priority first, then longest first by estimate, where time waited counts as
length: of what is submitted together the longest starts first, and nothing waits for ever behind longer ones
that keep coming.

The head of the queue may not fit while smaller entries do. They may start before it for as long as the head
itself would run; after that nothing starts until the head does, so that running trials end and make room.

Knows no Ray and no clock: the caller passes times and nodes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ablation.driver.placement import Allocation, Demand, FreeResources, demand_of, place
from ablation.resources import Node, Resources


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A trial that waits to start.

    Attributes:
        seconds: how long it will run, by estimate; > 0.
        priority: higher starts first.
    """

    id: str
    resources: Resources
    seconds: float
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds must be > 0, got {self.seconds} for {self.id}")


class GangScheduler:
    """The queue, what is free on each node, and what each running trial holds.

    Args:
        nodes: the present ones.
        limit: most trials at a time; None for as many as fit.
    """

    def __init__(self, nodes: Iterable[Node], limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be >= 1, got {limit}")
        self._limit = limit
        self._nodes: dict[str, Node] = {}
        self._began: float | None = None
        self._clock = 0.0
        self._submitted: dict[str, tuple[float, int]] = {}
        self._queue: list[_Position] = []
        self._positions: dict[str, _Position] = {}
        self._running: dict[str, _Running] = {}
        self._quarantined: dict[str, list[Allocation]] = {}
        self._passed: tuple[str, float] | None = None
        self.set_nodes(nodes)

    # --- what there is

    @property
    def running(self) -> Mapping[str, QueueEntry]:
        """The entries that hold allocations, by id, first started first."""
        return {id: run.entry for id, run in self._running.items()}

    @property
    def waiting(self) -> Mapping[str, QueueEntry]:
        """The queue, by id, in order."""
        return {position.entry.id: position.entry for position in self._queue}

    @property
    def passed(self) -> tuple[str, float] | None:
        """The head that smaller entries started before, and the time after which none does so any more."""
        if self._passed is None:
            return None
        id, since = self._passed
        return id, since + self._positions[id].entry.seconds

    def placement(self, id: str) -> tuple[str, ...]:
        """The node of each worker of a running trial, without lost nodes; KeyError when it does not run."""
        allocations = self._running[id].allocations
        return tuple(node for node, held in allocations.items() for _ in range(held.workers))

    def never_fits(self, resources: Resources) -> bool:
        """Whether the nodes have too little even with nothing running."""
        return self._never_fits(demand_of(resources))

    # --- what happens

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Nodes joined or were lost. Running trials keep their allocations on the nodes that are left.

        A node that comes back with another size is another node.
        """
        before, self._nodes = self._nodes, {node.id: node for node in nodes}
        kept = {id for id, node in self._nodes.items() if before.get(id) == node}
        self._quarantined = {id: held for id, held in self._quarantined.items() if id in kept}
        self._free = {id: self._empty(id) for id in self._nodes}
        for run in self._running.values():
            run.allocations = {id: held for id, held in run.allocations.items() if id in kept}
            for id, held in run.allocations.items():
                self._free[id].take(held)
        self._changed()

    def submit(self, entry: QueueEntry) -> None:
        """Puts an entry into the queue, or replaces it there; it keeps the time at which it first came.

        Raises:
            ValueError: it is running.
        """
        if entry.id in self._running:
            raise ValueError(f"{entry.id} is running and cannot be submitted")
        before = self._positions.get(entry.id)
        if before:
            self._remove(before)
            if before.entry.resources != entry.resources:
                self._forget_passed(entry.id)
        since, arrival = self._submitted.setdefault(entry.id, (self._clock, len(self._submitted)))
        # All entries age alike, so that the time of submission decides and not the time of day.
        position = _Position(
            -entry.priority, since - entry.seconds, arrival, entry, demand_of(entry.resources)
        )
        self._positions[entry.id] = position
        insort(self._queue, position)

    def withdraw(self, id: str) -> None:
        """Takes an entry out of the queue; nothing happens if it is not there."""
        if id in self._positions:
            self._remove(self._positions[id])
            self._forget_passed(id)

    def next(self, now: float) -> QueueEntry | None:
        """The entry that starts now, which holds its allocations from here on; None when all have to wait.

        Args:
            now: seconds since any moment, never less than at the call before.
        """
        self._began = now if self._began is None else self._began
        self._clock = now - self._began
        head = self._head()
        if head is None or (self._limit is not None and len(self._running) >= self._limit):
            return None
        if started := self._try(head):
            return started
        passed = self.passed
        if passed and passed[0] == head.entry.id and now >= passed[1]:
            return None
        started = next((started for other in self._queue if (started := self._try(other))), None)
        if started and not (passed and passed[0] == head.entry.id):
            self._passed = head.entry.id, now
        return started

    def release(self, id: str) -> None:
        """A trial has ended and its allocations are free; nothing happens if it does not run."""
        if run := self._running.pop(id, None):
            for node, held in run.allocations.items():
                self._free[node].give(held)
            self._changed()

    def quarantine(self, id: str, node: str) -> None:
        """A trial has ended; its allocation on a node stays taken, for a device there cannot be used.

        Ray may have placed it on another node than the scheduler did; then one of its allocations stays.
        """
        allocations = self._running[id].allocations
        if allocations:
            bad = node if node in allocations else next(iter(allocations))
            self._quarantined.setdefault(bad, []).append(allocations.pop(bad))
        self.release(id)

    # --- the queue

    def _head(self) -> _Position | None:
        """The first entry that could ever fit; one that others passed stays the first of its priority."""
        first = next((p for p in self._queue if not self._never_fits(p.demand)), None)
        passed = self._positions[self._passed[0]] if self._passed else None
        if first and passed and passed.minus_priority <= first.minus_priority:
            return first if self._never_fits(passed.demand) else passed
        return first

    def _remove(self, position: _Position) -> None:
        del self._positions[position.entry.id]
        del self._queue[bisect_left(self._queue, position)]

    def _try(self, position: _Position) -> QueueEntry | None:
        """Starts an entry if it fits; a demand that did not fit is not tried until something changes."""
        entry, demand = position.entry, position.demand
        if demand in self._full:
            return None
        allocations = place(self._free, demand)
        if allocations is None:
            self._full.add(demand)
            return None
        self.withdraw(entry.id)
        self._running[entry.id] = _Running(entry, allocations)
        for node, held in allocations.items():
            self._free[node].take(held)
        return entry

    def _forget_passed(self, id: str) -> None:
        if self._passed and self._passed[0] == id:
            self._passed = None

    # --- nodes

    def _empty(self, id: str) -> FreeResources:
        """A node with nothing running: all of it but what is quarantined."""
        free = FreeResources.of(self._nodes[id])
        for held in self._quarantined.get(id, ()):
            free.take(held)
        return free

    def _never_fits(self, demand: Demand) -> bool:
        if demand not in self._impossible:
            empty = {id: self._empty(id) for id in self._nodes}
            self._impossible[demand] = place(empty, demand) is None
        return self._impossible[demand]

    def _changed(self) -> None:
        """Resources came free or nodes changed: what did not fit may fit now."""
        self._full: set[Demand] = set()
        self._impossible: dict[Demand, bool] = {}


class _Position(NamedTuple):
    """An entry's place in the order; arrivals differ, so that entries themselves are never compared."""

    minus_priority: int
    minus_length: float
    arrival: int
    entry: QueueEntry
    demand: Demand


@dataclass(slots=True)
class _Running:
    """A running trial, and what it holds by node."""

    entry: QueueEntry
    allocations: dict[str, Allocation]
