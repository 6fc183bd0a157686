"""What a workspace holds, as tidy pandas tables for one's own analysis.

    import ablation
    results = ablation.open("runs", study="atss", profile="shapes")
    results.cells().groupby(["table", "row"]).value.mean()

Each frame has one observation a row. Numbers are in the units of their metrics. What does not exist is NaN,
NaT or None. Nothing here trains or writes, and nothing imports what a study trains with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation import studies
from ablation.errors import UserError
from ablation.results.by_class import by_class
from ablation.results.claims import verdicts
from ablation.results.table import FilledCell, FilledTable, assemble
from ablation.session import Selection, Session
from ablation.studies import DEFAULT_STUDY

if TYPE_CHECKING:
    import pandas as pd

_TIMES = ("started", "heartbeat", "ended", "time")
"""Columns that are points in time, UTC."""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a study in a workspace. Made by `ablation.open`.

    Every method reads the store anew, so a run that goes on is seen as far as it has come.

    Attributes:
        session: the study with its plan and its store, for what the frames do not hold.
    """

    session: Session

    def trials(self) -> pd.DataFrame:
        """One row a training: key, name, tables, seed, state, step, total, attempts, seconds, error, config.

        `config` is the whole config as a dict. `state` is WAITING, RUNNING, COMPLETE, FAILED or CANCELLED.
        """
        keys = [trial.key for trial in self.session.plan.trials]
        known = self.session.store.trial_states(keys)
        rows = [
            {**_record(known[key]), "config": json.loads(known[key].config_json)} for key in _in(keys, known)
        ]
        return _frame(
            rows, ["key", "name", "seed", "state"], without=["config_json", "study", "profile", "data_name"]
        )

    def attempts(self) -> pd.DataFrame:
        """One row an attempt at a training: number, state, host, times, seconds, error, commit."""
        rows = [
            {**_record(row), "seconds": row.seconds, "commit": row.provenance.get("commit")}
            for row in self.session.store.attempts([trial.key for trial in self.session.plan.trials])
        ]
        hidden = ["provenance", "environment", "mirrored_upto", "mirrored_state", "owner"]
        return _frame(rows, ["trial_key", "number", "state", "seconds"], without=hidden)

    def curves(self, *metrics: str) -> pd.DataFrame:
        """What trainings report while they run: trial_key, name, seed, metric, step, value.

        Args:
            metrics: names; those that the study declares as progress when there are none.
        """
        names = metrics or tuple(metric.name for metric in self.session.study.progress)
        rows = [
            {
                "trial_key": trial.key,
                "name": trial.name,
                "seed": trial.seed,
                "metric": name,
                "step": step,
                "value": value,
            }
            for trial in self.session.plan.trials
            for name in names
            for step, value in self.session.store.curve(trial.key, name)
        ]
        return _frame(rows, ["trial_key", "name", "seed", "metric", "step", "value"])

    def evaluations(self) -> pd.DataFrame:
        """One row a number of a finished test: trial_key, evaluation_key, seed, metric, unit, value, time."""
        trials = {e.key: trial for trial in self.session.plan.trials for e in trial.evaluations}
        units = {metric.name: metric.unit for metric in self.session.study.metrics}
        rows = [
            {
                "trial_key": row.trial_key,
                "name": trials[key].name,
                "seed": trials[key].seed,
                "evaluation_key": key,
                "metric": name,
                "unit": units.get(name, ""),
                "value": value,
                "time": row.time,
            }
            for key, row in self.session.store.evaluations(list(trials)).items()
            for name, value in row.metrics.items()
        ]
        return _frame(rows, ["trial_key", "name", "seed", "evaluation_key", "metric", "value"])

    def cells(self) -> pd.DataFrame:
        """One row a cell and seed: table, row, column, metric, seed, value, paper, state, heading cells.

        A number that rows measure together has a row for each round; one that is reported and not trained
        has a row without seed and value, with its `source`.
        """
        return _frame(
            _cell_records(self._tables()),
            ["table", "row", "column", "metric", "seed", "value", "paper", "state"],
        )

    def claims(self) -> pd.DataFrame:
        """One row a claim: id, text, verdict, estimate, low, high, paper, points_the_papers_way, detail.

        Claims that are computed and not measured are computed here, which may take seconds.
        """
        session = self.session
        rows = []
        for verdict in verdicts(session.study, self._tables(), session.plan.setting):
            low, high = verdict.interval or (None, None)
            record = {
                **_record(verdict),
                "metric": verdict.metric and verdict.metric.name,
                "low": low,
                "high": high,
            }
            rows.append(record)
        return _frame(
            rows, ["id", "verdict", "estimate", "low", "high", "paper"], without=["interval", "signed"]
        )

    def by_class(self) -> pd.DataFrame:
        """One row a cell, class and seed: table, row, class, metric, seed, value, state.

        Raises:
            UserError: the study has no numbers by class, or a file of predictions cannot be read.
        """
        tables, problems = by_class(self.session.study, self.session.plan, self.session.store)
        if problems:
            raise UserError("\n".join(problems))
        planned = [filled for filled in tables if filled.table.id in self.session.plan.table_ids]
        frame = _frame(_cell_records(planned), ["table", "row", "column", "metric", "seed", "value", "state"])
        return frame.drop(columns=["paper", "unit"], errors="ignore").rename(columns={"column": "class"})

    def _tables(self) -> list[FilledTable]:
        return assemble(self.session.study, self.session.plan, self.session.store)


FRAMES: Mapping[str, Callable[[Results], pd.DataFrame]] = {
    "trials": Results.trials,
    "attempts": Results.attempts,
    "curves": Results.curves,
    "evaluations": Results.evaluations,
    "cells": Results.cells,
    "claims": Results.claims,
}
"""What `ablation export` writes, by the name of the file."""


def open_results(
    workspace: Path | str | None = None,
    *,
    study: str = DEFAULT_STUDY,
    profile: str | None = None,
    tables: Sequence[str] | None = None,
    seeds: int | None = None,
    store: str | None = None,
    **options: Any,
) -> Results:
    """The results of a study in a workspace, as pandas tables.

    Args:
        workspace: its folder; ./runs and ./results when None, as for the commands.
        study: its name, or its Python file.
        profile: the study's default when None.
        tables: ids, "table3" or "3"; all when None.
        seeds: how many, counted from 0; the profile's number when None.
        store: address of a PostgreSQL store; the workspace's own file when None.
        options: the study's own options as the run had them, as `data=Path("cells")`.

    Raises:
        UserError: nothing has run; an unknown study, profile, table or option.
    """
    kind = studies.load_study(study).options
    unknown = options.keys() - {one.name for one in fields(kind)}
    if unknown:
        have = ", ".join(one.name for one in fields(kind)) or "none"
        raise UserError(f"The study {study!r} has no option {sorted(unknown)[0]!r}; it has: {have}.")
    try:
        chosen = kind(**{name: _absolute(value) for name, value in options.items()})
    except ValueError as error:
        raise UserError(str(error)) from error
    place = None if workspace is None else Path(workspace)
    selection = Selection(
        workspace=place,
        store=store,
        study=study,
        profile=profile,
        options=chosen,
        tables=tables,
        seeds=seeds,
    )
    return Results(Session.of_results(selection))


def _absolute(value: Any) -> Any:
    return value.absolute() if isinstance(value, Path) else value


def _cell_records(tables: Iterable[FilledTable]) -> list[dict[str, Any]]:
    return [
        {
            "table": filled.table.id,
            **dict(zip(filled.table.headers, row.headers, strict=True)),
            **_of_cell(cell),
            "source": row.source or None,
            **observed,
        }
        for filled in tables
        for row, cells in zip(filled.table.rows, filled.rows, strict=True)
        for cell in cells
        for observed in _observed(cell)
    ]


def _observed(cell: FilledCell) -> list[dict[str, Any]]:
    """What a cell holds, for each seed or round."""
    names = ("seed", "round", "value", "state", "trial_key", "evaluation_key")
    known = [{name: getattr(source, name) for name in names} for source in cell.sources]
    return known or [{**dict.fromkeys(names), "state": cell.state}]


def _of_cell(cell: FilledCell) -> dict[str, Any]:
    metric = cell.metric
    return {
        "row": cell.row,
        "column": cell.column,
        "metric": metric.name,
        "unit": metric.unit,
        "paper": cell.paper,
    }


def _record(row: Any) -> dict[str, Any]:
    return {one.name: getattr(row, one.name) for one in fields(row)}


def _in(keys: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    return [key for key in keys if key in known]


def _frame(
    rows: Sequence[Mapping[str, Any]], first: Sequence[str], without: Sequence[str] = ()
) -> pd.DataFrame:
    """The records as a frame with these columns first, which it has also without a row."""
    import pandas as pd

    frame = pd.DataFrame.from_records(list(rows))
    columns = [*first, *(name for name in frame.columns if name not in {*first, *without})]
    frame = frame.reindex(columns=columns)
    for name in _TIMES:
        if name in frame:
            frame[name] = pd.to_datetime(frame[name], utc=True)
    return frame
