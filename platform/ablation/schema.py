"""The store's tables. SQL that SQLite and PostgreSQL both understand.

    studies 1-n trials 1-n attempts 1-n metrics, notices
                trials 1-n evaluations (at most one attempt each)
                trials 1-n artifacts (each of one attempt, some of one evaluation)
    invocations 1-n attempts

Times are UTC. Texts of diffs are kept once, under their hash. `config` columns are text, not JSON:
they are what a key hashes, byte for byte.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

SCHEMA_VERSION = 1
"""Raised whenever a table below changes."""

TrialState = Literal["WAITING", "RUNNING", "COMPLETE", "FAILED"]
AttemptState = Literal["RUNNING", "COMPLETE", "FAILED", "INTERRUPTED", "LOST"]


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime, stored without its zone (SQLite keeps none)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC, zone dropped."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """As aware UTC again."""
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

studies = Table(
    "studies",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("profile", String(200), primary_key=True),
    Column("data_name", String(200), primary_key=True),
    Column("added", UtcTime, nullable=False),
)

trials = Table(
    "trials",
    metadata,
    Column("key", String(12), primary_key=True),
    Column("study", String(200), nullable=False),
    Column("profile", String(200), nullable=False),
    Column("data_name", String(200), nullable=False),
    Column("name", Text, nullable=False),
    Column("tables", JSON, nullable=False),
    Column("config", Text, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("step", Integer, nullable=False, default=0),
    Column("total", Integer, nullable=False, default=0),
    Column("error", Text),
    Column("added", UtcTime, nullable=False),
    ForeignKeyConstraint(
        ["study", "profile", "data_name"], ["studies.name", "studies.profile", "studies.data_name"]
    ),
)

diffs = Table(
    "diffs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("text", Text, nullable=False),
)

invocations = Table(
    "invocations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("command", Text, nullable=False),
    Column("started", UtcTime, nullable=False),
    Column("ended", UtcTime),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("mlflow_run_id", String(64)),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trial_key", ForeignKey("trials.key"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("invocation_id", ForeignKey("invocations.id")),
    Column("state", String(16), nullable=False, index=True),
    Column("owner", String(255), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", UtcTime, nullable=False),
    Column("heartbeat", UtcTime, nullable=False),
    Column("ended", UtcTime),
    Column("error", Text),
    Column("provenance", JSON, nullable=False),
    # What the MLflow mirror has of this attempt; the only columns that change after its end.
    Column("mlflow_run_id", String(64)),
    Column("mirrored_upto", Integer, nullable=False, default=0),
    Column("mirrored_state", String(16)),
    UniqueConstraint("trial_key", "number"),
)

metrics = Table(
    "metrics",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False, index=True),
    Column("step", Integer, nullable=False),
    Column("name", String(100), nullable=False),
    Column("value", Float),  # NULL is NaN: SQLite has no other way to keep it
    Column("time", UtcTime, nullable=False),
)

notices = Table(
    "notices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False, index=True),
    Column("message", Text, nullable=False),
    Column("time", UtcTime, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("key", String(12), primary_key=True),
    Column("trial_key", ForeignKey("trials.key"), nullable=False, index=True),
    Column("config", Text, nullable=False),
    Column("attempt_id", ForeignKey("attempts.id"), index=True),  # NULL until there is a result
    Column("metrics", JSON),
    Column("time", UtcTime),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trial_key", ForeignKey("trials.key"), nullable=False, index=True),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False),
    Column("evaluation_key", ForeignKey("evaluations.key"), index=True),
    Column("kind", String(100), nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64)),
    Column("step", Integer),
    Column("time", UtcTime, nullable=False),
)
