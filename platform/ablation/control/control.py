"""Changes of the desired state of trials: pause, cancel, retry, renew, prioritise.

They are written into the store, which every driver polls. Without a running driver, the next run finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
        plan: the study's plan, whose trials can be named.
        words: each names a table ("table3" or "3"), a row at all seeds, or a trial (`trial_of`).

    Raises:
        UserError: a word names no trial, or is the start of several names.
    """
    wanted: set[str] = set()
    for word in words:
        found, exact = _named(plan, word)
        wanted |= found.keys() if exact else {_only(found, word)}
    return [trial for trial in plan.trials if trial.key in wanted]


def trial_of(plan: Plan, word: str) -> PlannedTrial:
    """The trial that a word names: by its key, a row or table that cites it, or the start of key or name.

    A row is "table3 FCOS, seed 0", without the seed where there is one, or its label alone. An exact name
    goes before the start of one: "table3 FCOS" is that row, not "table3 FCOS + ATSS".

    Raises:
        UserError: no trial has that name, or several have; the message lists them.
    """
    return plan.trial(_only(_named(plan, word)[0], word))


def _named(plan: Plan, word: str) -> tuple[dict[str, str], bool]:
    """Trials that a word means: name by key, and whether the word is all of a name; UserError for none."""
    word = word.strip()
    names = list(plan.names()) if word else []
    table = plan.study.table_id(word)

    def row(name: str) -> str:
        return name.rpartition(", seed ")[0]

    tests: tuple[Callable[[str, str], bool], ...] = (
        lambda name, key: word in (key, name),
        lambda name, key: name.partition(" ")[0] == table,
        lambda name, key: row(name) == word.replace("/", " ", 1) or row(name) == word,
        lambda name, key: word in (name.partition(" ")[2], row(name).partition(" ")[2]),
        lambda name, key: name.startswith(word) or (key.startswith(word) and len(word) >= SHORTEST),
    )
    for means in tests:
        if found := {key: name for name, key in reversed(names) if means(name, key)}:
            return found, means is not tests[-1]
    raise UserError(_unknown(plan, word))


def _only(found: dict[str, str], word: str) -> str:
    if len(found) > 1:
        raise UserError(f"{word!r} names several trials:\n{_candidates(found)}\nGive a key or a longer name.")
    return next(iter(found))


def _unknown(plan: Plan, word: str) -> str:
    names = [name for name, _ in plan.names()]
    near = get_close_matches(word, dict.fromkeys(name.rpartition(", seed ")[0] for name in names))
    listed = "\n".join(f"  {name}" for name in near)
    seeds = ", ".join(map(str, plan.seeds))
    return (
        f"No trial is called {word!r}, and no table; the tables are {', '.join(plan.table_ids)}, "
        f"at seed {seeds}."
        + (f" The nearest names:\n{listed}" if near else f" A trial is named by a row, as {names[0]!r}.")
    )


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
