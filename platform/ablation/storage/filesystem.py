"""Single operations of fsspec, and how long they are retried."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ablation.credentials import hidden
from ablation.errors import UserError
from ablation.storage.base import DISK_FULL, storage_error

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Between two tries; each wait is twice the one before."""

_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, ImportError, TypeError, ValueError)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class DamagedError(Exception):
    """A stored file is missing, or its bytes are not those that were stored."""


def opened(url: str) -> tuple[Any, str]:
    """The fsspec file system, which fsspec keeps for the next call, and the path in it."""
    import fsspec  # type: ignore[import-untyped]

    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return fs, str(root).rstrip("/")


def write(fs: Any, root: str, path: str, content: bytes) -> None:
    """Writes a whole small file or none. An object store would need no renaming; a file system does."""
    folder, _, name = path.rpartition("/")
    beside = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        in_folder(fs, root, beside, lambda target: fs.pipe_file(target, content))
        fs.mv(beside, path)
    except BaseException:
        with suppress(Exception):
            fs.rm_file(beside)
        raise


def in_folder(fs: Any, root: str, path: str, action: Callable[[str], Any]) -> None:
    """Runs `action` on the path; where folders are real, makes those under the root, but never the root."""
    try:
        action(path)
    except FileNotFoundError:
        if not fs.isdir(root):
            raise
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        action(path)


def delete(fs: Any, path: str) -> None:
    """Deletes a file if it is there."""
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def retried(action: Callable[[], _T], description: str, for_s: float) -> _T:
    """Runs `action`, again and again for so many seconds where waiting may help.

    Raises:
        StorageError: it failed for good; "cannot DESCRIPTION".
        DamagedError, UserError: as `action` raised it.
    """
    deadline, wait = time.monotonic() + for_s, FIRST_WAIT_S
    while True:
        try:
            return action()
        except (DamagedError, UserError):
            raise
        except Exception as error:
            if _is_final(error) or time.monotonic() + wait > deadline:
                raise storage_error(error, description) from error
            _log.warning("Cannot %s (%s); trying again.", description, hidden(str(error)))
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)


def _is_final(error: Exception) -> bool:
    return isinstance(error, _FINAL) or (isinstance(error, OSError) and error.errno in DISK_FULL)
