"""Where the files of trials live: a folder that all machines share, or a URL that fsspec opens.

names       names of files in a trial's directory, and which paths are allowed there
base        what workers and the driver ask of a storage; its error
shared      a folder that every machine sees under one path
remote      a URL, with a copy of the trial's files on the machine that works on it
manifest    the list of a trial's stored files
filesystem  single operations of fsspec, and how long they are retried
reports     the files that a report names
"""

from __future__ import annotations

from pathlib import Path

from ablation.storage.base import Storage, StorageError
from ablation.storage.remote import Remote
from ablation.storage.shared import SharedFolder

__all__ = ["Remote", "SharedFolder", "Storage", "StorageError", "storage_at"]


def storage_at(location: str | Path) -> Storage:
    """Opens the storage at a location; asks no server.

    Args:
        location: the `artifacts` folder of a workspace that all machines share, as a Path; or, as a text, a
            URL or a folder outside the workspace.

    Raises:
        UserError: no library can open the URL, or no other process could use it.
    """
    if isinstance(location, Path):
        return SharedFolder(location.absolute())
    remote = Remote(location if "://" in location else f"file://{Path(location).absolute()}")
    remote.check()
    return remote
