"""The result store: the state of every trial, in SQLite or PostgreSQL.

store         `Store`, the one entry: opening, and the parts below
reading       what is read
trials        what people want of trials
attempts      what drivers write of attempts
artifacts     files, and numbers of evaluation servers
mirroring     what the MLflow mirror has
records       the rows that are returned
database      opening, upgrades, transactions that survive a lost server
transactions  one transaction; the decorators `read`, `write`, `write_async`
engines       connections to SQLite and PostgreSQL
statements    the most frequent statements
schema        the tables; migrations upgrades those of older versions
"""

from ablation.store.attempts import AttemptOverError
from ablation.store.records import (
    CHECKPOINT,
    SCORES,
    SILENCE,
    SUBMISSION,
    ArtifactRow,
    AttemptRow,
    DesiredState,
    DesiredStates,
    EvaluationRow,
    InvocationRow,
    JointRow,
    MetricRow,
    PaceRow,
    Start,
    TrialRow,
)
from ablation.store.store import Store

__all__ = [
    "CHECKPOINT",
    "SCORES",
    "SILENCE",
    "SUBMISSION",
    "ArtifactRow",
    "AttemptOverError",
    "AttemptRow",
    "DesiredState",
    "DesiredStates",
    "EvaluationRow",
    "InvocationRow",
    "JointRow",
    "MetricRow",
    "PaceRow",
    "Start",
    "Store",
    "TrialRow",
]
