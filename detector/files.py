"""Files that are whole or absent: written beside their place, flushed to disk, then renamed into it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def write_and_rename(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Put `content` at `path` so that no reader, and no crash, ever sees half of it.

    Content in parts is written part by part, so it never has to be in memory as a whole. The folder is
    made if absent, and a file already at `path` is replaced. Writers of the same path do not disturb each
    other: each writes a file of its own and the last rename stands.

    Raises:
        OSError: the disk is full or not writable; nothing half-written stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
