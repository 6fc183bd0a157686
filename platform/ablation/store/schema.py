"""The store's tables. SQL that SQLite and PostgreSQL both understand.

    studies 1-n trials 1-n attempts 1-n metrics, notices
                trials 1-n evaluations (at most one attempt each) 1-n earlier_results (of one attempt each)
                trials 1-n artifacts (each of one attempt, some of one evaluation)
    studies 1-n joint_measurements (of trained rows together)
    invocations 1-n attempts

Times are UTC. The text of a diff is stored once, under its hash. `config` columns are text, not JSON: a key
is the hash of exactly these bytes.

A change here needs a higher `SCHEMA_VERSION` and a script in `migrations/versions` that upgrades older
stores.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    or_,
)

SCHEMA_VERSION = 4
"""Raised whenever a table below changes."""

TrialState = Literal["WAITING", "RUNNING", "COMPLETE", "FAILED", "CANCELLED"]
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


class PlainText(TypeDecorator[str]):
    """Text from outside; characters that a database may refuse (NUL, lone surrogates) become escapes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """As text that every database accepts."""
        return (
            None
            if value is None
            else value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
        )


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
    Column("paused", Boolean, nullable=False, server_default=false()),
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
    Column("error", PlainText),
    Column("added", UtcTime, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),  # higher first
    Column("micro_batch", Integer),  # NULL: as the command says
    # Number of the attempt that started the training that counts: above 1 where it was started anew.
    Column("first_attempt", Integer, nullable=False, server_default="1"),
    ForeignKeyConstraint(
        ["study", "profile", "data_name"], ["studies.name", "studies.profile", "studies.data_name"]
    ),
    Index("ix_trials_setting", "study", "profile", "data_name"),
)

diffs = Table(
    "diffs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("text", PlainText, nullable=False),
)

invocations = Table(
    "invocations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("command", PlainText, nullable=False),
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
    Column("invocation_id", ForeignKey("invocations.id"), index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("owner", String(255), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", UtcTime, nullable=False),
    Column("heartbeat", UtcTime, nullable=False),
    Column("ended", UtcTime),
    Column("error", PlainText),
    Column("provenance", JSON, nullable=False),
    Column("environment", JSON),
    # First and last progress, so that no query searches the metrics for them.
    Column("first_step", Integer),
    Column("first_progress", UtcTime),
    Column("last_step", Integer),
    Column("last_progress", UtcTime),
    Column("last_metric", Integer, nullable=False, server_default="0"),  # its id
    # What the MLflow mirror has; the only columns that change after the attempt's end.
    Column("mlflow_run_id", String(64)),
    Column("mirrored_upto", Integer, nullable=False, default=0),
    Column("mirrored_state", String(16)),
    UniqueConstraint("trial_key", "number"),
)

TO_MIRROR = or_(
    attempts.c.mirrored_state.is_(None),
    attempts.c.mirrored_state != attempts.c.state,
    attempts.c.mirrored_upto < attempts.c.last_metric,
)
"""Attempts that the MLflow mirror does not have completely."""
Index("ix_attempts_to_mirror", attempts.c.id, sqlite_where=TO_MIRROR, postgresql_where=TO_MIRROR)

metrics = Table(
    "metrics",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("name", String(100), nullable=False),
    Column("value", Float),  # NULL is NaN, which SQLite cannot store
    Column("time", UtcTime, nullable=False),
    Index("ix_metrics_attempt", "attempt_id", "id"),
)

notices = Table(
    "notices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False, index=True),
    Column("message", PlainText, nullable=False),
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

earlier_results = Table(
    "earlier_results",  # of evaluations that were started anew
    metadata,
    Column("evaluation_key", ForeignKey("evaluations.key"), primary_key=True),
    Column("attempt_id", ForeignKey("attempts.id"), primary_key=True),
    Column("metrics", JSON, nullable=False),
    Column("time", UtcTime, nullable=False),
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

joint_measurements = Table(
    "joint_measurements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study", String(200), nullable=False),
    Column("profile", String(200), nullable=False),
    Column("data_name", String(200), nullable=False),
    Column("machine", PlainText, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("attempts", JSON, nullable=False),  # by evaluation key, that of the result which was there
    Column("rounds", JSON, nullable=False),  # by evaluation key and metric
    Column("time", UtcTime, nullable=False),
    ForeignKeyConstraint(
        ["study", "profile", "data_name"], ["studies.name", "studies.profile", "studies.data_name"]
    ),
    Index("ix_joint_setting", "study", "profile", "data_name"),
)

writers = Table(
    "writers",
    metadata,
    Column("id", String(32), primary_key=True),  # of one thread of one program
    Column("last", Integer, nullable=False),  # number of the last transaction that it committed
    Column("time", UtcTime, nullable=False),
)
