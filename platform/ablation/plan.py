"""What a study needs: the smallest set of trainings and evaluations that fills its tables.

Nothing here runs or writes, but `register`. A plan is made anew from the study and the store by every
command, so an edited study, more seeds and failures run again are all the same case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from ablation.errors import UserError, last_line
from ablation.fingerprint import canonical_json, evaluation_key, key
from ablation.resources import EVERYWHERE, ResourceOverride, Resources, overridden
from ablation.store import Store, TrialRow
from ablation.store.schema import TrialState
from ablation.study import Cell, Row, Setting, Study, Table, Variant, data_id


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
class _Resolved:
    """What a variant at a seed is under a setting."""

    trial_key: str
    config: Any
    config_json: str
    evaluation: PlannedEvaluation


_AllResolved = Mapping[tuple[Variant, int], _Resolved]


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One training, and all that the planned tables want of it.

    Attributes:
        name: of the first row of the study that cites it: "table3 RetinaNet (#A=1) + ATSS, seed 0".
        tables: ids of all the study's tables that cite it.
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
    tables: tuple[str, ...]
    evaluations: tuple[PlannedEvaluation, ...]
    missing: tuple[PlannedEvaluation, ...]
    state: TrialState
    step: int = 0
    total: int = 0
    error: str | None = None
    resources: Resources | None = None
    cost: float = 0.0


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
    _resolved: _AllResolved = field(repr=False)

    @property
    def table_ids(self) -> tuple[str, ...]:
        """Ids of the planned tables."""
        return tuple(table.id for table in self.tables)

    def lookup(self, cell: Cell, seed: int) -> tuple[str, str]:
        """(trial key, evaluation key) of a cell of any table of the study; KeyError for another seed."""
        resolved = self._resolved[cell.variant, seed]
        return resolved.trial_key, resolved.evaluation.key

    def trial(self, trial_key: str) -> PlannedTrial:
        """The trial of that key; KeyError when the planned tables do not need it."""
        for trial in self.trials:
            if trial.key == trial_key:
                return trial
        raise KeyError(f"no planned trial has the key {trial_key!r}")

    def alike(self) -> dict[str, tuple[Any, str]]:
        """Every trial of the study, by key: its config, and the key of its row at the first seed."""
        found: dict[str, tuple[Any, str]] = {}
        for (variant, _), resolved in self._resolved.items():
            first = self._resolved[variant, self.seeds[0]].trial_key
            found.setdefault(resolved.trial_key, (resolved.config, first))
        return found

    def work(self) -> tuple[PlannedTrial, ...]:
        """What there is to run: WAITING trials. FAILED and CANCELLED ones wait for `Store.retry`."""
        return tuple(trial for trial in self.trials if trial.state == "WAITING")

    def counts(self) -> Counts:
        """How much there is, and in which state."""
        rows = [row for table in self.tables for row in table.rows]
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

    def describe(self, *more: str) -> str:
        """The plan as plain text: how much, table by table, what is shared, extra and failed.

        Args:
            more: paragraphs that others have to add; empty ones are left out.
        """
        return "\n\n".join(["\n".join(_described(self)), *(text for text in more if text)])


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
        table_ids: tables to fill; all when None.
        store: nothing is done yet when None.
        resources: what a person wants instead of the setting's.

    Raises:
        UserError: no or repeated seeds, a table that does not exist, or resources for what does not.
        TypeError: a config that has no stable identity.
    """
    tables = _chosen(study, table_ids)
    resolved = _resolve_all(study, setting, _checked_seeds(seeds))
    _check_places(study, resolved, resources)
    drafts = _drafts(study, seeds, tables, resolved)
    trials = tuple(
        replace(
            trial,
            resources=overridden(setting.resources(trial.config), drafts[trial.key].places, resources),
            cost=_cost_left(setting, trial),
        )
        for trial in _with_states(drafts, store)
    )
    return Plan(study, setting, tuple(seeds), tables, trials, resolved)


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


@dataclass(slots=True)
class _Draft:
    """A trial while its citations are being collected."""

    name: str
    seed: int
    resolved: _Resolved
    tables: dict[str, None] = field(default_factory=dict)
    rows: dict[str, None] = field(default_factory=dict)
    evaluations: dict[str, PlannedEvaluation] = field(default_factory=dict)

    @property
    def places(self) -> Set[str]:
        """All that names it where resources are changed."""
        return {self.resolved.trial_key, *self.tables, *self.rows}


def _checked_seeds(seeds: Sequence[int]) -> Sequence[int]:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"Seeds must be different numbers >= 0, at least one; got {list(seeds)}.")
    return seeds


def _chosen(study: Study, table_ids: Sequence[str] | None) -> tuple[Table, ...]:
    known = [table.id for table in study.tables]
    wanted = known if table_ids is None else list(table_ids)
    unknown = [table_id for table_id in wanted if table_id not in known]
    if unknown or not wanted:
        asked = ", ".join(unknown) or "none"
        raise UserError(f"{study.name} has the tables {', '.join(known)}; asked for {asked}.")
    return tuple(table for table in study.tables if table.id in wanted)


def _resolve_all(study: Study, setting: Setting, seeds: Sequence[int]) -> _AllResolved:
    resolved: dict[tuple[Variant, int], _Resolved] = {}
    for table, row, cell in study.cells():
        try:
            for seed in seeds:
                if (cell.variant, seed) not in resolved:
                    resolved[cell.variant, seed] = _resolve(setting, cell.variant, seed)
        except Exception as error:
            error.add_note(f"in {table.id}, row {row.label!r}")
            raise
    return resolved


def _resolve(setting: Setting, variant: Variant, seed: int) -> _Resolved:
    config = setting.trial(variant.training, seed)
    tested = setting.evaluation(variant.evaluation)
    trial_key = key(config)
    evaluation = PlannedEvaluation(evaluation_key(trial_key, tested), tested, canonical_json(tested))
    return _Resolved(trial_key, config, canonical_json(config), evaluation)


def _drafts(
    study: Study, seeds: Sequence[int], tables: Sequence[Table], resolved: _AllResolved
) -> dict[str, _Draft]:
    """The trials that `tables` need, by key, seed by seed in reading order.

    Names and citations are of the whole study, so that they do not depend on which tables are asked.
    """
    drafts: dict[str, _Draft] = {}
    for seed in seeds:
        for table in study.tables:
            for row in table.rows:
                several = len(_trial_keys(row, seed, resolved)) > 1
                for column, cell in zip(table.columns, row.cells, strict=True):
                    found = resolved[cell.variant, seed]
                    label = f"{row.label} {column}" if several else row.label
                    name = f"{table.id} {label}, seed {seed}"
                    draft = drafts.setdefault(found.trial_key, _Draft(name, seed, found))
                    if draft.seed != seed:
                        raise ValueError(f"{draft.name}: the trial config does not hold the seed")
                    draft.tables[table.id] = draft.rows[_row_place(table, row)] = None
                    if table in tables:
                        named = replace(found.evaluation, name=name)
                        draft.evaluations.setdefault(named.key, named)
    return {trial_key: draft for trial_key, draft in drafts.items() if draft.evaluations}


def _row_place(table: Table, row: Row) -> str:
    return f"{table.id}/{row.label}"


def _check_places(study: Study, resolved: _AllResolved, overrides: Iterable[ResourceOverride]) -> None:
    tables = {table.id for table in study.tables}
    rows = {_row_place(table, row) for table in study.tables for row in table.rows}
    known = {EVERYWHERE, *tables, *rows, *(found.trial_key for found in resolved.values())}
    for override in overrides:
        if override.where not in known:
            raise UserError(
                f"--resources {override.where}: it is none of {EVERYWHERE}, {', '.join(sorted(tables))}, "
                "a row as table1/ROW LABEL, or the key of a trial; `ablation status` lists them."
            )


def _trial_keys(row: Row, seed: int, resolved: _AllResolved) -> list[str]:
    """Keys of the different trials of a row's cells, in the order of the cells."""
    return list(dict.fromkeys(resolved[cell.variant, seed].trial_key for cell in row.cells))


def _with_states(drafts: Mapping[str, _Draft], store: Store | None) -> tuple[PlannedTrial, ...]:
    if store is None:
        return tuple(_planned(draft, None, set()) for draft in drafts.values())
    stored = store.trial_states(list(drafts))
    done = set(store.evaluations([k for draft in drafts.values() for k in draft.evaluations]))
    return tuple(_planned(draft, stored.get(trial_key), done) for trial_key, draft in drafts.items())


def _planned(draft: _Draft, stored: TrialRow | None, done: Set[str]) -> PlannedTrial:
    missing = tuple(e for evaluation_id, e in draft.evaluations.items() if evaluation_id not in done)
    state: TrialState = "WAITING" if missing else "COMPLETE"
    if missing and stored is not None and stored.state != "COMPLETE":
        state = stored.state
    return PlannedTrial(
        key=draft.resolved.trial_key,
        name=draft.name,
        config=draft.resolved.config,
        config_json=draft.resolved.config_json,
        seed=draft.seed,
        tables=tuple(draft.tables),
        evaluations=tuple(draft.evaluations.values()),
        missing=missing,
        state=state,
        step=stored.step if stored else 0,
        total=stored.total if stored else 0,
        error=stored.error if stored and state == "FAILED" else None,
    )


def _cost_left(setting: Setting, trial: PlannedTrial) -> float:
    if not trial.missing:
        return 0.0
    training = setting.cost(trial.config, ())
    trained = trial.step / trial.total if trial.total else 0.0
    return setting.cost(trial.config, [e.config for e in trial.missing]) - trained * training


# --- as text -----------------------------------------------------------------------------------------


def _described(plan: Plan) -> Iterator[str]:
    c, setting, num_seeds = plan.counts(), plan.setting, len(plan.seeds)
    seeds = ("seed " if num_seeds == 1 else "seeds ") + ", ".join(str(seed) for seed in plan.seeds)
    different = f" ({c.trainings // num_seeds} different x {num_seeds} seeds)" if num_seeds > 1 else ""
    size = [counted(len(plan.tables), "table"), counted(c.rows, "row"), counted(c.cells, "cell")]
    yield f"{plan.study.title}: {', '.join(size)}"
    yield f"Profile {setting.profile}, data {setting.data_name}, {seeds}. {setting.caption}".rstrip()
    yield (
        f"{counted(c.trainings, 'training')}{different}, {counted(c.evaluations, 'evaluation')}: "
        f"{c.complete} complete, "
        f"{c.running} running, {c.waiting} waiting, {c.failed} failed"
        + (f", {c.cancelled} cancelled" if c.cancelled else "")
    )
    yield ""
    yield from _table_lines(plan)
    yield from _section("Shared, trained once:", _shared(plan))
    extra = [f"{t.name}: {len(t.evaluations)} evaluations" for t in plan.trials if len(t.evaluations) > 1]
    yield from _section("Tested in more than one way:", extra)
    failed = [f"{t.key} {t.name}: {last_line(t.error)}" for t in plan.trials if t.state == "FAILED"]
    yield from _section("Failed, and left alone until a retry is asked for:", failed)
    cancelled = [f"{t.key} {t.name}" for t in plan.trials if t.state == "CANCELLED"]
    yield from _section("Cancelled, until a retry is asked for:", cancelled)


def counted(number: int, what: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _table_lines(plan: Plan) -> Iterator[str]:
    """One line a table; `new` counts the trainings that no table above it has."""
    some_cancelled = plan.counts().cancelled > 0
    yield "table         rows  trainings   new  complete  running  waiting  failed" + (
        "  cancelled" if some_cancelled else ""
    )
    seen: set[str] = set()
    states = {trial.key: trial.state for trial in plan.trials}
    for table in plan.tables:
        cited = {
            k for row in table.rows for seed in plan.seeds for k in _trial_keys(row, seed, plan._resolved)
        }
        own = [states[trial_key] for trial_key in cited]
        yield (
            f"{table.id:<12}{len(table.rows):>6}{len(cited):>11}{len(cited - seen):>6}"
            f"{own.count('COMPLETE'):>10}{own.count('RUNNING'):>9}"
            f"{own.count('WAITING'):>9}{own.count('FAILED'):>8}"
            + (f"{own.count('CANCELLED'):>11}" if some_cancelled else "")
        )
        seen |= cited


def _shared(plan: Plan) -> Iterator[str]:
    """Rows whose training an earlier row already has."""
    first: dict[str, str] = {}
    for table in plan.tables:
        for row in table.rows:
            here = f"{table.id} {row.label}"
            for trial_key in _trial_keys(row, plan.seeds[0], plan._resolved):
                earlier = first.setdefault(trial_key, here)
                if earlier != here:
                    yield f"{here} = {earlier}"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    shown = [f"  {line}" for line in lines]
    if shown:
        yield from ("", title, *shown)
