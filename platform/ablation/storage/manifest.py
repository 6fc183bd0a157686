"""The list of a trial's stored files: SHA-256 by path, as JSON.

A file counts only once the list names it, which is replaced as a whole after the bytes are there. So half an
upload is never taken for a file, and new bytes never meet an old checksum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ablation.files import write_whole
from ablation.fingerprint import checked_key
from ablation.storage.base import StorageError, storage_error
from ablation.storage.names import checked_path

NAME = "files.json"
_LOCAL_NAME = ".files.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")

Manifest = dict[str, str]


def parse(content: bytes, location: str) -> Manifest:
    """The list in a file, every path and checksum checked: others may write there.

    Raises:
        StorageError: it is not such a list; names `location`.
    """
    try:
        files = json.loads(content)
        return {checked_path(path): _checked_sha256(files[path]) for path in files}
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{location} is damaged ({error}); delete it and the trial starts anew."
        ) from error


def dump(files: Mapping[str, str]) -> bytes:
    """What `parse` reads."""
    return json.dumps(dict(files), indent=1, sort_keys=True).encode()


def read_local(directory: Path) -> Manifest:
    """What this directory has in common with the storage."""
    path = directory / _LOCAL_NAME
    return parse(path.read_bytes(), str(path)) if path.exists() else {}


def write_local(directory: Path, files: Mapping[str, str]) -> None:
    """What `read_local` reads; StorageError when the disk does not take it."""
    try:
        write_whole(directory / _LOCAL_NAME, dump(files))
    except OSError as error:
        raise storage_error(error, f"write in {directory}") from error


def stored_name(trial_key: str, path: str, sha256: str) -> str:
    """Where the bytes of a file lie under the root of the storage."""
    return f"{checked_key(trial_key)}/{path}.{sha256[:16]}"


def _checked_sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError(f"not a SHA-256: {text!r}")
    return text
