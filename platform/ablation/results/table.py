"""Tables filled from the store: every cell with ours, the paper's, their difference, and its trials.

Reads the store, never logs or files. Renderers, claims and figures all use filled tables, so they agree.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ablation.metric import PERCENT, Metric, SeedNoise
from ablation.setting import Setting
from ablation.store import SUBMISSION, AttemptRow, EvaluationRow, Store, TrialRow
from ablation.study import Cell, Row, Study, Table

if TYPE_CHECKING:
    from ablation.plan import Plan

IMPORTED_MARK = "†"
"""Stands beside a number from an evaluation server."""


@dataclass(frozen=True, slots=True)
class Source:
    """The value of one seed for a cell.

    Attributes:
        value: in the metric's unit; None while there is none.
        state: "complete", "imported" (complete, with an evaluation server's number), "waiting", "running",
            "failed", "cancelled", "submit" where only an evaluation server can give the value, "undefined"
            where the evaluation has run and the test data holds nothing to measure, or "unreadable" where
            the value comes from a file that is damaged or missing.
        fraction: share of the training done, 0..1.
        commit: of the code that evaluated it, "+changes" behind it when not all was committed; "" where
            unknown.
        bootstrap: path of its bootstrap replicates; None where there are none.
        submission: what to upload, relative to the workspace; "" where there is nothing.
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


@dataclass(frozen=True, slots=True)
class FilledCell:
    """One cell: what is declared, and the value of each seed.

    Attributes:
        metric: the one that the cell names.
    """

    cell: Cell
    metric: Metric
    row: str
    column: str
    sources: tuple[Source, ...]
    best: bool = False

    @property
    def values(self) -> dict[int, float]:
        """The values there are, by seed."""
        return {source.seed: source.value for source in self.sources if source.value is not None}

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that have a value."""
        return fmean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None below two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def paper(self) -> float | None:
        """The reported number."""
        return self.cell.paper

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        mean = self.mean
        return None if mean is None or self.paper is None else mean - self.paper

    @property
    def reproduced(self) -> bool | None:
        """Whether ours, as shown, is within the metric's tolerance of the paper's; None where unknown."""
        if self.mean is None or self.paper is None:
            return None
        return self.metric.reproduces(self.mean, self.paper)

    @property
    def complete(self) -> bool:
        """Whether every seed has its value."""
        return len(self.values) == len(self.sources)

    @property
    def imported(self) -> bool:
        """Whether a value comes from an evaluation server, without a measure of its error."""
        return any(source.state == "imported" for source in self.sources)

    @property
    def state(self) -> str:
        """State of the missing seeds, a failure first; "complete" or "imported" where none is missing."""
        missing = [source for source in self.sources if source.value is None]
        states = {source.state for source in missing}
        if not missing:
            return "imported" if self.imported else "complete"
        if "running" in states and "failed" not in states:
            share = fmean(source.fraction for source in missing if source.state == "running")
            return f"running {math.floor(100 * share)} %"
        return next(
            state
            for state in ("failed", "cancelled", "waiting", "submit", "unreadable", "undefined")
            if state in states
        )


@dataclass(frozen=True, slots=True)
class Heading:
    """The conditions under which the numbers of a table were measured.

    Attributes:
        note: the setting's caption.
        paper_note: of the paper's own numbers; None where a table holds none.
        seed_noise: of the setting, by name of the metric.
    """

    profile: str
    at_paper_scale: bool
    data_name: str
    note: str
    paper_note: str | None
    seeds: tuple[int, ...]
    commits: tuple[str, ...]
    seed_noise: Mapping[str, SeedNoise]

    @property
    def conditions(self) -> str:
        """Profile, data set, seeds and commit in one sentence."""
        seeds = ", ".join(map(str, self.seeds))
        commits = ", ".join(map(_short, self.commits)) or "none yet"
        return (
            f"Profile {self.profile}, data set {self.data_name}, "
            f"{'seeds' if len(self.seeds) > 1 else 'seed'} {seeds}, "
            f"{'commits' if len(self.commits) > 1 else 'commit'} {commits}."
        )

    @property
    def legend(self) -> str:
        """How to read a cell."""
        ours = "ours (mean over seeds ± sample standard deviation)" if len(self.seeds) > 1 else "ours"
        if self.paper_note is None:
            return f"Each cell: {ours}."
        note = f" ({self.paper_note})" if self.paper_note else ""
        return f"Each cell: {ours}, then the paper's number at its own scale and ours minus it{note}."

    @property
    def text(self) -> str:
        """Conditions, note and legend as a paragraph."""
        return " ".join(sentence for sentence in (self.conditions, self.note, self.legend) if sentence)


@dataclass(frozen=True, slots=True)
class FilledTable:
    """A table with its cells filled, row by row."""

    table: Table
    rows: tuple[tuple[FilledCell, ...], ...]
    heading: Heading

    @property
    def name(self) -> str:
        """The title's name: "Table 3" for the id table3."""
        return re.sub(r"^table(\d+)$", r"Table \1", self.table.id)

    @property
    def caption(self) -> str:
        """The text below the title: the conditions, how to read a cell, and the table's notes."""
        return " ".join([self.heading.text, *self.notes])

    @property
    def notes(self) -> list[str]:
        """Sentences of this table alone: units, reproduced cells, numbers of an evaluation server."""
        notes = _units(self.cells)
        compared = [cell.reproduced for cell in self.cells if cell.reproduced is not None]
        if self.heading.at_paper_scale and compared:
            share = f"{compared.count(True)} of {len(compared)} cells"
            notes.append(f"Within their tolerance of the paper's number: {share}.")
        if any(cell.imported for cell in self.cells):
            notes.append(f"{IMPORTED_MARK} An evaluation server's number, so differences have no interval.")
        return notes + _to_submit(self.cells)

    @property
    def cells(self) -> tuple[FilledCell, ...]:
        """Every cell, in reading order."""
        return tuple(cell for row in self.rows for cell in row)

    def cell(self, row: str, column: str) -> FilledCell:
        """The cell of that row label and column name."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))


def _units(cells: Sequence[FilledCell]) -> list[str]:
    """The metrics that are not percentages of which higher is better, with unit and direction."""
    metrics = dict.fromkeys(cell.metric for cell in cells)
    special = [metric.legend() for metric in metrics if (metric.unit, metric.better) != (PERCENT, "higher")]
    return [f"Units: {'; '.join(dict.fromkeys(special))}."] if special else []


def _to_submit(cells: Sequence[FilledCell]) -> list[str]:
    """How to fill cells that need an evaluation server: one is named, others are counted."""
    sources = [source for cell in cells for source in cell.sources if source.state == "submit"]
    files = {source.evaluation_key: source.submission for source in sources}
    if not files:
        return []
    key, file = next(iter(files.items()))
    more = f" {len(files) - 1} more likewise: ablation status lists them." if len(files) > 1 else ""
    return [
        f'"submit": only an evaluation server can give the number. Upload {file or "its submission"} of the '
        f"workspace, then run ablation import-scores {key} FILE with what comes back.{more}"
    ]


Item = str | bool | FilledCell
"""An entry of the drawn table: text, a check mark or its absence, a cell."""


def grid(filled: FilledTable) -> tuple[tuple[Item, ...], ...]:
    """The table as the paper draws it, heading row first; a transposed one has rows as columns."""
    table = filled.table
    lines: list[tuple[Item, ...]] = [(*table.headers, *table.columns)]
    lines += [(*row.headers, *cells) for row, cells in zip(table.rows, filled.rows, strict=True)]
    return tuple(zip(*lines, strict=True)) if table.transposed else tuple(lines)


def num_heading_columns(filled: FilledTable) -> int:
    """Number of columns of `grid` that hold headings instead of cells."""
    return 1 if filled.table.transposed else len(filled.table.headers)


def spans(line: Sequence[Item]) -> list[tuple[Item, int]]:
    """Neighbours with equal text merged: each item and how many columns it takes."""
    merged: list[tuple[Item, int]] = []
    for item in line:
        if merged and isinstance(item, str) and item == merged[-1][0]:
            merged[-1] = (item, merged[-1][1] + 1)
        else:
            merged.append((item, 1))
    return merged


def assemble(
    study: Study, plan: Plan, store: Store, table_ids: Sequence[str] | None = None
) -> list[FilledTable]:
    """Fill the named tables (all that are planned when None) with what the store holds now."""
    tables = [table for table in study.tables if table.id in (table_ids or plan.table_ids)]
    keys = {plan.lookup(cell, seed) for table in tables for cell in _cells(table) for seed in plan.seeds}
    reader = _Reader(
        store.trial_states(sorted({trial for trial, _ in keys})),
        store.evaluations(sorted({evaluation for _, evaluation in keys})),
        {attempt.id: attempt for attempt in store.attempts(sorted({trial for trial, _ in keys}))},
        store.root,
    )
    return [_fill(study, plan, table, reader) for table in tables]


@dataclass(frozen=True, slots=True)
class _Reader:
    """The rows of the store behind some tables."""

    trials: Mapping[str, TrialRow]
    evaluations: Mapping[str, EvaluationRow]
    attempts: Mapping[int, AttemptRow]
    root: Path

    def source(self, seed: int, trial_key: str, evaluation_key: str, metric: str) -> Source:
        """The value of a trial and evaluation for a cell of that metric."""
        source = Source(seed, trial_key, evaluation_key)
        evaluation = self.evaluations.get(evaluation_key)
        if evaluation is not None and evaluation.awaits_scores:
            submission = evaluation.artifacts[SUBMISSION]
            return replace(source, state="submit", fraction=1.0, submission=submission)
        if evaluation is not None:
            return self._measured(source, evaluation, evaluation.metrics.get(metric, math.nan))
        trial = self.trials.get(trial_key)
        if trial is None or trial.state not in ("RUNNING", "FAILED", "CANCELLED"):
            return source
        fraction = min(1.0, trial.step / trial.total) if trial.total else 0.0
        return replace(source, state=trial.state.lower(), fraction=fraction)

    def _measured(self, source: Source, evaluation: EvaluationRow, value: float) -> Source:
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


def _short(commit: str) -> str:
    name, plus, changes = commit.partition("+")
    return f"{name[:10]}{plus}{changes}"


def _cells(table: Table) -> Iterable[Cell]:
    return (cell for row in table.rows for cell in row.cells)


def _fill(study: Study, plan: Plan, table: Table, reader: _Reader) -> FilledTable:
    def filled(row: Row, cell: Cell, column: str) -> FilledCell:
        sources = tuple(reader.source(seed, *plan.lookup(cell, seed), cell.metric) for seed in plan.seeds)
        return FilledCell(cell, study.metric(cell.metric), row.label, column, sources)

    rows = [
        tuple(filled(row, cell, column) for cell, column in zip(row.cells, table.columns, strict=True))
        for row in table.rows
    ]
    return FilledTable(table, mark_best(rows), _heading(study, plan, rows))


def mark_best(rows: Sequence[Sequence[FilledCell]]) -> tuple[tuple[FilledCell, ...], ...]:
    """Mark the best complete cell of each metric in a column, and the cells that show the same number.

    None is marked where all complete cells of the metric show the same number.
    """
    columns = [_mark_column(column) for column in zip(*rows, strict=True)]
    return tuple(zip(*columns, strict=True))


def _mark_column(column: Sequence[FilledCell]) -> list[FilledCell]:
    shown: dict[Metric, set[float]] = defaultdict(set)
    for cell in column:
        if cell.mean is not None and cell.complete:
            shown[cell.metric].add(cell.metric.rounded(cell.mean))
    best = {metric: metric.best(values) for metric, values in shown.items() if len(values) > 1}
    return [replace(cell, best=_is_best(cell, best.get(cell.metric))) for cell in column]


def _is_best(cell: FilledCell, best: float | None) -> bool:
    return cell.mean is not None and cell.complete and cell.metric.rounded(cell.mean) == best


def _heading(study: Study, plan: Plan, rows: Sequence[Sequence[FilledCell]]) -> Heading:
    setting: Setting = plan.setting
    commits = {source.commit for row in rows for cell in row for source in cell.sources if source.commit}
    reported = any(cell.paper is not None for row in rows for cell in row)
    return Heading(
        setting.profile,
        setting.at_paper_scale,
        setting.data_name,
        setting.caption,
        study.paper_note if reported else None,
        tuple(plan.seeds),
        tuple(sorted(commits)),
        setting.seed_noise,
    )
