"""A URL that fsspec opens: `s3://bucket/prefix`, `gs://...`, `file:///folder`. The user installs its library.

A worker works in a directory of its own machine. What its reports name is uploaded, and the next attempt, on
whatever machine, and the driver download it.

    <url>/<trial key>/files.json               the manifest
    <url>/<trial key>/<path>.<16 hex digits>   bytes of a file, named by the beginning of their SHA-256
    <url>/<trial key>/stop                     the stop marker

Every downloaded copy is checked against the manifest. Nothing is unpickled, and no name from the storage
leaves the trial's directory.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ablation.credentials import hidden
from ablation.errors import UserError
from ablation.files import sha256_of
from ablation.fingerprint import checked_key
from ablation.storage import filesystem, manifest
from ablation.storage.base import StorageError
from ablation.storage.filesystem import DamagedError
from ablation.storage.manifest import Manifest, stored_name
from ablation.storage.names import HANG, LOG, STOP, checked_path, path_in

WORKER_RETRY_S = 300.0
"""How long a worker retries an operation."""
DRIVER_RETRY_S = 30.0
"""How long the driver does, which many trials wait for."""
STOP_POLL_S = 5.0
"""Least time between two requests for one stop marker."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Remote:
    """Storage behind a URL.

    Attributes:
        url: the folder or prefix, which must exist where folders are real (so that a missing mount is not
            taken for an empty storage).
    """

    url: str
    _not_stopped: dict[str, float] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"Remote({self.shown!r})"

    @property
    def shown(self) -> str:
        """The URL without a password."""
        return hidden(self.url)

    def check(self) -> None:
        """UserError when other processes could not use the URL, or no library here opens it."""
        import fsspec  # type: ignore[import-untyped]

        protocol, _, rest = self.url.partition("://")
        if protocol == "memory" or "::" in self.url or not rest.strip("/"):
            raise UserError(
                f"--storage {self.shown} cannot be shared by processes. Give a bucket and prefix, as "
                "s3://bucket/prefix, or a folder that every machine sees."
            )
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            host = socket.gethostname()
            raise UserError(f"--storage {self.shown} cannot be opened on {host}: {error}.") from error

    # --- files, on a worker's machine

    def directory(self, trial_key: str) -> Path:
        """The trial's directory in this machine's temporary folder (TMPDIR), for this user alone."""
        base = Path(tempfile.gettempdir()) / f"ablation-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise StorageError(f"{base} on {socket.gethostname()} belongs to another user; set TMPDIR.")
        name = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        directory = base / name / checked_key(trial_key)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def fetch(self, trial_key: str, directory: Path, folder: str = "") -> list[str]:
        """Downloads what is missing or differs, deletes what is not stored."""
        everything = self._manifest(trial_key, WORKER_RETRY_S)
        stored = {path: everything[path] for path in everything if path == LOG or _lies_in(path, folder)}
        for path in _paths_in(directory) - {*stored}:
            if not path.startswith((LOG, HANG)):  # other processes of the trial may be writing there
                (directory / path).unlink(missing_ok=True)
        damaged = []
        for path in stored:
            if path == LOG and (directory / LOG).exists():
                continue
            try:
                self._download(trial_key, path, stored[path], directory, WORKER_RETRY_S)
            except DamagedError as error:
                damaged.append(str(error))
        manifest.write_local(directory, stored)
        return damaged

    def upload(self, trial_key: str, directory: Path, files: Sequence[Path]) -> None:
        """Uploads the bytes of what is new, then the manifest that names them."""
        if not files:
            return
        new = {path: sha256_of(directory / path) for path in (path_in(directory, file) for file in files)}
        before = self._manifest(trial_key, WORKER_RETRY_S)
        for path, sha256 in new.items():
            if before.get(path) != sha256:
                self._upload(trial_key, path, sha256, directory)
        self._replace(trial_key, before, {**before, **new}, WORKER_RETRY_S)
        manifest.write_local(directory, {**manifest.read_local(directory), **new})

    def prune(self, trial_key: str, directory: Path) -> None:
        """Deletes only what this directory once had: another machine may have stored newer files."""
        known = manifest.read_local(directory)
        gone = [path for path in known if not (directory / path).exists()]
        if gone:
            self.delete(trial_key, gone)
            manifest.write_local(directory, {path: known[path] for path in known if path not in gone})

    def remove_copies(self, trial_key: str, directory: Path) -> None:
        """Deletes the directory; its files lie in the storage."""
        shutil.rmtree(directory, ignore_errors=True)

    # --- files, for the driver

    def delete(self, trial_key: str, paths: Collection[str]) -> None:
        """Takes files off the manifest, then deletes their bytes."""
        before = self._manifest(trial_key, DRIVER_RETRY_S)
        after = {path: before[path] for path in before if path not in paths}
        self._replace(trial_key, before, after, DRIVER_RETRY_S)

    def download(self, trial_key: str, path: str, directory: Path) -> Path:
        """Downloads the file unless the same bytes are there."""
        stored = self._manifest(trial_key, DRIVER_RETRY_S)
        if checked_path(path) not in stored:
            raise StorageError(f"{self.shown} has no {path} of trial {trial_key}.")
        try:
            return self._download(trial_key, path, stored[path], directory, DRIVER_RETRY_S)
        except DamagedError as error:
            raise StorageError(f"{error} in {self.shown}; the trial must run again.") from error

    # --- the stop marker

    def ask_to_stop(self, trial_key: str) -> None:
        """Writes the stop marker; tries once, because the driver asks again."""
        path = f"{checked_key(trial_key)}/{STOP}"
        self._retried(
            "write to", lambda fs, root: filesystem.write(fs, root, f"{root}/{path}", b"stop\n"), for_s=0.0
        )
        self._not_stopped.pop(trial_key, None)

    def stop_asked(self, trial_key: str) -> bool:
        """Whether the stop marker is there; False while the storage cannot be read."""
        # Only a no is remembered: after a yes another attempt may follow in this process.
        if time.monotonic() - self._not_stopped.get(checked_key(trial_key), -math.inf) < STOP_POLL_S:
            return False
        with suppress(Exception):
            fs, root = filesystem.opened(self.url)
            if fs.exists(f"{root}/{trial_key}/{STOP}"):
                return True
        self._not_stopped[trial_key] = time.monotonic()
        return False

    def clear_stop(self, trial_key: str) -> None:
        """Deletes the stop marker."""
        path = f"{checked_key(trial_key)}/{STOP}"
        self._retried("delete from", lambda fs, root: filesystem.delete(fs, f"{root}/{path}"))

    def probe(self) -> None:
        """Writes, reads and deletes a small file; tries once."""
        name = f".probe-{uuid.uuid4().hex}"

        def use(fs: Any, root: str) -> None:
            filesystem.write(fs, root, f"{root}/{name}", name.encode())
            if fs.cat_file(f"{root}/{name}") != name.encode():
                raise OSError("what was written came back changed")
            filesystem.delete(fs, f"{root}/{name}")

        self._retried("use", use, for_s=0.0)

    # --- single requests

    def _retried(self, verb: str, action: Callable[[Any, str], _T], for_s: float = DRIVER_RETRY_S) -> _T:
        return filesystem.retried(
            lambda: action(*filesystem.opened(self.url)), f"{verb} the storage {self.shown}", for_s
        )

    def _manifest(self, trial_key: str, for_s: float) -> Manifest:
        name = f"{checked_key(trial_key)}/{manifest.NAME}"

        def read(fs: Any, root: str) -> bytes:
            try:
                return bytes(fs.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                if self.url.startswith("file:") and not fs.isdir(root):
                    raise  # a mount that is missing is no empty storage
                return b"{}"

        return manifest.parse(self._retried("read", read, for_s), f"{self.shown}/{name}")

    def _upload(self, trial_key: str, path: str, sha256: str, directory: Path) -> None:
        source, name = directory / path, stored_name(trial_key, path, sha256)

        def upload(fs: Any, root: str) -> None:
            filesystem.in_folder(fs, root, f"{root}/{name}", lambda target: fs.put_file(str(source), target))
            size, expected = fs.info(f"{root}/{name}")["size"], source.stat().st_size
            if size != expected:
                raise OSError(f"{size} of {expected} bytes arrived")

        self._retried(f"store {path} in", upload, WORKER_RETRY_S)

    def _download(self, trial_key: str, path: str, sha256: str, directory: Path, for_s: float) -> Path:
        """The file in the directory, downloaded beside its path and renamed."""
        target, name = directory / path, stored_name(trial_key, path, sha256)
        if target.is_file() and sha256_of(target) == sha256:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")

        def download(fs: Any, root: str) -> None:
            try:
                fs.get_file(f"{root}/{name}", str(beside))
            except FileNotFoundError as error:
                raise DamagedError(f"{path} of trial {trial_key} is missing") from error

        try:
            self._retried(f"get {path} from", download, for_s)
            if sha256_of(beside) != sha256:
                raise DamagedError(f"{path} of trial {trial_key} does not have its checksum")
            return beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    def _replace(
        self, trial_key: str, before: Mapping[str, str], after: Mapping[str, str], for_s: float
    ) -> None:
        """Replaces the manifest, then deletes bytes that only the old one names."""
        if before == after:
            return
        old, new = ({stored_name(trial_key, *entry) for entry in files.items()} for files in (before, after))

        def publish(fs: Any, root: str) -> None:
            filesystem.write(fs, root, f"{root}/{trial_key}/{manifest.NAME}", manifest.dump(after))

        def clean(fs: Any, root: str) -> None:
            for name in old - new:
                filesystem.delete(fs, f"{root}/{name}")

        self._retried("write to", publish, for_s)
        with suppress(StorageError):  # bytes that no manifest names do no harm
            self._retried("delete from", clean, 0.0)


def _lies_in(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)


def _paths_in(directory: Path) -> set[str]:
    """Paths of all files in the directory but hidden ones: unfinished downloads and the manifest."""
    files = (path for path in directory.rglob("*") if path.is_file() or path.is_symlink())
    names = (path.relative_to(directory).as_posix() for path in files)
    return {name for name in names if not PurePosixPath(name).name.startswith(".")}
