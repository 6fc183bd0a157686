"""Changes of the desired state of trials: pause, cancel, retry, renew, prioritise.

They are written into the store, which every driver polls. Without a running driver, the next run finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ablation.errors import UserError
from ablation.plan import Plan, PlannedTrial, register
from ablation.provenance import staleness
from ablation.setting import data_id
from ablation.store import Store

SHORTEST = 4
"""Characters of a key that name a trial. Fewer would make a typing error name another trial."""
MAX_LISTED = 20
"""Trials that a message lists; it counts the rest."""
UNRECORDED = "kept no record of its code and packages"


# --- naming trials --------------------------------------------------------------------------------------


def chosen(plan: Plan, words: Sequence[str]) -> list[PlannedTrial]:
    """The trials that a person named, each once, in the order of the plan.

    Args:
        plan: the study's plan, whose tables and trials can be named.
        words: each names a table ("table3" or "3") or a trial (`trial_of`).

    Raises:
        UserError: a word names no trial, or several.
    """
    short = {table.removeprefix("table"): table for table in plan.table_ids}
    tables = short | {table: table for table in plan.table_ids}
    wanted: set[str] = set()
    for word in words:
        if word in tables:
            wanted |= {trial.key for trial in plan.trials if tables[word] in trial.tables}
        else:
            wanted.add(trial_of(plan, word).key)
    return [trial for trial in plan.trials if trial.key in wanted]


def trial_of(plan: Plan, word: str) -> PlannedTrial:
    """The trial that a word names: its key, the name of a row that cites it, or a prefix of either.

    An exact name goes before a prefix: "table3 FCOS" is that row, not "table3 FCOS + ATSS".

    Raises:
        UserError: no trial has that name, or several have; the message lists them.
    """
    word = word.strip()
    names = list(_citations(plan)) if word else []
    tests: tuple[Callable[[str, str], bool], ...] = (
        lambda name, key: word in (key, name),
        lambda name, key: name.rpartition(", seed ")[0] == word,
        lambda name, key: name.startswith(word) or (key.startswith(word) and len(word) >= SHORTEST),
    )
    for means in tests:
        found = {key: name for name, key in reversed(names) if means(name, key)}
        if len(found) == 1:
            return plan.trial(next(iter(found)))
        if found:
            raise UserError(
                f"{word!r} names several trials:\n{_candidates(found)}\nGive a key or a longer name."
            )
    near = get_close_matches(word, [*dict.fromkeys(name.rpartition(", seed ")[0] for name, _ in names)])
    listed = "\n".join(f"  {name}" for name in near)
    raise UserError(
        f"No trial is called {word!r}, and no table; the tables are {', '.join(plan.table_ids)}."
        + (f" The nearest names:\n{listed}" if near else ' A trial is named by a row, as "table3 FCOS".')
    )


def _citations(plan: Plan) -> Iterator[tuple[str, str]]:
    """(name, trial key) of every row that cites a planned trial, named as `PlannedTrial.name` is.

    Rows of tables that are not planned too: a trial is named by the first row of the study that cites it.
    """
    planned = {trial.key for trial in plan.trials}
    for table in plan.study.tables:
        for row in table.trained:
            for seed in plan.seeds:
                keys = [plan.lookup(cell, seed)[0] for cell in row.cells]
                for column, trial_key in zip(table.columns, keys, strict=True):
                    label = f"{row.label} {column}" if len(set(keys)) > 1 else row.label
                    if trial_key in planned:
                        yield f"{table.id} {label}, seed {seed}", trial_key


def _candidates(found: dict[str, str]) -> str:
    lines = [f"  {key}  {name}" for key, name in sorted(found.items(), key=lambda item: item[1])]
    rest = len(lines) - MAX_LISTED
    return "\n".join([*lines[:MAX_LISTED], *([f"  and {rest} more"] if rest > 0 else [])])


# --- changing their desired state -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewal:
    """A trial to be trained and evaluated from the start.

    Attributes:
        changes: the reasons, a clause each.
        attempts: number of attempts when the reasons were found.
        runs: whether an attempt is running; the trial is not renewed then.
    """

    trial: PlannedTrial
    changes: tuple[str, ...]
    attempts: int
    runs: bool


@dataclass(frozen=True, slots=True)
class Control:
    """Changes the desired state of a plan's trials.

    Attributes:
        store: opened for writing; a driver may use it at the same time.
    """

    plan: Plan
    store: Store

    @property
    def _setting(self) -> tuple[str, str, str]:
        return self.plan.study.name, self.plan.setting.profile, data_id(self.plan.setting)

    def set_paused(self, paused: bool) -> None:
        """Pauses or resumes the setting: no trial starts, and running ones stop with a checkpoint."""
        self.store.set_paused(*self._setting, paused)

    def cancel(self, trials: Collection[PlannedTrial]) -> list[PlannedTrial]:
        """Cancels trials until a retry; returns those that it changed."""
        return self._changed(trials, self.store.cancel(self._known(trials)))

    def retry(self, trials: Collection[PlannedTrial]) -> list[PlannedTrial]:
        """Sets failed and cancelled trials back to waiting; returns those that it changed."""
        return self._changed(trials, self.store.retry(self._known(trials)))

    def stale(self, words: Sequence[str]) -> list[Renewal]:
        """Trials with a result whose code, packages or data have changed since.

        Args:
            words: as for `chosen`; none for all trials but cancelled ones. A result without a record of its
                environment counts as changed only if `words` name its trial.
        """
        wanted = [trial for trial in self.plan.trials if trial.state != "CANCELLED"]
        trials = chosen(self.plan, words) if words else wanted
        states: dict[str, list[str]] = {trial.key: [] for trial in trials}
        for attempt in self.store.attempts(
            list(states)
        ):  # before the comparison: `renew` detects later attempts
            states[attempt.trial_key].append(attempt.state)
        changes: dict[str, dict[str, None]] = {}
        for finding in staleness.find(self.plan, self.store):
            if finding.kind == "stale" or (words and finding.kind == "unrecorded"):
                why = dict.fromkeys(finding.changes or (UNRECORDED,))
                changes[finding.trial_key] = changes.get(finding.trial_key, {}) | why
        return [
            Renewal(trial, tuple(changes[trial.key]), len(own := states[trial.key]), "RUNNING" in own)
            for trial in trials
            if trial.key in changes
        ]

    def renew(self, renewals: Collection[Renewal]) -> list[PlannedTrial]:
        """Sets trials back to waiting, from the start; returns those without a new attempt since `stale`."""
        seen = {renewal.trial.key: renewal.attempts for renewal in renewals}
        return self._changed([renewal.trial for renewal in renewals], self.store.renew(seen))

    def prioritise(self, trials: Collection[PlannedTrial], by: int) -> dict[str, int]:
        """Raises the priority of trials by `by`; returns the new priorities by key."""
        desired = self.store.desired_states(*self._setting, self._known(trials)).trials
        levels = {key: trial.priority + by for key, trial in desired.items()}
        for level in set(levels.values()):
            self.store.prioritise([key for key in levels if levels[key] == level], level)
        return levels

    def _known(self, trials: Collection[PlannedTrial]) -> list[str]:
        """Keys of the trials, which are added to the store where no run has done so yet."""
        register(replace(self.plan, trials=tuple(trials)), self.store)
        return [trial.key for trial in trials]

    @staticmethod
    def _changed(trials: Collection[PlannedTrial], keys: Collection[str]) -> list[PlannedTrial]:
        changed = set(keys)
        return [trial for trial in trials if trial.key in changed]
