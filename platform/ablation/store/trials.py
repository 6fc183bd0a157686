"""What people want of trials: which exist, which run first, which are cancelled or renewed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Update, case, literal, null, select

from ablation.store import schema, statements
from ablation.store.reading import Reader
from ablation.store.schema import TrialState
from ablation.store.transactions import Transaction, in_parts, write


class Trials(Reader):
    """The part of the store that says what is wanted."""

    @write
    def add_study(self, t: Transaction, study: str, profile: str, data_name: str) -> None:
        """Adds a study at a profile on a data set; needed once before its trials."""
        values = {"name": study, "profile": profile, "data_name": data_name, "added": t.now}
        t.insert_new(schema.studies, values)

    @write
    def ensure_trial(
        self,
        t: Transaction,
        trial_key: str,
        name: str,
        config_json: str,
        seed: int,
        profile: str,
        data_name: str,
        study: str,
        tables: Sequence[str] = (),
    ) -> None:
        """Adds a trial as WAITING. One that exists keeps its config and state and takes the other values.

        They change when data or a profile was renamed, or when other tables cite the trial.

        Raises:
            ValueError: the key exists with another config.
        """
        values = {
            "key": trial_key,
            "name": name,
            "tables": list(tables),
            "config": config_json,
            "seed": seed,
            "profile": profile,
            "data_name": data_name,
            "study": study,
            "state": "WAITING",
            "added": t.now,
        }
        r = schema.trials
        if t.insert_new(r, values):
            return
        if t.value(select(r.c.config).where(r.c.key == trial_key)) != config_json:
            raise ValueError(f"trial {trial_key} is stored with another config than {config_json}")
        named = {name: values[name] for name in ("name", "tables", "profile", "data_name", "study")}
        t.execute(r.update().where(r.c.key == trial_key).values(named))

    @write
    def ensure_evaluation(
        self, t: Transaction, evaluation_key: str, trial_key: str, config_json: str
    ) -> None:
        """Adds an evaluation; a COMPLETE trial that lacks its result becomes WAITING."""
        r, e = schema.trials, schema.evaluations
        lock_trials(t, [trial_key])
        t.insert_new(e, {"key": evaluation_key, "trial_key": trial_key, "config": config_json})
        lacking = select(e.c.key).where(e.c.key == evaluation_key, e.c.attempt_id.is_(None))
        complete = (r.c.key == trial_key) & (r.c.state == "COMPLETE")
        t.execute(r.update().where(complete, lacking.exists()).values(state="WAITING"))

    @write
    def set_paused(self, t: Transaction, study: str, profile: str, data_name: str, paused: bool) -> None:
        """Pauses or resumes a study, which is added if it is unknown."""
        s = schema.studies
        t.insert_new(s, {"name": study, "profile": profile, "data_name": data_name, "added": t.now})
        own = (s.c.name == study, s.c.profile == profile, s.c.data_name == data_name)
        t.execute(s.update().where(*own).values(paused=paused))

    @write
    def cancel(self, t: Transaction, trial_keys: Collection[str]) -> list[str]:
        """Cancels the trials that are not COMPLETE; returns the keys that it changed."""
        wanted = schema.trials.c.state.in_(("WAITING", "RUNNING", "FAILED"))
        return change_trials(t, trial_keys, wanted, state="CANCELLED", error=None)

    @write
    def retry(self, t: Transaction, trial_keys: Collection[str]) -> list[str]:
        """Sets the trials that are FAILED or CANCELLED back to WAITING; returns the keys that it changed.

        A cancelled trial whose attempt has not ended becomes RUNNING: no other driver may start it yet.
        """
        a, r = schema.attempts, schema.trials
        lock_trials(t, trial_keys)
        going = select(a.c.id).where(a.c.trial_key == r.c.key, a.c.state == "RUNNING").exists()
        state = case((going, "RUNNING"), else_="WAITING")
        stopped = r.c.state.in_(("FAILED", "CANCELLED"))
        return change_trials(t, trial_keys, stopped, state=state, error=None)

    @write
    def renew(self, t: Transaction, seen: Mapping[str, int]) -> list[str]:
        """Sets trials back to WAITING, to be trained and evaluated from the start; returns the keys changed.

        Their results become earlier ones (`earlier_results`); attempts, metrics and files stay. A trial with
        a running attempt, or with another number of attempts than `seen`, is not changed.

        Args:
            seen: number of attempts when the user decided, by trial key.
        """
        lock_trials(t, seen)
        renewed = [key for key, number in seen.items() if _is_at_rest(t, key, number)]
        for key in renewed:
            _move_results(t, key)
            anew = {"step": 0, "total": 0, "first_attempt": seen[key] + 1}
            change_trials(t, [key], state="WAITING", error=None, **anew)
        return renewed

    @write
    def prioritise(self, t: Transaction, trial_keys: Collection[str], priority: int) -> list[str]:
        """Sets the priority of trials: higher ones start first. Returns the keys of those that exist."""
        return change_trials(t, trial_keys, priority=priority)

    @write
    def set_micro_batch(self, t: Transaction, trial_key: str, micro_batch: int | None) -> None:
        """Sets how many samples at a time the trial's next attempts process; None for all at once."""
        change_trials(t, [trial_key], micro_batch=micro_batch)


def change_trials(
    t: Transaction, trial_keys: Collection[str], *where: ColumnElement[bool], **values: Any
) -> list[str]:
    """Updates the trials that fulfil all conditions; returns their keys."""
    r = schema.trials
    change: Update = r.update().where(*where).values(**values)
    changes = [change.where(r.c.key.in_(keys)).returning(r.c.key) for keys in in_parts(trial_keys)]
    return [key for change in changes for key in t.scalars(change)]


def free_trials(
    t: Transaction, trial_keys: Collection[str], state: TrialState, error: str | None = None
) -> None:
    """Sets the state of trials whose attempt has ended; CANCELLED ones stay so.

    CANCELLED rows are written too, which locks them: `retry` sees the attempt either running or ended. A
    trial that was to be WAITING, but has all its results, becomes COMPLETE: its driver was lost between the
    last result and the end.
    """
    r, e = schema.trials, schema.evaluations
    kept = r.c.state == "CANCELLED"
    asked = select(e.c.key).where(e.c.trial_key == r.c.key)
    done = asked.exists() & ~asked.where(e.c.attempt_id.is_(None)).exists() & (literal(state) == "WAITING")
    new = literal(error, r.c.error.type)
    changed = case((kept, r.c.state), (done, "COMPLETE"), else_=state)
    change_trials(t, trial_keys, state=changed, error=case((kept, r.c.error), else_=new))


def lock_trials(t: Transaction, trial_keys: Collection[str]) -> None:
    """Locks the trials against other transactions until this one ends."""
    for keys in in_parts(trial_keys):
        t.execute(statements.LOCK, {"keys": keys})


def _is_at_rest(t: Transaction, trial_key: str, number: int) -> bool:
    """Whether a trial has exactly `number` attempts, and all have ended."""
    a = schema.attempts
    states = t.scalars(select(a.c.state).where(a.c.trial_key == trial_key))
    return len(states) == number and "RUNNING" not in states


def _move_results(t: Transaction, trial_key: str) -> None:
    """Moves a trial's results to the earlier ones; its evaluations have none afterwards."""
    e, before = schema.evaluations, schema.earlier_results
    done = (e.c.trial_key == trial_key, e.c.attempt_id.is_not(None))
    results = select(e.c.key, e.c.attempt_id, e.c.metrics, e.c.time).where(*done)
    t.execute(before.insert().from_select(list(before.c), results))
    t.execute(e.update().where(*done).values(attempt_id=None, metrics=null(), time=None))
