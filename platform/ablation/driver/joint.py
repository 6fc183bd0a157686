"""Measures trained rows together on this machine, when their trials have ended (`study.JointMeasurement`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ablation.errors import UserError
from ablation.plan import Plan, PlannedEvaluation, PlannedTrial, make_plan
from ablation.protocol import JointRequest, JointResult, Trained
from ablation.provenance import environment
from ablation.session import Session
from ablation.setting import data_id
from ablation.storage import Storage
from ablation.store import EvaluationRow, Store
from ablation.study import JointMeasurement


@dataclass(frozen=True, slots=True)
class _Row:
    """A row with a result, that of the first seed which has one."""

    trial: PlannedTrial
    planned: PlannedEvaluation
    result: EvaluationRow


def due(session: Session) -> bool:
    """Whether there are trained rows that the newest measurement does not have as they are now."""
    plan, store = session.plan, session.store
    newest = store.joint(plan.study.name, plan.setting.profile, data_id(plan.setting))
    return any(newest is None or not newest.measured(row.result) for row in _rows(plan, store))


def measure(session: Session, facts: Mapping[str, Any]) -> str:
    """Measures all trained rows of the study that have such cells, and records it; returns what was done.

    Args:
        session: whose trials have ended; rows of tables that are not planned are measured too.
        facts: provenance of the command.

    Raises:
        UserError: there is nothing to measure, or the study cannot measure.
    """
    plan, store = session.plan, session.store
    joint, rows = plan.study.joint, _rows(plan, store)
    if joint is None or not rows:
        lacks = "no row yet whose training has ended" if joint else "no metric that rows measure together"
        raise UserError(f"The study {plan.study.name!r} has {lacks}.")
    result = _measured(plan, store, session.storage, joint, rows)
    packages = environment.describe(plan.study.sources, plan.study.packages)
    store.add_joint(
        (plan.study.name, plan.setting.profile, data_id(plan.setting)),
        result.machine,
        {**facts, "environment": packages},
        {row.result.key: row.result.attempt_id for row in rows},
        result.rounds,
    )
    return f"Measured {' and '.join(joint.metrics)} of {len(rows)} rows in turns, on {result.machine}."


def _measured(
    plan: Plan, store: Store, storage: Storage, joint: JointMeasurement, rows: list[_Row]
) -> JointResult:
    """The measurement, with the files of each trial on this machine meanwhile."""
    stored = store.trial_states([row.trial.key for row in rows])
    trained = []
    for row in rows:
        key, folder = row.trial.key, stored[row.trial.key].folder
        directory = storage.directory(key)
        storage.fetch(key, directory, folder)
        configs = (row.trial.config, row.planned.config)
        trained.append(Trained(row.planned.key, row.planned.name, *configs, directory / folder))
    try:
        return joint.measure(JointRequest(tuple(trained), plan.setting.context))
    finally:
        for row in rows:
            storage.remove_copies(row.trial.key, storage.directory(row.trial.key))


def _rows(plan: Plan, store: Store) -> list[_Row]:
    """The rows that are to be measured, in reading order; an evaluation that several cite is there once."""
    whole = make_plan(plan.study, plan.setting, plan.seeds)
    planned = {e.key: (trial, e) for trial in whole.trials for e in trial.evaluations}
    results = store.evaluations(list(planned))
    found = {}
    for keys in _wanted(whole):
        if key := next((key for key in keys if key in results), None):
            found[key] = _Row(*planned[key], results[key])
    return list(found.values())


def _wanted(plan: Plan) -> Iterator[list[str]]:
    """Evaluation keys of each cell that is measured jointly, by seed."""
    for _, _, cell in plan.study.cells():
        if cell.variant and cell.metric in plan.study.jointly:
            yield [plan.lookup(cell, seed)[1] for seed in plan.seeds]
