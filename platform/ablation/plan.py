"""What a study needs: the smallest set of trainings and evaluations that fills its tables.

Nothing here runs or writes, but `register`. A plan is made anew from the study and the store by every
command, so an edited study, more seeds and failures run again are all the same case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from ablation.errors import UserError
from ablation.fingerprint import canonical_json, evaluation_key, key_of
from ablation.resources import EVERYWHERE, ResourceOverride, Resources, overridden
from ablation.setting import Setting, data_id
from ablation.store import Store, TrialRow
from ablation.store.schema import TrialState
from ablation.study import Cell, Row, Study, Table, Variant


@dataclass(frozen=True, slots=True)
class PlannedEvaluation:
    """One way in which a trained trial is tested.

    Attributes:
        name: of the first planned row that cites it: "table8 ResNet-101, seed 0".
    """

    key: str
    config: Any
    config_json: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One training, and all that the planned tables want of it.

    Attributes:
        name: of the first row of the study that cites it: "table3 RetinaNet (#A=1) + ATSS, seed 0".
        rows: all of the study's that cite it, as "table3/RetinaNet (#A=1) + ATSS".
        evaluations: wanted by the planned tables, in reading order.
        missing: those of them without a result.
        state: COMPLETE when nothing is missing; else what the store says, WAITING when it says nothing.
        step, total: how far its newest attempt is; 0 of 0 before one reports.
        error: traceback of the failure when FAILED.
        resources: what it holds while it runs; None leaves that to the machine.
        cost: what is left to do, in the setting's units: training from `step` on, and what is missing.
    """

    key: str
    name: str
    config: Any
    config_json: str
    seed: int
    rows: tuple[str, ...] = ()
    evaluations: tuple[PlannedEvaluation, ...] = ()
    missing: tuple[PlannedEvaluation, ...] = ()
    state: TrialState = "WAITING"
    step: int = 0
    total: int = 0
    error: str | None = None
    resources: Resources | None = None
    cost: float = 0.0

    @property
    def tables(self) -> tuple[str, ...]:
        """Ids of all the study's tables that cite it."""
        return tuple(dict.fromkeys(row.partition("/")[0] for row in self.rows))


_Cells = Mapping[tuple[Variant | None, int], tuple[PlannedTrial, PlannedEvaluation]]
"""What each variant is at each seed, before it is known who cites it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a plan holds. Of `trainings`, each is in one of the five states."""

    rows: int
    cells: int
    trainings: int
    evaluations: int
    complete: int
    running: int
    waiting: int
    failed: int
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The trials that fill the tables, in the order in which they should run.

    Attributes:
        tables: those planned, in reading order.
        trials: seed by seed, each in reading order, so that first tables have first numbers early.
    """

    study: Study
    setting: Setting
    seeds: tuple[int, ...]
    tables: tuple[Table, ...]
    trials: tuple[PlannedTrial, ...]
    _cells: _Cells = field(repr=False)

    @property
    def table_ids(self) -> tuple[str, ...]:
        """Ids of the planned tables."""
        return tuple(table.id for table in self.tables)

    def lookup(self, cell: Cell, seed: int) -> tuple[str, str]:
        """(trial key, evaluation key) of a cell of any table of the study that is trained.

        Raises:
            KeyError: another seed, or a cell that is reported alone.
        """
        trial, evaluation = self._cells[cell.variant, seed]
        return trial.key, evaluation.key

    def configs(self, cell: Cell, seed: int) -> tuple[Any, Any]:
        """(trial config, evaluation config) of such a cell; KeyError as `lookup`."""
        trial, evaluation = self._cells[cell.variant, seed]
        return trial.config, evaluation.config

    def row_keys(self, row: Row, seed: int) -> list[str]:
        """Keys of the different trials of a row's cells, in the order of the cells."""
        return _row_keys(self._cells, row, seed)

    def trial(self, trial_key: str) -> PlannedTrial:
        """The trial of that key; KeyError when the planned tables do not need it."""
        for trial in self.trials:
            if trial.key == trial_key:
                return trial
        raise KeyError(f"no planned trial has the key {trial_key!r}")

    def names(self) -> Iterator[tuple[str, str]]:
        """(name, trial key) of every row of the study that cites a planned trial, as `PlannedTrial.name`."""
        planned = {trial.key for trial in self.trials}
        for _, _, cell, seed, name in _citations(self.study, self.seeds, self._cells):
            if (trial_key := self.lookup(cell, seed)[0]) in planned:
                yield name, trial_key

    def alike(self) -> dict[str, tuple[Any, str]]:
        """Every trial of the study, by key: its config, and the key of its row at the first seed."""
        found: dict[str, tuple[Any, str]] = {}
        for (variant, _), (trial, _) in self._cells.items():
            first, _ = self._cells[variant, self.seeds[0]]
            found.setdefault(trial.key, (trial.config, first.key))
        return found

    def work(self) -> tuple[PlannedTrial, ...]:
        """What there is to run: WAITING trials. FAILED and CANCELLED ones wait for `Store.retry`."""
        return tuple(trial for trial in self.trials if trial.state == "WAITING")

    def counts(self) -> Counts:
        """How much there is, and in which state."""
        rows = [row for table in self.tables for row in table.trained]
        states = [trial.state for trial in self.trials]
        return Counts(
            rows=len(rows),
            cells=sum(len(row.cells) for row in rows),
            trainings=len(self.trials),
            evaluations=sum(len(trial.evaluations) for trial in self.trials),
            complete=states.count("COMPLETE"),
            running=states.count("RUNNING"),
            waiting=states.count("WAITING"),
            failed=states.count("FAILED"),
            cancelled=states.count("CANCELLED"),
        )


def make_plan(
    study: Study,
    setting: Setting,
    seeds: Sequence[int],
    table_ids: Sequence[str] | None = None,
    store: Store | None = None,
    resources: Sequence[ResourceOverride] = (),
) -> Plan:
    """Works out what the tables need, and what of it the store has.

    Args:
        study: the tables.
        setting: resolves their configs.
        seeds: one training of every config for each.
        table_ids: tables to fill, as `Study.table_id` reads them; all when None.
        store: nothing is done yet when None.
        resources: what a person wants instead of the setting's.

    Raises:
        UserError: no or repeated seeds, a table that does not exist, or resources for what does not.
        TypeError: a config that has no stable identity.
    """
    tables = _chosen(study, table_ids)
    cells = _resolve(study, setting, _checked_seeds(seeds))
    overrides = _resolved(study, seeds, cells, resources)
    trials = [
        _with_demand(trial, setting, overrides)
        for trial in _with_states(_cited(study, seeds, tables, cells), store)
    ]
    return Plan(study, setting, tuple(seeds), tables, tuple(trials), cells)


def register(plan: Plan, store: Store) -> None:
    """Makes the study, the trials and the evaluations of a plan known to the store."""
    study, setting = plan.study.name, plan.setting
    store.add_study(study, setting.profile, data_id(setting))
    for t in plan.trials:
        store.ensure_trial(
            t.key, t.name, t.config_json, t.seed, setting.profile, data_id(setting), study, t.tables
        )
        for evaluation in t.evaluations:
            store.ensure_evaluation(evaluation.key, t.key, evaluation.config_json)


# --- from cells to trials ----------------------------------------------------------------------------


def _checked_seeds(seeds: Sequence[int]) -> Sequence[int]:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"Seeds must be different numbers >= 0, at least one; got {list(seeds)}.")
    return seeds


def _chosen(study: Study, table_ids: Sequence[str] | None) -> tuple[Table, ...]:
    known = [table.id for table in study.tables]
    wanted = known if table_ids is None else [study.table_id(word) for word in table_ids]
    unknown = [table_id for table_id in wanted if table_id not in known]
    if unknown or not wanted:
        asked = ", ".join(unknown) or "none"
        raise UserError(f"{study.name} has the tables {', '.join(known)}; asked for {asked}.")
    return tuple(table for table in study.tables if table.id in wanted)


def _resolve(study: Study, setting: Setting, seeds: Sequence[int]) -> _Cells:
    """The config and key of every variant of the study at every seed."""
    cells: dict[tuple[Variant | None, int], tuple[PlannedTrial, PlannedEvaluation]] = {}
    for table, row, cell in study.cells():
        try:
            for seed in seeds:
                if cell.variant and (cell.variant, seed) not in cells:
                    cells[cell.variant, seed] = _resolve_one(setting, cell.variant, seed)
        except Exception as error:
            error.add_note(f"in {table.id}, row {row.label!r}")
            raise
    return cells


def _resolve_one(setting: Setting, variant: Variant, seed: int) -> tuple[PlannedTrial, PlannedEvaluation]:
    config, tested = setting.trial(variant.training, seed), setting.evaluation(variant.evaluation)
    text, tested_text = canonical_json(config), canonical_json(tested)
    trial = PlannedTrial(key_of(text), "", config, text, seed)
    return trial, PlannedEvaluation(evaluation_key(trial.key, tested_text), tested, tested_text)


def _cited(study: Study, seeds: Sequence[int], tables: Sequence[Table], cells: _Cells) -> list[PlannedTrial]:
    """The trials that `tables` need, seed by seed in reading order, with the evaluations that they need.

    Names and citations are of the whole study, so that they do not depend on which tables are asked for.
    """
    trials: dict[str, PlannedTrial] = {}
    for table, row, cell, seed, name in _citations(study, seeds, cells):
        trial, evaluation = cells[cell.variant, seed]
        trial = trials.get(trial.key, replace(trial, name=name))
        wanted = [replace(evaluation, name=name)] if table in tables else []
        trials[trial.key] = _with_citation(trial, _row_name(table, row), seed, wanted)
    return [trial for trial in trials.values() if trial.evaluations]


def _citations(
    study: Study, seeds: Sequence[int], cells: _Cells
) -> Iterator[tuple[Table, Row, Cell, int, str]]:
    """Every trained cell of the study at every seed, and its name; seed by seed in reading order."""
    for seed in seeds:
        for table in study.tables:
            for row in table.trained:
                several = len(_row_keys(cells, row, seed)) > 1
                for column, cell in zip(table.columns, row.cells, strict=True):
                    label = f"{row.label} {column}" if several else row.label
                    yield table, row, cell, seed, f"{table.id} {label}, seed {seed}"


def _with_citation(
    trial: PlannedTrial, row: str, seed: int, wanted: Iterable[PlannedEvaluation]
) -> PlannedTrial:
    if trial.seed != seed:
        raise ValueError(f"{trial.name}: the trial config does not hold the seed")
    rows = dict.fromkeys((*trial.rows, row))
    known = {evaluation.key for evaluation in trial.evaluations}
    new = tuple(evaluation for evaluation in wanted if evaluation.key not in known)
    return replace(trial, rows=tuple(rows), evaluations=trial.evaluations + new)


def _row_name(table: Table, row: Row) -> str:
    return f"{table.id}/{row.label}"


def _row_keys(cells: _Cells, row: Row, seed: int) -> list[str]:
    return list(dict.fromkeys(cells[cell.variant, seed][0].key for cell in row.cells if cell.variant))


def _resolved(
    study: Study, seeds: Sequence[int], cells: _Cells, overrides: Iterable[ResourceOverride]
) -> list[ResourceOverride]:
    """The overrides, each for "all", a table's id, "table1/ROW LABEL" or a trial's key."""
    tables = {table.id for table in study.tables}
    rows = {_row_name(table, row) for table in study.tables for row in table.rows}
    keys = {
        name: cells[cell.variant, seed][0].key for _, _, cell, seed, name in _citations(study, seeds, cells)
    }
    known = {EVERYWHERE, *tables, *rows, *(trial.key for trial, _ in cells.values())}

    def place(word: str) -> str:
        table, slash, label = word.partition("/")
        for name in (
            word,
            keys.get(word),
            f"{study.table_id(table)}{slash}{label}",
            word.replace(" ", "/", 1),
        ):
            if name in known:
                return name
        raise UserError(
            f"--resources {word}: it is none of {EVERYWHERE}, {', '.join(sorted(tables))}, a row as "
            f"{min(rows)!r}, or the name or the key of a trial of the study."
        )

    return [replace(override, where=place(override.where)) for override in overrides]


# --- what is done, and what it takes -----------------------------------------------------------------


def _with_states(trials: Sequence[PlannedTrial], store: Store | None) -> list[PlannedTrial]:
    stored = store.trial_states([trial.key for trial in trials]) if store else {}
    keys = [evaluation.key for trial in trials for evaluation in trial.evaluations]
    done = set(store.evaluations(keys)) if store else set()
    return [_with_state(trial, stored.get(trial.key), done) for trial in trials]


def _with_state(trial: PlannedTrial, stored: TrialRow | None, done: Set[str]) -> PlannedTrial:
    missing = tuple(evaluation for evaluation in trial.evaluations if evaluation.key not in done)
    state: TrialState = "WAITING" if missing else "COMPLETE"
    if missing and stored is not None and stored.state != "COMPLETE":
        state = stored.state
    return replace(
        trial,
        missing=missing,
        state=state,
        step=stored.step if stored else 0,
        total=stored.total if stored else 0,
        error=stored.error if stored and state == "FAILED" else None,
    )


def _with_demand(
    trial: PlannedTrial, setting: Setting, overrides: Sequence[ResourceOverride]
) -> PlannedTrial:
    """The trial with its resources and cost."""
    citations = {trial.key, *trial.tables, *trial.rows}
    resources = overridden(setting.resources(trial.config), citations, overrides)
    return replace(trial, resources=resources, cost=_cost_left(setting, trial))


def _cost_left(setting: Setting, trial: PlannedTrial) -> float:
    if not trial.missing:
        return 0.0
    training = setting.cost(trial.config, ())
    trained = trial.step / trial.total if trial.total else 0.0
    return setting.cost(trial.config, [e.config for e in trial.missing]) - trained * training
