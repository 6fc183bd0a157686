"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> Path:
    """Put `content` (a text as UTF-8) at `path`, in the place of what was there; returns the path.

    Raises:
        OSError: it cannot be written; what was there stays, and nothing beside it.
    """
    data = content.encode() if isinstance(content, str) else content
    # A name of its own, so that two writers never mix; not by `tempfile`, whose files others cannot read.
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
