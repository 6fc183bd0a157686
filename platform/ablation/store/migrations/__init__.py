"""How a store of an older version becomes one of today's: alembic scripts, `versions/v<N>.py`.

The version of a store is the number in its table `meta`, the name of the script that led there. Scripts get
alembic's operations as an argument, because its usual global `op` knows one upgrade at a time in a process.
"""

from __future__ import annotations

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def upgrade(connection: Connection, version: int) -> None:
    """Runs what leads from a version to the newest, within the connection's transaction."""
    scripts = ScriptDirectory(Path(__file__).parent)
    operations = Operations(MigrationContext.configure(connection))
    for script in reversed(list(scripts.iterate_revisions("head", str(version)))):
        script.module.upgrade(operations)
