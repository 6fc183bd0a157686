"""What a person wants of a study while it runs: written into the store, where every driver looks.

None of it waits for a driver or holds one up, and none needs one: a wish stays until the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from ablation.errors import UserError
from ablation.plan import Plan, PlannedTrial, register
from ablation.provenance import staleness
from ablation.store import Store
from ablation.study import data_id

SHORTEST = 4
"""Characters of a key that can stand for it: with fewer, a slip of the hand would name another trial."""
MAX_LISTED = 20
"""Trials that a message names before it only counts the rest."""
UNRECORDED = "kept no record of the code and packages that it ran with"


# --- which trials ----------------------------------------------------------------------------------------


def chosen(plan: Plan, words: Sequence[str]) -> list[PlannedTrial]:
    """The trials that a person named, each once, in the order of the plan.

    Args:
        plan: of the study, whose tables and seeds can be named.
        words: each a table ("table3" or "3"), or a trial (`trial_of`).

    Raises:
        UserError: a word that names no trial, or several trials.
    """
    tables = {name: table for table in plan.table_ids for name in (table, table.removeprefix("table"))}
    wanted: set[str] = set()
    for word in words:
        if word in tables:
            wanted |= {trial.key for trial in plan.trials if tables[word] in trial.tables}
        else:
            wanted.add(trial_of(plan, word).key)
    return [trial for trial in plan.trials if trial.key in wanted]


def trial_of(plan: Plan, word: str) -> PlannedTrial:
    """The one trial that a word means: its key, the name of a row that cites it, or the start of either.

    "table3 FCOS" is the row of that name, though "table3 FCOS + ATSS" starts so too.

    Raises:
        UserError: there is none, or there are several; they are listed.
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
            raise UserError(f"{word!r} can be any of\n{_candidates(found)}\nGive a key, or more of a name.")
    raise UserError(
        f"No trial or table is called {word!r}, and none starts so. `ablation status` lists them."
    )


def _citations(plan: Plan) -> Iterator[tuple[str, str]]:
    """(name, trial key) of every planned row at every seed, as `PlannedTrial.name` would have it."""
    for table in plan.tables:
        for row in table.rows:
            for seed in plan.seeds:
                keys = [plan.lookup(cell, seed)[0] for cell in row.cells]
                for column, trial_key in zip(table.columns, keys, strict=True):
                    label = f"{row.label} {column}" if len(set(keys)) > 1 else row.label
                    yield f"{table.id} {label}, seed {seed}", trial_key


def _candidates(found: dict[str, str]) -> str:
    lines = [f"  {key}  {name}" for key, name in sorted(found.items(), key=lambda item: item[1])]
    rest = len(lines) - MAX_LISTED
    return "\n".join([*lines[:MAX_LISTED], *([f"  and {rest} more"] if rest > 0 else [])])


# --- what is wanted of them ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewal:
    """A trial that is to be done anew.

    Attributes:
        changes: why, a clause each.
        attempts: how many there were when that was found.
        runs: an attempt has not ended, so that it must be left alone.
    """

    trial: PlannedTrial
    changes: tuple[str, ...]
    attempts: int
    runs: bool


@dataclass(frozen=True, slots=True)
class Control:
    """DesiredStates about one plan.

    Args:
        store: opened for writing; a driver may be at work on it.
    """

    plan: Plan
    store: Store

    @property
    def _setting(self) -> tuple[str, str, str]:
        return self.plan.study.name, self.plan.setting.profile, data_id(self.plan.setting)

    def set_paused(self, paused: bool) -> None:
        """No trial of the setting starts while it is paused; what runs stops at its next checkpoint."""
        self.store.set_paused(*self._setting, paused)

    def cancel(self, trials: Collection[PlannedTrial]) -> list[PlannedTrial]:
        """They are not wanted, until a retry; returns those that were."""
        return self._changed(trials, self.store.cancel(self._known(trials)))

    def retry(self, trials: Collection[PlannedTrial]) -> list[PlannedTrial]:
        """Those that failed or were cancelled wait again; returns them."""
        return self._changed(trials, self.store.retry(self._known(trials)))

    def stale(self, words: Sequence[str]) -> list[Renewal]:
        """Trials to be done anew because a result of theirs rests on what has changed since.

        Args:
            words: as `chosen` takes them, or none for all that nobody has cancelled. A result that kept no
                record of what it rests on, so that nobody can tell, counts only where its trial is named.
        """
        wanted = [trial for trial in self.plan.trials if trial.state != "CANCELLED"]
        trials = chosen(self.plan, words) if words else wanted
        states: dict[str, list[str]] = {trial.key: [] for trial in trials}
        for attempt in self.store.attempts(list(states)):  # before the judgement: `renew` sees any made since
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
        """They are trained and tested anew, from nothing; returns those at which nobody has begun since."""
        seen = {renewal.trial.key: renewal.attempts for renewal in renewals}
        return self._changed([renewal.trial for renewal in renewals], self.store.renew(seen))

    def prioritise(self, trials: Collection[PlannedTrial], by: int) -> dict[str, int]:
        """They start before those of lower priority; returns the new priority of each, by key."""
        desired = self.store.desired_states(*self._setting, self._known(trials)).trials
        levels = {key: wish.priority + by for key, wish in desired.items()}
        for level in set(levels.values()):
            self.store.prioritise([key for key in levels if levels[key] == level], level)
        return levels

    def _known(self, trials: Collection[PlannedTrial]) -> list[str]:
        """Their keys; a wish about a trial that no run has asked for yet is kept too."""
        register(replace(self.plan, trials=tuple(trials)), self.store)
        return [trial.key for trial in trials]

    @staticmethod
    def _changed(trials: Collection[PlannedTrial], keys: Collection[str]) -> list[PlannedTrial]:
        changed = set(keys)
        return [trial for trial in trials if trial.key in changed]
