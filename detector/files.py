"""Atomic writing of files: to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def write_and_rename(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Writes `content` to `path` atomically.

    Content in parts is written part by part, so it need not be in memory as a whole. The folder is created if
    absent, and an existing file is replaced. Concurrent writers of one path have their own temporary files;
    the last rename wins.

    Raises:
        OSError: the disk is full or not writable; no partial file is left.
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
