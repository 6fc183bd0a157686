"""Where the number of a cell comes from: evaluations by seed, a joint measurement, or the row's configs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.setting import data_id
from ablation.store import SUBMISSION, AttemptRow, EvaluationRow, JointRow, Store, TrialRow
from ablation.study import Cell

if TYPE_CHECKING:
    from ablation.plan import Plan


@dataclass(frozen=True, slots=True)
class Source:
    """One value of a cell: that of a seed, or of a round of a joint measurement.

    Attributes:
        value: in the metric's unit; None while there is none.
        state: "complete", "imported" (complete, with an evaluation server's number), "waiting", "running",
            "failed", "cancelled", "submit" where only an evaluation server can give the value, "unmeasured"
            where a joint measurement is to come, "undefined" where the evaluation has run and the test data
            holds nothing to measure, or "unreadable" where the value comes from a file that is damaged or
            missing.
        fraction: share of the training done, 0..1.
        commit: of the code that evaluated it, "+changes" behind it when not all was committed; "" where
            unknown.
        bootstrap: path of its bootstrap replicates; None where there are none.
        submission: what to upload, relative to the workspace; "" where there is nothing.
        round: of a joint measurement; None for a value of the seed itself.
    """

    seed: int
    trial_key: str
    evaluation_key: str
    value: float | None = None
    state: str = "waiting"
    fraction: float = 0.0
    commit: str = ""
    bootstrap: Path | None = None
    submission: str = ""
    round: int | None = None

    @property
    def repetition(self) -> int:
        """What the value repeats: the number of its round, or its seed."""
        return self.seed if self.round is None else self.round


@dataclass(frozen=True, slots=True)
class Sources:
    """What the store holds behind some cells of a plan.

    Attributes:
        joint: the newest joint measurement of the study at its setting.
    """

    plan: Plan
    trials: Mapping[str, TrialRow]
    evaluations: Mapping[str, EvaluationRow]
    attempts: Mapping[int, AttemptRow]
    joint: JointRow | None
    root: Path

    @staticmethod
    def read(plan: Plan, store: Store, cells: Sequence[Cell]) -> Sources:
        """Reads the store once for all of the cells."""
        keys = {plan.lookup(cell, seed) for cell in cells if cell.variant for seed in plan.seeds}
        trials, setting = sorted({trial for trial, _ in keys}), plan.setting
        joint = plan.study.joint is not None
        return Sources(
            plan,
            store.trial_states(trials),
            store.evaluations(sorted({evaluation for _, evaluation in keys})),
            {attempt.id: attempt for attempt in store.attempts(trials)},
            store.joint(plan.study.name, setting.profile, data_id(setting)) if joint else None,
            store.root,
        )

    def of(self, cell: Cell) -> tuple[Source, ...]:
        """The values of a cell, in order; none for one that is reported alone."""
        if cell.variant is None:
            return ()
        if cell.metric in self.plan.study.computed:
            return (self._computed(cell),)
        if cell.metric in self.plan.study.jointly:
            return self._joint(cell)
        return tuple(self._of_seed(cell, seed) for seed in self.plan.seeds)

    def _computed(self, cell: Cell) -> Source:
        """From the configs, which say the same at every seed."""
        seed = self.plan.seeds[0]
        value = self.plan.study.computed[cell.metric](*self.plan.configs(cell, seed))
        return Source(seed, *self.plan.lookup(cell, seed), value, "complete", 1.0)

    def _joint(self, cell: Cell) -> tuple[Source, ...]:
        """A value for each round, of the first seed that was measured as it is now."""
        seeds = [self._of_seed(cell, seed) for seed in self.plan.seeds]
        for source in seeds:
            evaluation = self.evaluations.get(source.evaluation_key)
            if self.joint and evaluation and self.joint.measured(evaluation):
                values = self.joint.rounds[evaluation.key].get(cell.metric, ())
                commit = _commit(self.joint.provenance)
                measured = replace(source, state="complete", fraction=1.0, commit=commit, bootstrap=None)
                return tuple(replace(measured, value=v, round=number) for number, v in enumerate(values))
        done = next((source for source in seeds if source.evaluation_key in self.evaluations), None)
        return (replace(done, value=None, state="unmeasured"),) if done else (seeds[0],)

    def _of_seed(self, cell: Cell, seed: int) -> Source:
        source = Source(seed, *self.plan.lookup(cell, seed))
        evaluation = self.evaluations.get(source.evaluation_key)
        if evaluation is not None and evaluation.awaits_scores:
            submission = evaluation.artifacts[SUBMISSION]
            return replace(source, state="submit", fraction=1.0, submission=submission)
        if evaluation is not None:
            return self._evaluated(source, evaluation, evaluation.metrics.get(cell.metric, math.nan))
        trial = self.trials.get(source.trial_key)
        if trial is None or trial.state not in ("RUNNING", "FAILED", "CANCELLED"):
            return source
        fraction = min(1.0, trial.step / trial.total) if trial.total else 0.0
        return replace(source, state=trial.state.lower(), fraction=fraction)

    def _evaluated(self, source: Source, evaluation: EvaluationRow, value: float) -> Source:
        if not math.isfinite(value):
            return replace(source, state="undefined", fraction=1.0)
        attempt = self.attempts.get(evaluation.attempt_id)
        bootstrap = evaluation.artifacts.get("bootstrap")
        return replace(
            source,
            value=value,
            state="imported" if evaluation.imported else "complete",
            fraction=1.0,
            commit="" if attempt is None else _commit(attempt.provenance),
            bootstrap=None if bootstrap is None else self.root / bootstrap,
        )


def _commit(provenance: Mapping[str, Any]) -> str:
    return f"{provenance.get('commit') or ''}{'+changes' if provenance.get('dirty') else ''}"
