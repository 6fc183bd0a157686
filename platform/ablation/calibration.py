"""How long trials take, from the speed of trainings in the store or of a probe.

A measured row gives the time of its other seeds. For other rows the cost of their configs (`Setting.cost`) is
multiplied by the seconds that a unit of cost took.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

from ablation.plan import Plan, PlannedTrial
from ablation.setting import data_id
from ablation.store import Store
from ablation.wording import counted

MIN_SECONDS = 1.0
"""Lower limit of the estimate of a trial: it has to start."""

MIN_TRAININGS = 4
"""Number of measured trainings from which their spread is computed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured speed of one training.

    Attributes:
        step_seconds: seconds of a training step.
        steps: number of steps of the whole training.
        workers: number of workers that trained it.
        rest_seconds: seconds of its attempt outside training: start and evaluations; None if unknown.
    """

    trial_key: str
    step_seconds: float
    steps: int
    workers: int = 1
    rest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Speeds from which times are estimated.

    Attributes:
        rows: seconds of a whole training times its workers, by the key that its row has at the first seed.
        unit_seconds: seconds that one worker takes for a unit of training cost; median over the trainings.
        rest_unit_seconds: the same for start and evaluations, for a unit of evaluation cost.
        trainings: number of measured trainings.
        spread: half the interquartile range of `unit_seconds`, relative to it; None for few trainings.
        probed: whether the measurements come from a probe.
    """

    rows: Mapping[str, float]
    unit_seconds: float
    rest_unit_seconds: float
    trainings: int
    spread: float | None
    probed: bool

    @property
    def basis(self) -> str:
        """Where the measurements come from, as text."""
        trainings = counted(self.trainings, "training")
        if self.probed:
            return f"from a probe of {trainings}"
        spread = "" if self.spread is None else f", {self.spread:.0%} apart for equal work"
        return f"from {trainings} measured here{spread}"


def measured(plan: Plan, store: Store) -> list[Measured]:
    """The speed of every attempt at a trial of the study that reported progress more than once.

    Each is taken to have had the number of workers that the plan gives the trial.
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
    """Speeds for a plan from measurements; None when none of them belongs to its study.

    Args:
        probed: whether they come from a probe and not from trainings.
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
    if len(each) >= MIN_TRAININGS:
        low, _, high = quantiles(each, n=4)
        spread = (high - low) / 2 / unit
    by_row = {row: median(values) for row, values in rows.items()}
    return Calibration(by_row, unit, median(rests) if rests else unit, len(each), spread, probed)


def seconds_left(plan: Plan, calibration: Calibration | None) -> dict[str, float]:
    """Estimated seconds that every planned trial still takes, by key; 0 for a complete one.

    Without a calibration the values are units of cost, which order and compare trials as well.
    """
    if calibration is None:
        return {trial.key: max(MIN_SECONDS, trial.cost) if trial.missing else 0.0 for trial in plan.trials}
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
    return max(MIN_SECONDS, (left * training + rest) / _workers(trial))


def _workers(trial: PlannedTrial) -> int:
    return trial.resources.workers if trial.resources else 1
