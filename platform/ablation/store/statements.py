"""The most frequent statements of drivers, with parameters.

Each is built once, because building a statement costs more than running it. `one` is the row's key or id; an
update sets the columns that it gets values for.
"""

from __future__ import annotations

from sqlalchemy import bindparam, func, select

from ablation.store.schema import attempts as a
from ablation.store.schema import evaluations as e
from ablation.store.schema import metrics as m
from ablation.store.schema import trials as r

CLAIM = r.update().where(r.c.key == bindparam("one"), r.c.state == "WAITING").returning(r.c.key)
"""Updates a WAITING trial; returns its key."""

TRIAL = r.update().where(r.c.key == bindparam("one"))
"""Updates a trial."""

RUNNING = a.update().where(a.c.id == bindparam("one"), a.c.state == "RUNNING").returning(a.c.trial_key)
"""Updates a RUNNING attempt; returns its trial's key."""

PROGRESS = (
    a.update()
    .where(a.c.id == bindparam("one"))
    .values(
        first_step=func.coalesce(a.c.first_step, bindparam("first", type_=a.c.first_step.type)),
        first_progress=func.coalesce(a.c.first_progress, bindparam("now", type_=a.c.first_progress.type)),
        last_metric=func.coalesce(
            select(func.max(m.c.id)).where(m.c.attempt_id == bindparam("one")).scalar_subquery(), 0
        ),
    )
)
"""Updates an attempt's progress: `first` and `now` are the step and time if it is its first report."""

RESULT = e.update().where(
    e.c.key == bindparam("one"), e.c.trial_key == bindparam("of"), e.c.attempt_id.is_(None)
)
"""Updates an evaluation of the trial `of` that has no result."""

ATTEMPTS = select(func.count()).where(a.c.trial_key == bindparam("one"))
"""Number of attempts at a trial."""

LACKING = select(func.count()).where(e.c.trial_key == bindparam("one"), e.c.attempt_id.is_(None))
"""Number of evaluations of a trial without a result."""

LOCK = (
    select(r.c.key).where(r.c.key.in_(bindparam("keys", expanding=True))).order_by(r.c.key).with_for_update()
)
"""Locks trials, always in the same order."""

START = (
    select(r.c.first_attempt, e.c.key)
    .join_from(r, e, (e.c.trial_key == r.c.key) & e.c.attempt_id.is_not(None), isouter=True)
    .where(r.c.key == bindparam("one"))
)
"""A trial's `first_attempt`, with the key of each evaluation that has a result (or NULL)."""
