"""Atomic writing of files, and their hashes."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> Path:
    """Writes `content` (text as UTF-8) to `path` atomically, over a file that exists; returns the path.

    Raises:
        OSError: it cannot be written; an existing file is unchanged then.
    """
    data = content.encode() if isinstance(content, str) else content
    # A unique name, so that two writers do not mix; not from `tempfile`, whose files other users cannot read.
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
