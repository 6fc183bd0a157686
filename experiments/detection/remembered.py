"""What was found out about files, kept until one of them changes.

Reading and checking COCO's annotations takes half a minute; that its files are those of yesterday, a
millisecond.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablation.files import write_whole

Stamp = list[int] | None
"""Size in bytes and time of the last change in nanoseconds; None for a file that is absent."""


def remembered(
    record: Path, files: Iterable[Path], find: Callable[[], tuple[dict[str, Any], Iterable[Path]]]
) -> dict[str, Any]:
    """What `find` says, from the record while every file has the size and the time that it had then.

    Args:
        record: JSON file that keeps the facts; made, or written anew, where they are found again.
        files: what the facts rest on. A folder has changed when a file in it was added or removed.
        find: gives the facts, as JSON values, and further files that they rest on. May raise anything;
            then nothing is kept.
    """
    before = _stamps(files)
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent, damaged, or of another version
        known = json.loads(record.read_text())
        if known["files"] | before == known["files"] == _stamps(map(Path, known["files"])):
            facts: dict[str, Any] = known["facts"]
            return facts
    found, made = find()
    with suppress(OSError):  # a cache that cannot be written is none
        record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps({"files": before | _stamps(made), "facts": found}))
    return found


def _stamps(files: Iterable[Path]) -> dict[str, Stamp]:
    return {str(path.absolute()): _stamp(path) for path in files}


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
