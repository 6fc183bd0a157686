"""Trials that are trained anew, and the results that they had before."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "3"
down_revision = "2"


def upgrade(op: Operations) -> None:
    """So far every training that counts began with the first attempt."""
    op.add_column("trials", sa.Column("first_attempt", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "earlier_results",
        sa.Column("evaluation_key", sa.String(12), sa.ForeignKey("evaluations.key"), primary_key=True),
        sa.Column("attempt_id", sa.Integer, sa.ForeignKey("attempts.id"), primary_key=True),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("time", sa.DateTime, nullable=False),
    )
