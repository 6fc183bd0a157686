"""Which trial starts next, and on which nodes: nothing starts unless all its workers fit at once.

Highest priority first, then the longest by estimate, time waited counting as length: what all came at once
starts longest first, and nothing waits for ever behind longer ones that keep coming.

What stands first and does not fit is promised places and a time: those that come free first as the estimates
say. Others may start meanwhile (EASY backfill, Lifka 1995) when they should be over by then, or leave the
promised places alone. A promise is kept as it was made: once its time has come nothing else starts in its
places, however wrong the estimates were, so what waits for them waits for a few running trials and for
nothing that comes after it.

Knows no Ray and no clock: times are numbers that the caller hands in, and nodes are what it says they are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from ablation.resources import Node, Resources

_WHOLE = 10_000
"""Parts of a CPU or a GPU, in whole numbers as Ray counts them: three thirds are never more than one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trial that waits.

    Attributes:
        seconds: how long it will run, by estimate; > 0.
        priority: higher first.
    """

    id: str
    resources: Resources
    seconds: float
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds must be > 0, got {self.seconds} for {self.id}")


class Admission:
    """Keeps account of what is free, what runs and what waits.

    Args:
        nodes: those there are now.
        limit: trials at a time; None for as many as fit.
    """

    def __init__(self, nodes: Iterable[Node], limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be >= 1, got {limit}")
        self._limit = limit
        self._nodes: dict[str, Node] = {}
        self._began: float | None = None
        self._clock = 0.0
        self._since: dict[str, tuple[float, int]] = {}
        self._turns: dict[str, _Turn] = {}
        self._queues: dict[_Need, _Queue] = {}
        self._running: dict[str, _Run] = {}
        self._aside: dict[str, list[_Hold]] = {}
        self._promise: _Promise | None = None
        # Sizes known to find no place now, and none beside the promise; starts only make places fewer.
        self._full: set[_Need] = set()
        self._barred: set[_Need] = set()
        self.set_nodes(nodes)

    # --- what there is

    @property
    def running(self) -> Mapping[str, Candidate]:
        """What holds places, by id, first started first."""
        return {id: run.candidate for id, run in self._running.items()}

    @property
    def waiting(self) -> Mapping[str, Candidate]:
        """What waits, by id, in the order of its turns."""
        return {turn.candidate.id: turn.candidate for turn in sorted(self._turns.values())}

    @property
    def promised(self) -> tuple[str, float] | None:
        """The trial that places are kept for, and the time from which nothing else starts in them."""
        return None if self._promise is None else (self._promise.id, self._promise.start)

    def places(self, id: str) -> tuple[str, ...]:
        """The node of each worker of a running trial, without lost nodes; KeyError when it does not run."""
        return tuple(node for node, hold in self._running[id].holds.items() for _ in range(hold.workers))

    def never_fits(self, resources: Resources) -> bool:
        """Whether so much has no place even on the nodes with nothing else running."""
        return self._never_fits(_need(resources))

    # --- what happens

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Nodes joined or were lost. What runs keeps its places on those that are still there.

        A node that comes back with another size is another node.
        """
        before, self._nodes = self._nodes, {node.id: node for node in nodes}
        kept = {id for id, node in self._nodes.items() if before.get(id) == node}
        self._aside = {id: holds for id, holds in self._aside.items() if id in kept}
        self._rooms = {id: self._empty(id) for id in self._nodes}
        self._never: dict[_Need, bool] = {}
        for run in self._running.values():
            run.holds = {id: hold for id, hold in run.holds.items() if id in kept}
            for id, hold in run.holds.items():
                self._rooms[id].take(hold)
        if self._promise and not self._promise.beside.keys() <= kept:
            self._promise = None
        self._forget()

    def offer(self, candidate: Candidate) -> None:
        """It waits from now on. Offered again it is replaced, and has waited since the first time.

        Raises:
            ValueError: it is running.
        """
        if candidate.id in self._running:
            raise ValueError(f"{candidate.id} is running")
        before = self._turns.get(candidate.id)
        if before:
            self._remove(before)
            if before.candidate.resources != candidate.resources:
                self._break_promise_to(candidate.id)
        since, arrival = self._since.setdefault(candidate.id, (self._clock, len(self._since)))
        length = candidate.seconds - since  # how much it has waited by now is added to all alike
        turn = _Turn(-candidate.priority, -length, arrival, candidate, _need(candidate.resources))
        self._turns[candidate.id] = turn
        self._queues.setdefault(turn.need, _Queue()).add(turn)

    def withdraw(self, id: str) -> None:
        """It no longer waits; nothing happens if it did not."""
        if id in self._turns:
            self._remove(self._turns[id])
            self._break_promise_to(id)

    def next(self, now: float) -> Candidate | None:
        """The trial to start now, which holds its places from here on; None when all have to wait.

        Args:
            now: in seconds since any moment, never less than at the call before.
        """
        self._began = now if self._began is None else self._began
        self._clock = now - self._began
        head = self._head()
        if head is None or (self._limit is not None and len(self._running) >= self._limit):
            return None
        if self._promise and self._promise.id != head.candidate.id:
            self._break_promise_to(self._promise.id)
        if holds := self._search(head.need, self._rooms, self._full):
            return self._start(head, holds, now)
        while turn := self._able(now):
            promise = self._promise or self._promise_to(head, now)
            if turn.candidate.seconds <= promise.start - now:
                holds = self._search(turn.need, self._rooms, self._full)
            else:
                holds = self._search(turn.need, promise.limited(self._rooms), self._barred)
            if holds:
                return self._start(turn, holds, now)
        return None

    def release(self, id: str) -> None:
        """It has ended, well or not; nothing happens if it does not run."""
        run = self._running.pop(id, None)
        if run is None:
            return
        for node, hold in run.holds.items():
            self._rooms[node].give(hold)
            if self._promise and self._promise.concerns(run, node):
                self._promise.beside[node].give(hold)
        self._forget()

    def set_aside(self, id: str, node: str) -> None:
        """It has ended; what it held on that node stays taken for good, because nothing works there.

        Ray may have put it elsewhere than we thought: then as much stays taken of a node that we thought of.
        """
        run = self._running[id]
        if run.holds:
            bad = node if node in run.holds else next(iter(run.holds))
            self._aside.setdefault(bad, []).append(run.holds.pop(bad))
        self._promise = None  # it may have counted on these places
        self._never.clear()
        self.release(id)

    # --- turns

    def _head(self) -> _Turn | None:
        """The first that could ever fit; a promise makes its holder the first of its priority."""
        first = min((q.turns[0] for n, q in self._queues.items() if not self._never_fits(n)), default=None)
        promised = self._turns[self._promise.id] if self._promise else None
        if first and promised and promised.minus_priority <= first.minus_priority:
            return promised
        return first

    def _able(self, now: float) -> _Turn | None:
        """The first that can start for all that is known. Looks at one or two of each size, not at all."""
        able = []
        for need, queue in self._queues.items():
            if need not in self._barred:
                able += [queue.turns[0]] if need not in self._full else []
            elif self._promise and need not in self._full:
                able += queue.first_within(self._promise.start - now)
        return min(able, default=None)

    def _remove(self, turn: _Turn) -> None:
        del self._turns[turn.candidate.id]
        self._queues[turn.need].remove(turn)
        if not self._queues[turn.need].turns:
            del self._queues[turn.need]

    def _start(self, turn: _Turn, holds: dict[str, _Hold], now: float) -> Candidate:
        candidate = turn.candidate
        self._remove(turn)
        self._break_promise_to(candidate.id)
        run = self._running[candidate.id] = _Run(candidate, now + candidate.seconds, holds)
        for node, hold in holds.items():
            self._rooms[node].take(hold)
            if self._promise and self._promise.concerns(run, node):
                self._promise.beside[node].take(hold)
        return candidate

    # --- places

    def _empty(self, id: str) -> _Room:
        """A node with nothing running: all of it but what is set aside."""
        room = _Room.of(self._nodes[id])
        for hold in self._aside.get(id, ()):
            room.take(hold)
        return room

    def _never_fits(self, need: _Need) -> bool:
        if need not in self._never:
            empty = {id: self._empty(id) for id in self._nodes}
            self._never[need] = _find(empty, need) is None
        return self._never[need]

    def _search(
        self, need: _Need, rooms: Mapping[str, _Room], without: set[_Need]
    ) -> dict[str, _Hold] | None:
        """Places for it; remembered in `without` when there are none."""
        if need in without:
            return None
        holds = _find(rooms, need)
        if holds is None:
            without.add(need)
        return holds

    def _forget(self) -> None:
        """Places came free: what found none before may find some now."""
        self._full.clear()
        self._barred.clear()

    # --- the promise

    def _promise_to(self, head: _Turn, now: float) -> _Promise:
        """Keeps the places that come free first for it. Those overdue count as free at any moment."""
        rooms = {id: room.copy() for id, room in self._rooms.items()}
        runs = sorted(self._running.values(), key=lambda run: run.end)
        fitting = sum(room.fits(head.need) for room in rooms.values())
        start = now
        for run in runs:
            if fitting >= head.need.workers:
                break
            start = max(now, run.end)
            for node, hold in run.holds.items():
                fitting -= rooms[node].fits(head.need)
                rooms[node].give(hold)
                fitting += rooms[node].fits(head.need)
        holds = _find(rooms, head.need)
        assert holds is not None, f"{head.candidate.id} fits on empty nodes"
        self._promise = _Promise(head.candidate.id, start, {id: self._empty(id) for id in holds})
        for node, hold in holds.items():
            self._promise.beside[node].take(hold)
        for run in runs:
            for node, hold in run.holds.items():
                if self._promise.concerns(run, node):
                    self._promise.beside[node].take(hold)
        return self._promise

    def _break_promise_to(self, id: str) -> None:
        if self._promise and self._promise.id == id:
            self._promise = None
            self._barred.clear()


# --- turns, needs, rooms -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Need:
    """Resources in whole numbers: what one worker takes of a node. One object for equal resources."""

    workers: int
    cpus: int
    gpus: int
    memory: int


@cache
def _need(resources: Resources) -> _Need:
    cpus, gpus = round(resources.cpus * _WHOLE), round(resources.gpus * _WHOLE)
    return _Need(resources.workers, cpus, gpus, resources.memory)


class _Turn(NamedTuple):
    """A candidate's place in the order: arrivals differ, so that no comparison goes beyond them."""

    minus_priority: int
    minus_length: float
    arrival: int
    candidate: Candidate
    need: _Need


@dataclass(frozen=True, slots=True)
class _Queue:
    """All that wait with one size: in order, and their seconds in ascending order."""

    turns: list[_Turn] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, turn: _Turn) -> None:
        insort(self.turns, turn)
        insort(self.seconds, turn.candidate.seconds)

    def remove(self, turn: _Turn) -> None:
        del self.turns[bisect_left(self.turns, turn)]
        del self.seconds[bisect_left(self.seconds, turn.candidate.seconds)]

    def first_within(self, seconds: float) -> list[_Turn]:
        """The first that takes so long at most, if any."""
        if self.seconds[0] > seconds:
            return []
        return [next(turn for turn in self.turns if turn.candidate.seconds <= seconds)]


@dataclass(frozen=True, slots=True)
class _Hold:
    """What the workers of one trial hold of a node; of the GPUs, the parts of each by its number."""

    workers: int
    cpus: int
    memory: int
    gpus: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Run:
    """A running trial, and when it should be over."""

    candidate: Candidate
    end: float
    holds: dict[str, _Hold]


@dataclass(slots=True)
class _Room:
    """What is free of a node; of the GPUs, the free part of each."""

    cpus: int
    memory: int
    gpus: list[int]
    _fits: dict[_Need, int] = field(default_factory=dict)

    @staticmethod
    def of(node: Node) -> _Room:
        """All of it."""
        whole, part = divmod(round(node.gpus * _WHOLE), _WHOLE)
        return _Room(round(node.cpus * _WHOLE), node.memory, [_WHOLE] * whole + [part] * bool(part))

    def copy(self) -> _Room:
        """To try something out on."""
        return _Room(self.cpus, self.memory, self.gpus.copy(), self._fits.copy())

    def common(self, other: _Room) -> _Room:
        """What is free in both."""
        gpus = [min(pair) for pair in zip(self.gpus, other.gpus, strict=True)]
        return _Room(min(self.cpus, other.cpus), min(self.memory, other.memory), gpus)

    @property
    def size(self) -> tuple[int, int, int]:
        """The scarcest first: a trial that needs no GPU leaves them to others."""
        return sum(self.gpus), self.cpus, self.memory

    def fits(self, need: _Need) -> int:
        """How many workers find room, all of the trial's at most."""
        fitting = self._fits.get(need)
        if fitting is None:
            pairs = ((self.cpus, need.cpus), (self.memory, need.memory))
            fitting = min([need.workers, *(free // each for free, each in pairs if each)])
            if need.gpus:
                fitting = min(fitting, self._gpus_fit(need.gpus))
            fitting = self._fits[need] = max(0, fitting)
        return fitting

    def _gpus_fit(self, each: int) -> int:
        if each < _WHOLE:
            return sum(free // each for free in self.gpus)
        return self.gpus.count(_WHOLE) // (each // _WHOLE)

    def hold(self, need: _Need, workers: int) -> _Hold:
        """What so many workers would take; they must fit."""
        free, taken = self.gpus.copy(), []
        part = min(need.gpus, _WHOLE)
        for _ in range(workers * need.gpus // part if part else 0):
            # The fullest that has room, so that whole ones stay whole.
            number = min((i for i, left in enumerate(free) if left >= part), key=free.__getitem__)
            free[number] -= part
            taken.append((number, part))
        return _Hold(workers, workers * need.cpus, workers * need.memory, tuple(taken))

    def take(self, hold: _Hold) -> None:
        """It is held from now on."""
        self._change(hold, -1)

    def give(self, hold: _Hold) -> None:
        """It is free again."""
        self._change(hold, 1)

    def _change(self, hold: _Hold, sign: int) -> None:
        self.cpus += sign * hold.cpus
        self.memory += sign * hold.memory
        for number, part in hold.gpus:
            self.gpus[number] += sign * part
        self._fits.clear()


def _find(rooms: Mapping[str, _Room], need: _Need) -> dict[str, _Hold] | None:
    """Places for all workers: on the node where they fit most tightly, else on as few nodes as can be."""
    fitting = {id: fits for id, room in rooms.items() if (fits := room.fits(need))}
    if sum(fitting.values()) < need.workers:
        return None
    alone = [id for id, fits in fitting.items() if fits == need.workers]
    if alone:
        tightest = min(alone, key=lambda id: rooms[id].size)
        return {tightest: rooms[tightest].hold(need, need.workers)}
    holds: dict[str, _Hold] = {}
    left = need.workers
    for id in sorted(fitting, key=fitting.__getitem__, reverse=True):
        workers = min(left, fitting[id])
        holds[id] = rooms[id].hold(need, workers)
        left -= workers
        if not left:
            break
    return holds


@dataclass(slots=True)
class _Promise:
    """Places kept for a trial.

    Attributes:
        start: nothing is in its places any more that should be over by then; later, nothing starts there.
        beside: by node of its places, what is left of the whole node without them and without all that
            runs longer than until `start`.
    """

    id: str
    start: float
    beside: dict[str, _Room]

    def concerns(self, run: _Run, node: str) -> bool:
        """Whether what it holds there is still held at the start."""
        return node in self.beside and run.end > self.start

    def limited(self, rooms: Mapping[str, _Room]) -> dict[str, _Room]:
        """What is free now and at the start too, by node."""
        return {**rooms, **{id: room.common(rooms[id]) for id, room in self.beside.items()}}
