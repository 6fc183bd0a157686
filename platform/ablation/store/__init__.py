"""The truth about every trial, in SQLite or PostgreSQL.

store       all that is written
reading     all that is read
records     the rows that both give
database    opening, transactions, waiting for a server that is away
statements  what drivers ask most often
schema      the tables; migrations brings those of older versions up to date
"""

from ablation.store.records import (
    CHECKPOINT,
    DETECTIONS,
    SCORES,
    SILENCE,
    SUBMISSION,
    ArtifactRow,
    AttemptRow,
    DesiredState,
    DesiredStates,
    EvaluationRow,
    InvocationRow,
    MetricRow,
    PaceRow,
    Start,
    TrialRow,
)
from ablation.store.store import AttemptOverError, Store

__all__ = [
    "CHECKPOINT",
    "DETECTIONS",
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
    "MetricRow",
    "PaceRow",
    "Start",
    "Store",
    "TrialRow",
]
