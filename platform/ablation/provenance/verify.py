"""Verification of every stored result: hashes of its files, and its metrics recomputed.

Metrics recomputed from the stored predictions must equal the stored ones within `Metric.rescore_tolerance`,
by default 0, because scoring is deterministic. Numbers of an evaluation server are compared with the file
that it returned; without such numbers yet, only the files are checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ablation.errors import UserError
from ablation.files import sha256_of
from ablation.plan import Plan, PlannedEvaluation, PlannedTrial
from ablation.store import SCORES, ArtifactRow, EvaluationRow, Store


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verification of one evaluation.

    Attributes:
        name: name of the row that cites it, with its seed.
        problems: differences from the store, a sentence each.
        notes: what could not be checked, a sentence each.
    """

    name: str
    trial_key: str
    evaluation_key: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no check found a difference."""
        return not self.problems


def verify(plan: Plan, store: Store) -> Iterator[Verdict]:
    """Verifies every planned evaluation that has a result; yields each verdict as soon as it is known.

    Recomputing the metrics of a large test set takes a minute.
    """
    check = _Check(plan, store)
    for trial in plan.trials:
        rows = store.evaluations([evaluation.key for evaluation in trial.evaluations])
        for wanted in trial.evaluations:
            if wanted.key in rows:
                yield check.verdict(trial, wanted, rows[wanted.key])


def summary(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in one line."""
    bad = sum(not verdict.ok for verdict in verdicts)
    noted = sum(verdict.ok and bool(verdict.notes) for verdict in verdicts)
    counts = [f"{len(verdicts) - bad} of {len(verdicts)} evaluations are verified"]
    counts += [f"{noted} of them only in part"] if noted else []
    counts += [f"{bad} differ from the store"] if bad else []
    return ", ".join(counts) + "."


@dataclass(frozen=True, slots=True)
class _Check:
    plan: Plan
    store: Store

    def verdict(self, trial: PlannedTrial, wanted: PlannedEvaluation, row: EvaluationRow) -> Verdict:
        files = self._files(row)
        problems = [problem for file in files.values() if (problem := self._damage(file))]
        notes: list[str] = []
        try:
            if not problems:
                problems, notes = self._numbers(trial, wanted, row, files)
        except UserError as error:
            problems = [f"the metrics cannot be recomputed: {error}"]
        return Verdict(wanted.name, trial.key, row.key, tuple(problems), tuple(notes))

    def _files(self, row: EvaluationRow) -> dict[str, ArtifactRow]:
        """The newest file of each kind of an evaluation's result."""
        files = self.store.artifacts(row.trial_key)
        own = (row.key, row.attempt_id)
        return {file.kind: file for file in files if (file.evaluation_key, file.attempt_id) == own}

    def _damage(self, file: ArtifactRow) -> str | None:
        path = self.store.resolve(file.path)
        try:
            found = sha256_of(path)
        except OSError as error:
            return f"{file.kind}: {file.path} cannot be read ({error.strerror or error})"
        if file.sha256 is None:
            return f"{file.kind}: {file.path} was missing when the result was stored"
        return None if found == file.sha256 else f"{file.kind}: {file.path} has changed since it was stored"

    def _numbers(
        self,
        trial: PlannedTrial,
        wanted: PlannedEvaluation,
        row: EvaluationRow,
        files: Mapping[str, ArtifactRow],
    ) -> tuple[list[str], list[str]]:
        """Compares the stored metrics; returns problems and notes."""
        study = self.plan.study
        if row.awaits_scores:
            return [], ["not recomputed: its numbers are still to come from an evaluation server"]
        if row.imported and study.read_scores:
            path = self.store.resolve(files[SCORES].path)
            returned = study.read_scores(path.read_text(encoding="utf-8"), str(path))
            return differences(row.metrics, returned), []
        if study.rescore is None or study.predictions not in files:
            return [], ["not recomputed: no predictions are stored"]
        predictions = self.store.resolve(files[study.predictions].path)
        made = study.rescore(self.plan.setting, trial.config, wanted.config, predictions)
        tolerances = {metric.name: metric.rescore_tolerance for metric in study.metrics}
        return differences(row.metrics, made, tolerances), []


def differences(
    stored: Mapping[str, float],
    made: Mapping[str, float],
    tolerances: Mapping[str, float | None] = MappingProxyType({}),
) -> list[str]:
    """Metrics that differ, a sentence each. NaN equals NaN, and an absent metric is NaN.

    Args:
        tolerances: largest difference allowed, by name of the metric; None for a metric that is not compared,
            0 for a metric that is absent here.
    """
    nan = math.nan
    pairs = {name: (stored.get(name, nan), made.get(name, nan)) for name in {**stored, **made}}
    return [
        f"{name} is stored as {ours!r} and recomputed as {again!r}"
        for name, (ours, again) in pairs.items()
        if not _agree(ours, again, tolerances.get(name, 0.0))
    ]


def _agree(ours: float, again: float, tolerance: float | None) -> bool:
    if tolerance is None or (math.isnan(ours) and math.isnan(again)):
        return True
    return abs(ours - again) <= tolerance  # False where one of them is NaN
