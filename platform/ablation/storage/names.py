"""Names of files in a trial's directory, and which paths are allowed there."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

LOG = "log.txt"
"""What the trial's attempts reported and printed."""
HANG = "hang.txt"
"""Beginning of the names of files that say where each thread of a process was when it hung."""
STOP = "stop"
"""Marker: the trial should stop at its next report."""

_PATH = re.compile(r"[^\\\x00-\x1f\x7f]+")


def checked_path(path: str) -> str:
    """Returns a plain path in a trial directory unchanged; ValueError if it is absolute, climbs or hides."""
    parts = PurePosixPath(path).parts
    hides = any(part.startswith(".") for part in parts)
    if not parts or hides or path.startswith("/") or "/".join(parts) != path or not _PATH.fullmatch(path):
        raise ValueError(f"not a path in a trial directory: {path!r}")
    return path


def path_in(directory: Path, file: Path) -> str:
    """The path of a file in the directory; ValueError when it lies elsewhere, links followed."""
    return checked_path(file.resolve().relative_to(directory.resolve()).as_posix())
