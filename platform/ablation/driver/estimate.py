"""How long a plan will take, from what trainings here have taken or from a probe of a few steps.

What the same row took counts first, whatever its seed; for others the work that their configs are
(`Setting.cost`) is multiplied by the seconds that a unit of work took. Wall time comes from the scheduler of
real runs, run ahead on a clock of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import median, quantiles

from ablation.driver.scheduler import GangScheduler, QueueEntry
from ablation.plan import Plan, PlannedTrial, counted
from ablation.resources import Node, Resources, held
from ablation.store import Store
from ablation.study import data_id
from ablation.wording import duration

DISK_OF_A_TRIAL = 1 << 30
"""Bytes taken for a trial while none has finished here: two checkpoints of 100 million numbers and their
momentum, and detections."""

LEAST_S = 1.0
"""No trial is estimated at less: it has to start."""

ENOUGH = 4
"""Measured trainings from which their spread is told."""


# --- what was measured -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """The pace of one training.

    Attributes:
        step_seconds: of a training step.
        steps: of the whole training.
        workers: that trained it.
        rest_seconds: of its attempt beyond its training steps: start and evaluations; None for unknown.
    """

    trial_key: str
    step_seconds: float
    steps: int
    workers: int = 1
    rest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What estimates rest on.

    Attributes:
        rows: seconds of a whole training times its workers, by the key that its row has at the first seed.
        unit_seconds: for one worker, of a unit of training; the median over the measured trainings.
        rest_unit_seconds: the same for what is not training, for a unit of evaluation.
        trainings: how many were measured.
        spread: half the range of the middle half of `unit_seconds`, as a part of it; None of a few.
        probed: whether they come from a probe.
    """

    rows: Mapping[str, float]
    unit_seconds: float
    rest_unit_seconds: float
    trainings: int
    spread: float | None
    probed: bool

    @property
    def basis(self) -> str:
        """What it rests on, in words."""
        some = counted(self.trainings, "training")
        if self.probed:
            return f"from a probe of {some}"
        spread = "" if self.spread is None else f", {self.spread:.0%} apart for equal work"
        return f"from {some} measured here{spread}"


def measured(plan: Plan, store: Store) -> list[Measured]:
    """The pace of every attempt at a trial of the study that reported progress more than once.

    Taken to have had as many workers as the plan gives the trial.
    """
    workers = {trial.key: _workers(trial) for trial in plan.trials}
    paces = store.pace(plan.study.name, plan.setting.profile, data_id(plan.setting))
    totals = {key: row.total for key, row in store.trial_states({pace.trial_key for pace in paces}).items()}
    return [
        Measured(
            pace.trial_key,
            pace.train_seconds / pace.steps,
            totals[pace.trial_key],
            workers.get(pace.trial_key, 1),
            pace.total_seconds - pace.train_seconds if pace.complete else None,
        )
        for pace in paces
        if pace.steps > 0 and pace.train_seconds > 0 and totals.get(pace.trial_key)
    ]


def calibrate(plan: Plan, found: Iterable[Measured], *, probed: bool = False) -> Calibration | None:
    """What the measurements say of the plan; None when they are of nothing in its study.

    Args:
        probed: whether they come from a probe, not from trainings.
    """
    alike, planned = plan.alike(), {trial.key: trial for trial in plan.trials}
    rows: dict[str, list[float]] = defaultdict(list)
    units: dict[str, list[float]] = defaultdict(list)
    rests: list[float] = []
    for one in found:
        if one.trial_key not in alike:
            continue
        config, row = alike[one.trial_key]
        trial, training = planned.get(one.trial_key), plan.setting.cost(config, ())
        rows[row].append(one.workers * one.step_seconds * one.steps)
        if training > 0:
            units[one.trial_key].append(rows[row][-1] / training)
        if trial and one.rest_seconds is not None:
            evaluations = plan.setting.cost(config, [e.config for e in trial.evaluations]) - training
            if evaluations > 0:
                rests.append(one.workers * one.rest_seconds / evaluations)
    if not units:
        return None
    each = [median(values) for values in units.values()]
    unit = median(each)
    spread = None
    if len(each) >= ENOUGH:
        low, _, high = quantiles(each, n=4)
        spread = (high - low) / 2 / unit
    by_row = {row: median(values) for row, values in rows.items()}
    return Calibration(by_row, unit, median(rests) if rests else unit, len(each), spread, probed)


def seconds_left(plan: Plan, calibration: Calibration | None) -> dict[str, float]:
    """Estimated seconds of every planned trial from where it is, by key; 0 for what is complete.

    Without a calibration they are units of work, which order and compare trials just as well.
    """
    if calibration is None:
        return {trial.key: max(LEAST_S, trial.cost) if trial.missing else 0.0 for trial in plan.trials}
    alike = plan.alike()
    return {
        trial.key: _seconds_left(plan, trial, alike[trial.key][1], calibration) if trial.missing else 0.0
        for trial in plan.trials
    }


def _seconds_left(plan: Plan, trial: PlannedTrial, row: str, calibration: Calibration) -> float:
    left = 1 - trial.step / trial.total if trial.total else 1.0
    work = plan.setting.cost(trial.config, ())
    training = calibration.rows.get(row, calibration.unit_seconds * work)
    rest = calibration.rest_unit_seconds * (trial.cost - left * work)
    return max(LEAST_S, (left * training + rest) / _workers(trial))


def _workers(trial: PlannedTrial) -> int:
    return trial.resources.workers if trial.resources else 1


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
            yield "Estimate: none yet. `ablation plan --probe` times a few steps; so does the first training."
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
