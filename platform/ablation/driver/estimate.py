"""What the rest of a plan takes: hours, wall time and disk.

Wall time comes from a simulation: the scheduler of real runs, on a simulated clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

from ablation.calibration import Calibration, seconds_left
from ablation.driver.scheduler import GangScheduler, QueueEntry
from ablation.plan import Plan
from ablation.resources import Node, Resources, held
from ablation.wording import duration

DISK_OF_A_TRIAL = 1 << 30
"""Bytes taken for a trial while none has finished here: two checkpoints of 100 million numbers and their
momentum, and predictions."""


# --- what it takes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the rest of a plan takes.

    Attributes:
        trials: how many are left.
        gpu_hours, cpu_hours: held by them; None without a calibration.
        wall_seconds: until the last ends, with these nodes to itself; None without a calibration.
        homeless: names of trials that fit on no node, which the wall time leaves out.
        disk: bytes.
        longest: name and seconds of the longest trial.
    """

    trials: int
    sizes: Mapping[Resources, int]
    nodes: Sequence[Node]
    calibration: Calibration | None
    gpu_hours: float | None
    cpu_hours: float | None
    wall_seconds: float | None
    homeless: tuple[str, ...]
    disk: int
    disk_basis: str
    longest: tuple[str, float] | None

    def describe(self) -> str:
        """As text for people, a few lines."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        if not self.trials:
            yield "Estimate: nothing is left to do."
            return
        if self.calibration is None:
            yield "Estimate: none yet. --probe times a few steps; so does the first training."
        else:
            yield f"Estimate, {self.calibration.basis}:"
            yield f"  {_hours(self.gpu_hours)} GPU-hours, {_hours(self.cpu_hours)} CPU-hours"
            yield f"  about {duration(self.wall_seconds)} on {_machines(self.nodes)}"
            if self.longest:
                yield f"  longest: {self.longest[0]}, {duration(self.longest[1])}"
        yield f"  {'; '.join(_size(size, count) for size, count in self.sizes.items())}"
        yield f"  disk: about {_gibibytes(self.disk)} ({self.disk_basis})"
        if self.homeless:
            more = f" and {len(self.homeless) - 1} more" if len(self.homeless) > 1 else ""
            yield f"  no node has room for {self.homeless[0]}{more}"


def estimate(
    plan: Plan,
    calibration: Calibration | None,
    nodes: Sequence[Node],
    *,
    limit: int | None = None,
    share: Resources | None = None,
    directory: Callable[[str], Path] | None = None,
) -> Estimate:
    """What is left of a plan takes: its WAITING and RUNNING trials.

    Args:
        nodes: the cluster at hand.
        limit: trials at a time.
        share: what a trial holds whose profile leaves that to the machine; one CPU when None.
        directory: of a trial by key, to see what finished ones take of the disk.
    """
    gpus = any(node.gpus for node in nodes)
    left = [trial for trial in plan.trials if trial.state in ("WAITING", "RUNNING")]
    seconds = seconds_left(plan, calibration)
    sizes = {trial.key: held(trial.resources, share or Resources(), gpus=gpus) for trial in left}
    scheduler = GangScheduler(nodes, limit)
    homeless = tuple(trial.name for trial in left if scheduler.never_fits(sizes[trial.key]))
    known = calibration is not None
    entries = [QueueEntry(trial.key, sizes[trial.key], seconds[trial.key]) for trial in left]
    wall = makespan(scheduler, entries) if known else None
    hours = [(seconds[key] * size.workers / 3600, size) for key, size in sizes.items()]
    longest = max(left, key=lambda trial: seconds[trial.key], default=None)
    disk, basis = _disk(plan, len(left), directory)
    return Estimate(
        trials=len(left),
        sizes=dict(Counter(sizes.values())),
        nodes=nodes,
        calibration=calibration,
        gpu_hours=sum(worker_hours * size.gpus for worker_hours, size in hours) if known else None,
        cpu_hours=sum(worker_hours * size.cpus for worker_hours, size in hours) if known else None,
        wall_seconds=wall,
        homeless=homeless,
        disk=disk,
        disk_basis=basis,
        longest=(longest.name, seconds[longest.key]) if longest and known else None,
    )


def makespan(scheduler: GangScheduler, entries: Iterable[QueueEntry]) -> float:
    """Seconds until every entry that can ever fit has run, if the estimates hold and no node is lost."""
    for entry in entries:
        scheduler.submit(entry)
    now, ends = 0.0, list[tuple[float, str]]()
    while True:
        while started := scheduler.next(now):
            heappush(ends, (now + started.seconds, started.id))
        if not ends:
            return now
        now, ended = heappop(ends)
        scheduler.release(ended)


def _disk(plan: Plan, left: int, directory: Callable[[str], Path] | None) -> tuple[int, str]:
    places = [directory(trial.key) for trial in plan.trials if trial.state == "COMPLETE"] if directory else []
    sizes = [_size_of(place) for place in places if place.is_dir()]
    if not sizes:
        return (
            left * DISK_OF_A_TRIAL,
            f"{_gibibytes(DISK_OF_A_TRIAL)} a trial assumed: none has finished here",
        )
    each = sum(sizes) / len(sizes)
    return round(left * each), f"{_gibibytes(each)} a trial, as finished ones have"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- as text -----------------------------------------------------------------------------------------


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _gibibytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:g}"


def _counted(number: float, word: str) -> str:
    return f"{_number(number)} {word}" + ("" if number <= 1 else "s")


def _machines(nodes: Sequence[Node]) -> str:
    totals = ((sum(n.cpus for n in nodes), "CPU"), (sum(n.gpus for n in nodes), "GPU"))
    return f"{_counted(len(nodes), 'node')} of {' and '.join(_counted(n, w) for n, w in totals if n)} in all"


def _size(size: Resources, count: int) -> str:
    parts = [_counted(size.cpus, "CPU")] if size.cpus else []
    if size.gpus:
        parts.append(_counted(size.gpus, "GPU"))
    if size.memory:
        parts.append(_gibibytes(size.memory))
    held = ", ".join(parts)
    group = held if size.workers == 1 else f"{size.workers} workers of {held}"
    return f"{_counted(count, 'trial')} of {group}"
