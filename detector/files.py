"""Files that are whole or absent: written beside their place, flushed to disk, then renamed into it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_and_rename(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that no reader, and no crash, ever sees half of it.

    The folder is made if absent, and a file already at `path` is replaced. Writers of the same path do
    not disturb each other: each writes its own file beside it and the last rename stands.

    Raises:
        OSError: the disk is full or not writable; nothing half-written stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    # mkstemp makes files private; results are read by other users too. There is no way to only ask.
    mask = os.umask(0)
    os.umask(mask)
    return mask
