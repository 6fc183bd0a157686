"""What the image files of a split hold, by their bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from detector.data.coco import CheckedSplit
from detector.files import write_and_rename

THREADS = 4
"""That read and hash files: hashlib lets other threads run."""

Known = dict[str, list[int | str]]
"""Size in bytes, time of the last change in nanoseconds, and SHA-256, by file name."""


def image_digest(split: CheckedSplit, record: Path) -> str:
    """SHA-256 over the names and bytes of the split's images, in hex digits.

    A file is read once: its hash is kept while it has the same size and time. The order of the images in the
    JSON and where they lie do not matter.

    Args:
        split: the checked split.
        record: JSON file that keeps the hashes; may be absent or damaged.

    Returns:
        The digest; a file that cannot be read counts as empty.
    """
    before, names = _known(record), sorted(image.file_name for image in split.images)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _file(split.source.images / name, before.get(name)), names)
        now: Known = dict(zip(names, found, strict=True))
    if now != before:
        _keep(record, now)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{now[name][2]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file(path: Path, known: list[int | str] | None) -> list[int | str]:
    try:
        status = path.stat()
        if known and known[:2] == [status.st_size, status.st_mtime_ns]:
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return [0, 0, ""]
    return [status.st_size, status.st_mtime_ns, digest]


def _known(record: Path) -> Mapping[str, list[int | str]]:
    with suppress(OSError, ValueError):
        found = json.loads(record.read_text())
        if isinstance(found, dict):
            return {
                name: entry for name, entry in found.items() if isinstance(entry, list) and len(entry) == 3
            }
    return {}


def _keep(record: Path, known: Known) -> None:
    with suppress(OSError):  # hashed again the next time
        write_and_rename(record, json.dumps(known).encode())
