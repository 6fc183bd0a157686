"""Upgrades of stores of older versions: alembic scripts, `versions/v<N>.py`.

The version of a store is a number in its table `meta`: the name of the last script that upgraded it. Scripts
get alembic's operations as an argument: the usual global `op` allows one upgrade at a time in a process.
"""

from __future__ import annotations

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def upgrade(connection: Connection, version: int) -> None:
    """Runs the scripts after `version`, within the connection's transaction."""
    scripts = ScriptDirectory(Path(__file__).parent)
    operations = Operations(MigrationContext.configure(connection))
    for script in reversed(list(scripts.iterate_revisions("head", str(version)))):
        script.module.upgrade(operations)
