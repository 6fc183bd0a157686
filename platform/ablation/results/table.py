"""Tables filled from the store: every cell with ours, the paper's, their difference, and its trials.

Reads the store, never logs or files. A filled table is what every renderer draws, what claims are
judged on and what figures show, so all of them tell the same story.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ablation.store import SUBMISSION, AttemptRow, EvaluationRow, Store, TrialRow
from ablation.study import Cell, Row, SeedNoise, Setting, Study, Table

if TYPE_CHECKING:
    from ablation.plan import Plan

IMPORTED_MARK = "†"
"""Beside a number that an evaluation server gave."""


@dataclass(frozen=True, slots=True)
class Source:
    """What one seed gives to a cell.

    Attributes:
        value: the metric in percent; None while there is none.
        state: "complete", "imported" (complete, but an evaluation server's number), "waiting", "running",
            "failed", "cancelled", "submit" where only an evaluation server can give it, "undefined"
            where the data set has nothing to measure (AP of small objects without small objects), or
            "unreadable" where the value is to come from a file that is damaged or gone.
        fraction: share of the training done, 0..1.
        commit: of the code that evaluated it, "+changes" behind it when not all was committed; "" where
            unknown.
        bootstrap: path of its image-bootstrap replicates; None where there are none.
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
    """One cell: what is declared, and what each seed gave."""

    cell: Cell
    row: str
    column: str
    sources: tuple[Source, ...]
    best: bool = False

    @property
    def values(self) -> dict[int, float]:
        """The values there are, in percent, by seed."""
        return {source.seed: source.value for source in self.sources if source.value is not None}

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that are there."""
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
        """Whether ours, as shown, is within tolerance of the paper's; None where one is missing."""
        if self.mean is None or self.paper is None:
            return None
        return abs(round(self.mean, 1) - self.paper) < self.cell.tolerance + 1e-6

    @property
    def complete(self) -> bool:
        """Whether every seed has its value."""
        return len(self.values) == len(self.sources)

    @property
    def imported(self) -> bool:
        """Whether a value is an evaluation server's: nothing here says how sure it is."""
        return any(source.state == "imported" for source in self.sources)

    @property
    def state(self) -> str:
        """What keeps the missing seeds, a failure named first; "complete" or "imported" where none is."""
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
    """Under what conditions the numbers of a table were measured.

    Attributes:
        note: the setting's caption.
        paper_note: of the paper's own numbers; None where a table holds none.
    """

    profile: str
    at_paper_scale: bool
    data_name: str
    note: str
    paper_note: str | None
    seeds: tuple[int, ...]
    commits: tuple[str, ...]
    seed_noise: SeedNoise | None

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
        """All of it, as a paragraph."""
        return " ".join(sentence for sentence in (self.conditions, self.note, self.legend) if sentence)


@dataclass(frozen=True, slots=True)
class FilledTable:
    """A table with its cells filled, row by row."""

    table: Table
    rows: tuple[tuple[FilledCell, ...], ...]
    heading: Heading

    @property
    def name(self) -> str:
        """As a person says it: Table 3 for the id table3."""
        return re.sub(r"^table(\d+)$", r"Table \1", self.table.id)

    @property
    def caption(self) -> str:
        """What stands below the title: the conditions, how to read a cell, what is special here."""
        return " ".join([self.heading.text, *self.notes])

    @property
    def notes(self) -> list[str]:
        """Sentences that other tables need not have: reproduced cells, numbers of an evaluation server."""
        notes = []
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


def _to_submit(cells: Sequence[FilledCell]) -> list[str]:
    """What to do about cells that only an evaluation server can fill: one is told, others are counted."""
    sources = [source for cell in cells for source in cell.sources if source.state == "submit"]
    files = {source.evaluation_key: source.submission for source in sources}
    if not files:
        return []
    key, file = next(iter(files.items()))
    more = f" {len(files) - 1} more likewise: ablation status lists them." if len(files) > 1 else ""
    return [
        f'"submit": only an evaluation server can give the number. Upload {file or "its detections"} of the '
        f"workspace, then run ablation import-scores {key} FILE with what comes back.{more}"
    ]


Item = str | bool | FilledCell
"""What stands at a place of the drawn table: text, a check mark or its absence, a cell."""


def grid(filled: FilledTable) -> tuple[tuple[Item, ...], ...]:
    """The table as the paper draws it, heading row first; a transposed one has rows as columns."""
    table = filled.table
    lines: list[tuple[Item, ...]] = [(*table.headers, *table.columns)]
    lines += [(*row.headers, *cells) for row, cells in zip(table.rows, filled.rows, strict=True)]
    return tuple(zip(*lines, strict=True)) if table.transposed else tuple(lines)


def num_heading_columns(filled: FilledTable) -> int:
    """How many columns of `grid` name a line instead of holding cells."""
    return 1 if filled.table.transposed else len(filled.table.headers)


def spans(line: Sequence[Item]) -> list[tuple[Item, int]]:
    """Neighbours with equal text merged: each item and how many places it takes."""
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
    """The rows of the store that some tables rest on."""

    trials: Mapping[str, TrialRow]
    evaluations: Mapping[str, EvaluationRow]
    attempts: Mapping[int, AttemptRow]
    root: Path

    def source(self, seed: int, trial_key: str, evaluation_key: str, metric: str) -> Source:
        """What these two keys give to a cell of that metric."""
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
        # Absent, or pycocotools' -1, where no ground truth has the size asked for.
        if not math.isfinite(value) or value < 0:
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
        return FilledCell(cell, row.label, column, sources)

    rows = [
        tuple(filled(row, cell, column) for cell, column in zip(row.cells, table.columns, strict=True))
        for row in table.rows
    ]
    return FilledTable(table, mark_best(rows), _heading(study, plan, rows))


def mark_best(rows: Sequence[Sequence[FilledCell]]) -> tuple[tuple[FilledCell, ...], ...]:
    """Mark the highest of a column's complete cells, and its equals as shown; nothing where all are equal."""
    columns = [_mark_column(column) for column in zip(*rows, strict=True)]
    return tuple(zip(*columns, strict=True))


def _mark_column(column: Sequence[FilledCell]) -> list[FilledCell]:
    shown = [None if cell.mean is None or not cell.complete else round(cell.mean, 1) for cell in column]
    comparable = [value for value in shown if value is not None]
    best = max(comparable) if len(set(comparable)) > 1 else None
    return [
        replace(cell, best=best is not None and value == best)
        for cell, value in zip(column, shown, strict=True)
    ]


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
