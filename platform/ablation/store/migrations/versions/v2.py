"""Control from another terminal, several drivers, and a hundred thousand trials."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "2"
down_revision = "1"


def upgrade(op: Operations) -> None:
    """Desired states, priorities and environments; first and last progress, from the metrics."""
    op.add_column("studies", sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("trials", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.add_column("trials", sa.Column("micro_batch", sa.Integer))
    for column in (
        sa.Column("environment", sa.JSON),
        sa.Column("first_step", sa.Integer),
        sa.Column("first_progress", sa.DateTime),
        sa.Column("last_step", sa.Integer),
        sa.Column("last_progress", sa.DateTime),
        sa.Column("last_metric", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("attempts", column)
    op.create_table(
        "writers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("last", sa.Integer, nullable=False),
        sa.Column("time", sa.DateTime, nullable=False),
    )
    _index(op)
    _note_progress(op)


def _index(op: Operations) -> None:
    op.drop_index("ix_metrics_attempt_id", "metrics")
    op.create_index("ix_metrics_attempt", "metrics", ["attempt_id", "id"])
    op.create_index("ix_trials_setting", "trials", ["study", "profile", "data_name"])
    op.create_index("ix_attempts_invocation_id", "attempts", ["invocation_id"])
    behind = sa.text("mirrored_state IS NULL OR mirrored_state != state OR mirrored_upto < last_metric")
    op.create_index("ix_attempts_to_mirror", "attempts", ["id"], sqlite_where=behind, postgresql_where=behind)


def _note_progress(op: Operations) -> None:
    for name, function in (("first", "MIN"), ("last", "MAX")):
        at = f"(SELECT {function}(id) FROM metrics WHERE attempt_id = attempts.id)"
        op.execute(
            f"UPDATE attempts SET {name}_step = (SELECT step FROM metrics WHERE id = {at}), "
            f"{name}_progress = (SELECT time FROM metrics WHERE id = {at})"
        )
    newest = "(SELECT MAX(id) FROM metrics WHERE attempt_id = attempts.id)"
    op.execute(f"UPDATE attempts SET last_metric = COALESCE({newest}, 0)")
