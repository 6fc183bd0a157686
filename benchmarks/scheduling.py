"""How full a cluster is kept: 1,000 trainings of mixed sizes on 64 nodes of 8 GPUs that fail and return.

A simulation on a virtual clock of the scheduler that runs real trials (`ablation.driver.scheduler`), beside
two peers with the same placement: first in, first out, and whatever fits, longest first, which never drains.

    python -m benchmarks.scheduling
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from statistics import mean

from ablation.driver.scheduler import GangScheduler, QueueEntry
from ablation.resources import Node, Resources
from benchmarks.common import report

CHECKPOINT_S = 600.0
"""A training that lost a node goes on from its last checkpoint."""

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Job:
    """A training: how long it takes, how long it is thought to take, when it is asked for. In seconds."""

    id: str
    resources: Resources
    length: float
    estimate: float
    arrival: float = 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A node is away."""

    node: str
    start: float
    end: float


@dataclass(slots=True)
class Outcome:
    """What became of all jobs.

    Attributes:
        makespan: when the last one ended.
        waits: from being asked for to the first start, by job.
        interrupted: how often a node took running jobs with it, counted by job.
        busy: GPU-seconds of runs, those whose work was lost included.
        steps: decisions asked for and places given back.
        cpu_seconds: of the whole simulation.
    """

    makespan: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    interrupted: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0
    steps: int = 0
    cpu_seconds: float = 0.0


class Simulation:
    """A cluster on a virtual clock. It keeps an account of its own of what every node's GPUs hold.

    Raises:
        AssertionError: a node would hold more than it has, or jobs wait though nothing runs.
    """

    def __init__(self, policy: GangScheduler, jobs: Sequence[Job], nodes: Sequence[Node]) -> None:
        self.policy, self.outcome = policy, Outcome()
        self._jobs = {job.id: job for job in jobs}
        self._left = {job.id: job.length for job in jobs}
        self._up = {node.id: node for node in nodes}
        self._nodes = dict(self._up)
        self._held: Counter[str] = Counter()
        self._runs: dict[str, tuple[int, float, tuple[str, ...]]] = {}
        self._numbers = count()
        self._events: list[tuple[float, int, str, str, int]] = []
        for job in jobs:
            self._plan(job.arrival, "arrive", job.id)

    def run(self, outages: Sequence[Outage] = ()) -> Outcome:
        """Until every job is done."""
        began = time.process_time()
        for outage in outages:
            self._plan(outage.start, "fail", outage.node)
            self._plan(outage.end, "return", outage.node)
        while self._left:
            now, _, kind, subject, number = heappop(self._events)
            self._happen(now, kind, subject, number)
            if not self._events or self._events[0][0] > now:
                self._start_all(now)
                assert self._runs or self._events or not self._left, f"{len(self._left)} jobs wait for ever"
        self.outcome.cpu_seconds = time.process_time() - began
        return self.outcome

    def _plan(self, when: float, kind: str, subject: str, number: int = 0) -> None:
        heappush(self._events, (when, next(self._numbers), kind, subject, number))

    def _happen(self, now: float, kind: str, subject: str, number: int) -> None:
        match kind:
            case "arrive":
                self._offer(subject)
            case "end" if subject in self._runs and self._runs[subject][0] == number:
                self._release(subject, now)
                del self._left[subject]
                self.outcome.makespan = now
            case "fail":
                self._lose(subject, now)
            case "return":
                self._up[subject] = self._nodes[subject]
                self.policy.set_nodes(self._up.values())

    def _offer(self, id: str) -> None:
        job = self._jobs[id]
        self.policy.submit(QueueEntry(id, job.resources, job.estimate * self._left[id] / job.length))

    def _start_all(self, now: float) -> None:
        self.outcome.steps += 1
        while entry := self.policy.next(now):
            id, places = entry.id, self.policy.placement(entry.id)
            self.outcome.steps += 1
            self.outcome.waits.setdefault(id, now - self._jobs[id].arrival)
            assert len(places) == entry.resources.workers, f"{id} has not all its workers"
            for place in places:
                self._held[place] += round(entry.resources.gpus)
                assert self._held[place] <= self._up[place].gpus, f"{place} holds more than it has"
            number = next(self._numbers)
            self._runs[id] = number, now, places
            self._plan(now + self._left[id], "end", id, number)

    def _release(self, id: str, now: float) -> None:
        _, started, places = self._runs.pop(id)
        gpus = round(self._jobs[id].resources.gpus)
        for place in places:
            self._held[place] -= gpus
        self.outcome.busy += gpus * len(places) * (now - started)
        self.outcome.steps += 1
        self.policy.release(id)

    def _lose(self, node: str, now: float) -> None:
        if self._up.pop(node, None) is None:
            return
        self.policy.set_nodes(self._up.values())
        for id in [id for id, (_, _, places) in self._runs.items() if node in places]:
            _, started, _ = self._runs[id]
            self._left[id] -= (now - started) // CHECKPOINT_S * CHECKPOINT_S
            self._release(id, now)
            self._offer(id)
            self.outcome.interrupted[id] += 1


# --- peers -------------------------------------------------------------------------------------------


class Fifo(GangScheduler):
    """In the order of arrival: what does not fit holds up all behind it."""

    def next(self, now: float) -> QueueEntry | None:
        """See `GangScheduler.next`."""
        first = min(self._queue, key=lambda position: position.arrival, default=None)
        return first and self._try(first)


class Greedy(GangScheduler):
    """Longest first among those that fit; it never drains for those that do not."""

    def next(self, now: float) -> QueueEntry | None:
        """See `GangScheduler.next`."""
        return next((started for position in self._queue if (started := self._try(position))), None)


POLICIES: Mapping[str, type[GangScheduler]] = {
    "ours, longest first and draining": GangScheduler,
    "greedy, longest first": Greedy,
    "first in, first out": Fifo,
}

# --- the cluster and its work ------------------------------------------------------------------------

NODES = tuple(Node(f"node{i:02}", cpus=64, gpus=8, memory=512 << 30) for i in range(64))
SIZES = {1: 30, 2: 20, 4: 15, 8: 20, 16: 9, 32: 4, 64: 1.5, 128: 0.5}
"""GPUs of a training, and how common it is."""

LARGE = 32
"""GPUs from which a training counts as large: four whole nodes."""


def make_jobs(number: int, random_state: random.Random, load: float | None = None) -> list[Job]:
    """Trainings of 1 to 128 GPUs, of some hours each, estimated to within a third or so.

    Args:
        load: they arrive one after another and ask for that part of the cluster; all at once when None.
    """
    jobs, clock = [], 0.0
    slots = sum(node.gpus for node in NODES)
    for i in range(number):
        (workers,) = random_state.choices(list(SIZES), list(SIZES.values()))
        length = min(24 * HOUR, max(0.1 * HOUR, random_state.lognormvariate(1.0, 0.8) * HOUR))
        guess = length * random_state.lognormvariate(0.0, 0.35)
        jobs.append(Job(f"job{i}", Resources(workers, 4, 1, 16 << 30), length, guess, clock))
        clock += random_state.expovariate(1.0) * workers * length / slots / load if load else 0.0
    return jobs


def make_outages(random_state: random.Random, until: float, between: float = 20 * 24 * HOUR) -> list[Outage]:
    """Each node fails about once in `between` seconds, for one to four hours."""
    outages = []
    for node in NODES:
        clock = random_state.expovariate(1 / between)
        while clock < until:
            end = clock + random_state.uniform(1, 4) * HOUR
            outages.append(Outage(node.id, clock, end))
            clock = end + random_state.expovariate(1 / between)
    return outages


def bound(jobs: Sequence[Job], nodes: Sequence[Node]) -> float:
    """No schedule ends sooner, even on nodes that never fail: all work over all GPUs, or the longest."""
    work = sum(job.resources.workers * job.resources.gpus * job.length for job in jobs)
    return max(work / sum(node.gpus for node in nodes), *(job.length for job in jobs))


# --- the benchmark -----------------------------------------------------------------------------------


def measure(name: str, load: float | None, seeds: Sequence[int], number: int) -> dict[str, str | float]:
    """One policy on the same jobs and outages as every other, over some seeds."""
    outcomes, shares, waits = [], [], []
    for seed in seeds:
        jobs = make_jobs(number, random.Random(seed), load)
        outages = make_outages(random.Random(seed + 1), until=60 * 24 * HOUR)
        outcome = Simulation(POLICIES[name](NODES), jobs, NODES).run(outages)
        outcomes.append(outcome)
        shares.append(bound(jobs, NODES) / outcome.makespan)
        waits += [outcome.waits[job.id] for job in jobs if job.resources.workers >= LARGE]
    slots = sum(node.gpus for node in NODES)
    return {
        "policy": name,
        "jobs arrive": "all at once" if load is None else f"at {load:.0%} load",
        "hours": mean(o.makespan for o in outcomes) / HOUR,
        "bound / time": mean(shares) if load is None else "",
        "GPUs held": mean(o.busy / slots / o.makespan for o in outcomes),
        "large waits, h": mean(waits) / HOUR,
        "longest, h": max(waits) / HOUR,
        "interrupted": mean(o.interrupted.total() for o in outcomes),
        "steps/s": sum(o.steps for o in outcomes) / sum(o.cpu_seconds for o in outcomes),
    }


def main(seeds: Sequence[int] = (0, 1, 2), number: int = 1000) -> None:
    """Run and report."""
    rows = [measure(name, load, seeds, number) for load in (None, 0.9) for name in POLICIES]
    report(
        "scheduling",
        "1,000 trainings on 64 nodes of 8 GPUs that fail and return, virtual clock",
        rows,
        {
            "bound": "all work over all GPUs, or the longest training, on nodes that never fail",
            "large": f"trainings of {LARGE} GPUs and more",
            "estimates": "off by a factor whose logarithm has a standard deviation of 0.35",
            "seeds": len(seeds),
        },
    )


if __name__ == "__main__":
    main()
