"""Measurements that trained rows make together."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "4"
down_revision = "3"


def upgrade(op: Operations) -> None:
    """There are none yet."""
    op.create_table(
        "joint_measurements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(200), nullable=False),
        sa.Column("profile", sa.String(200), nullable=False),
        sa.Column("data_name", sa.String(200), nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("attempts", sa.JSON, nullable=False),
        sa.Column("rounds", sa.JSON, nullable=False),
        sa.Column("time", sa.DateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["study", "profile", "data_name"], ["studies.name", "studies.profile", "studies.data_name"]
        ),
    )
    op.create_index("ix_joint_setting", "joint_measurements", ["study", "profile", "data_name"])
