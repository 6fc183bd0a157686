"""Where the files of trials live: a folder that all machines share, or a place known by its URL.

In a shared folder (the workspace lies on it) every machine works in the same trial directories, and there is
nothing to do. Anywhere else a worker works in a directory of its own machine; what its reports name goes to
the storage, from where the next attempt, on whatever machine, and the driver get it. Any URL that fsspec
opens will do (`s3://bucket/prefix`, `gs://...`, `file:///folder`); its library is the user's to install.

    <url>/<trial key>/files.json               SHA-256 of each stored file, by its path in the trial directory
    <url>/<trial key>/<path>.<16 hex digits>   its bytes, named by the beginning of their SHA-256
    <url>/<trial key>/stop                     somebody asked the trial to stop

A file counts only once `files.json` names it, which is replaced as a whole after the bytes are there; so half
an upload is never taken for a file, and a file's new bytes never meet its old checksum. Every copy that comes
back is checked against it. Nothing is unpickled, and no name from the storage leaves the trial's directory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from ablation.credentials import hidden
from ablation.errors import UserError
from ablation.files import write_whole
from ablation.fingerprint import KEY_LENGTH
from ablation.protocol import Checkpointed, Evaluated, Report
from ablation.worker.watchdog import HANG, LOG

PATIENCE_S = 300.0
"""How long a worker tries again to reach a storage that is away."""
DRIVER_PATIENCE_S = 30.0
"""How long the driver does, which many trials wait for."""
STOP_LOOK_S = 5.0
"""A remote stop marker is looked for at most so often."""
STOP = "stop"

_FILES = "files.json"
_KNOWN = ".files.json"  # what this directory has in common with the storage
_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")
_PATH = re.compile(r"[^\\\x00-\x1f\x7f]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class StorageError(UserError):
    """The storage cannot be used: what was tried, where, and why it failed."""


class Storage(Protocol):
    """What workers and the driver ask of it. Picklable.

    `directory` is always the trial's directory on this machine, and a path is one in it, with `/`.
    """

    @property
    def url(self) -> str:
        """As fsspec opens it; may hold a password."""
        ...

    def directory(self, trial_key: str) -> Path:
        """Where a worker of this machine keeps the trial's files; made when absent."""
        ...

    def fetch(self, trial_key: str, directory: Path, folder: str = "") -> list[str]:
        """Before a trial: makes the directory hold what the storage has of the trial, and nothing else.

        Args:
            folder: of the directory; what lies elsewhere in it is of no use, but for the log.

        Returns:
            What was passed over and why, for people.

        Raises:
            StorageError: it cannot be reached or read, or this machine's disk is full.
        """
        ...

    def put(self, trial_key: str, directory: Path, files: Sequence[Path]) -> None:
        """Stores files of the directory; all of them count at once, or none.

        Raises:
            StorageError: it cannot be reached or written, for `PATIENCE_S`.
            ValueError: a file lies outside the directory.
        """
        ...

    def prune(self, trial_key: str, directory: Path) -> None:
        """Deletes from the storage what was in this directory and has gone from it."""
        ...

    def discard(self, trial_key: str, paths: Collection[str]) -> None:
        """Deletes these files from the storage; files in the driver's workspace stay."""
        ...

    def bring(self, trial_key: str, path: str, directory: Path) -> Path:
        """Puts a stored file into the driver's `directory` of the trial; returns where it lies.

        Raises:
            StorageError: it is not there, damaged, or cannot be reached.
            ValueError: the path leaves the directory.
        """
        ...

    def tidy(self, trial_key: str, directory: Path) -> None:
        """After a trial: removes a worker's own copies."""
        ...

    def ask_to_stop(self, trial_key: str) -> None:
        """Leaves the marker that `stop_asked` looks for."""
        ...

    def stop_asked(self, trial_key: str) -> bool:
        """Whether the trial should stop. Cheap; a remote answer may be `STOP_LOOK_S` old, or missed."""
        ...

    def clear(self, trial_key: str) -> None:
        """Takes the marker away."""
        ...

    def probe(self) -> None:
        """Writes, reads and deletes a small file; StorageError with the reason when it cannot."""
        ...


def storage_at(place: str | Path) -> Storage:
    """The storage at a place.

    Args:
        place: the `artifacts` folder of a workspace that all machines share, as a Path; or, as a text, a URL
            or a folder outside the workspace.

    Raises:
        UserError: no library can open the URL, or no other process could.
    """
    if isinstance(place, Path):
        return SharedFolder(place.absolute())
    remote = Remote(place if "://" in place else f"file://{Path(place).absolute()}")
    remote.check()
    return remote


def files_of(report: Report) -> list[Path]:
    """The files that a report names, which `put` must store before the report is sent."""
    match report:
        case Checkpointed(path=path):
            return [Path(path)]
        case Evaluated(artifacts=artifacts):
            return [Path(path) for path in artifacts.values()]
        case _:
            return []


def moved(report: Report, here: Path, there: Path) -> Report:
    """The report as if its trial directory were not `here` but `there`."""

    def move(path: str) -> str:
        return str(there / _inside(here, Path(path)))

    match report:
        case Checkpointed(path=path):
            return replace(report, path=move(path))
        case Evaluated(artifacts=artifacts):
            return replace(report, artifacts={kind: move(path) for kind, path in artifacts.items()})
        case _:
            return report


# --- a shared folder ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The `artifacts` folder of a workspace that every machine sees under the same path."""

    root: Path

    @property
    def url(self) -> str:
        """Its path."""
        return str(self.root)

    def directory(self, trial_key: str) -> Path:
        """The one directory of the trial."""
        directory = self.root / _checked_key(trial_key)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def fetch(self, trial_key: str, directory: Path, folder: str = "") -> list[str]:
        """Nothing to do."""
        return []

    def put(self, trial_key: str, directory: Path, files: Sequence[Path]) -> None:
        """Nothing to do."""

    def prune(self, trial_key: str, directory: Path) -> None:
        """Nothing to do."""

    def discard(self, trial_key: str, paths: Collection[str]) -> None:
        """Nothing to do: the files lie in the workspace."""

    def bring(self, trial_key: str, path: str, directory: Path) -> Path:
        """It is there already."""
        return directory / _checked_path(path)

    def tidy(self, trial_key: str, directory: Path) -> None:
        """Nothing to do: there are no copies."""

    def ask_to_stop(self, trial_key: str) -> None:
        """Leaves the marker."""
        try:
            (self.directory(trial_key) / STOP).touch()
        except OSError as error:
            raise _said(error, f"use the shared folder {self.root}") from error

    def stop_asked(self, trial_key: str) -> bool:
        """Whether the marker is there."""
        return (self.root / _checked_key(trial_key) / STOP).exists()

    def clear(self, trial_key: str) -> None:
        """Takes the marker away."""
        try:
            (self.root / _checked_key(trial_key) / STOP).unlink(missing_ok=True)
        except OSError as error:
            raise _said(error, f"use the shared folder {self.root}") from error

    def probe(self) -> None:
        """Writes, reads and deletes a small file."""
        path = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            write_whole(path, path.name)
            path.read_text()
            path.unlink()
        except OSError as error:
            raise _said(error, f"use the shared folder {self.root}") from error


# --- a place known by its URL --------------------------------------------------------------------------


@dataclass(slots=True)
class Remote:
    """Storage behind a URL that fsspec opens.

    Attributes:
        url: the folder or prefix, which must be there where folders are real (so that a mount that is
            missing is not taken for an empty one).
    """

    url: str
    _looked: dict[str, tuple[float, bool]] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"Remote({self.place!r})"

    @property
    def place(self) -> str:
        """The URL as people may read it."""
        return hidden(self.url)

    def check(self) -> None:
        """UserError when the URL could not be shared, or no library here opens it. Asks no server."""
        import fsspec  # type: ignore[import-untyped]

        protocol, _, rest = self.url.partition("://")
        if protocol == "memory" or "::" in self.url or not rest.strip("/"):
            raise UserError(
                f"--storage {self.place} cannot be shared by processes. Give a bucket and prefix, as "
                "s3://bucket/prefix, or a folder that every machine sees."
            )
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            host = socket.gethostname()
            raise UserError(f"--storage {self.place} cannot be opened on {host}: {error}.") from error

    def directory(self, trial_key: str) -> Path:
        """In this machine's folder for temporary files (TMPDIR says where), this user's alone."""
        base = Path(tempfile.gettempdir()) / f"ablation-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise StorageError(f"{base} on {socket.gethostname()} belongs to another user; set TMPDIR.")
        name = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        directory = base / name / _checked_key(trial_key)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def fetch(self, trial_key: str, directory: Path, folder: str = "") -> list[str]:
        """Downloads what is missing or other, removes what the storage does not have."""
        everything = self._stored(trial_key, PATIENCE_S)
        stored = {path: everything[path] for path in everything if path == LOG or _lies_in(path, folder)}
        for path in _paths_in(directory) - {*stored}:
            if not path.startswith((LOG, HANG)):  # other processes of the trial may be writing there
                (directory / path).unlink(missing_ok=True)
        passed_over = []
        for path in stored:
            if path == LOG and (directory / LOG).exists():
                continue
            try:
                self._download(trial_key, path, stored[path], directory, PATIENCE_S)
            except _DamagedError as error:
                passed_over.append(str(error))
        _remember(directory, stored)
        return passed_over

    def put(self, trial_key: str, directory: Path, files: Sequence[Path]) -> None:
        """Uploads the bytes of what is new, then the list that names them."""
        if not files:
            return
        new = {path: _sha256(directory / path) for path in (_inside(directory, file) for file in files)}
        before = self._stored(trial_key, PATIENCE_S)
        for path, sha256 in new.items():
            if before.get(path) != sha256:
                self._upload(trial_key, path, sha256, directory)
        self._replace(trial_key, before, {**before, **new}, PATIENCE_S)
        _remember(directory, {**_known(directory), **new})

    def prune(self, trial_key: str, directory: Path) -> None:
        """Only what this directory knows of: another machine's newer files are none of its business."""
        known = _known(directory)
        gone = [path for path in known if not (directory / path).exists()]
        if gone:
            self.discard(trial_key, gone)
            _remember(directory, {path: known[path] for path in known if path not in gone})

    def tidy(self, trial_key: str, directory: Path) -> None:
        """The directory; what it held lies in the storage."""
        shutil.rmtree(directory, ignore_errors=True)

    def discard(self, trial_key: str, paths: Collection[str]) -> None:
        """Takes them off the list, then deletes their bytes."""
        before = self._stored(trial_key, DRIVER_PATIENCE_S)
        after = {path: before[path] for path in before if path not in paths}
        if after != before:
            self._replace(trial_key, before, after, DRIVER_PATIENCE_S)

    def bring(self, trial_key: str, path: str, directory: Path) -> Path:
        """Downloads the file unless the same bytes are there."""
        stored = self._stored(trial_key, DRIVER_PATIENCE_S)
        if _checked_path(path) not in stored:
            raise StorageError(f"{self.place} has no {path} of trial {trial_key}.")
        try:
            return self._download(trial_key, path, stored[path], directory, DRIVER_PATIENCE_S)
        except _DamagedError as error:
            raise StorageError(f"{error} in {self.place}; the trial must run again.") from error

    def ask_to_stop(self, trial_key: str) -> None:
        """Leaves the marker."""
        path = f"{_checked_key(trial_key)}/{STOP}"
        self._tried("write", lambda fs, root: _write(fs, root, f"{root}/{path}", b"stop\n"))

    def stop_asked(self, trial_key: str) -> bool:
        """Whether the marker is there; no, while the storage is away."""
        looked, asked = self._looked.get(_checked_key(trial_key), (-STOP_LOOK_S, False))
        if time.monotonic() - looked >= STOP_LOOK_S:
            with suppress(Exception):
                fs, root = _opened(self.url)
                asked = bool(fs.exists(f"{root}/{trial_key}/{STOP}"))
            self._looked[trial_key] = (time.monotonic(), asked)
        return asked

    def clear(self, trial_key: str) -> None:
        """Takes the marker away."""
        path = f"{_checked_key(trial_key)}/{STOP}"
        self._looked.pop(trial_key, None)
        self._tried("clear", lambda fs, root: _delete(fs, f"{root}/{path}"))

    def probe(self) -> None:
        """Writes, reads and deletes a small file, with one try."""
        name = f".probe-{uuid.uuid4().hex}"

        def use(fs: Any, root: str) -> None:
            _write(fs, root, f"{root}/{name}", name.encode())
            if fs.cat_file(f"{root}/{name}") != name.encode():
                raise OSError("what was written came back changed")
            _delete(fs, f"{root}/{name}")

        self._tried("use", use, patience_s=0.0)

    # --- one request, tried until it works --------------------------------------------------------------

    def _tried(
        self, verb: str, action: Callable[[Any, str], _T], patience_s: float = DRIVER_PATIENCE_S
    ) -> _T:
        return _persistently(
            lambda: action(*_opened(self.url)), f"{verb} the storage {self.place}", patience_s
        )

    def _stored(self, trial_key: str, patience_s: float) -> dict[str, str]:
        """SHA-256 of every file that counts, by path."""
        name = f"{_checked_key(trial_key)}/{_FILES}"

        def read(fs: Any, root: str) -> bytes:
            try:
                return bytes(fs.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                if self.url.startswith("file:") and not fs.isdir(root):
                    raise  # a mount that is missing is no empty storage
                return b"{}"

        return _listed(self._tried("read", read, patience_s), f"{self.place}/{name}")

    def _upload(self, trial_key: str, path: str, sha256: str, directory: Path) -> None:
        source, name = directory / path, _stored_name(trial_key, path, sha256)

        def upload(fs: Any, root: str) -> None:
            _in_folder(fs, root, f"{root}/{name}", lambda there: fs.put_file(str(source), there))
            size, wanted = fs.info(f"{root}/{name}")["size"], source.stat().st_size
            if size != wanted:
                raise OSError(f"{size} of {wanted} bytes arrived")

        self._tried(f"store {path} in", upload, PATIENCE_S)

    def _download(self, trial_key: str, path: str, sha256: str, directory: Path, patience_s: float) -> Path:
        """The file in the directory, downloaded beside its place and renamed into it."""
        target, name = directory / path, _stored_name(trial_key, path, sha256)
        if target.is_file() and _sha256(target) == sha256:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")

        def download(fs: Any, root: str) -> None:
            try:
                fs.get_file(f"{root}/{name}", str(beside))
            except FileNotFoundError as error:
                raise _DamagedError(f"{path} of trial {trial_key} is missing") from error

        try:
            self._tried(f"get {path} from", download, patience_s)
            if _sha256(beside) != sha256:
                raise _DamagedError(f"{path} of trial {trial_key} does not have its checksum")
            return beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    def _replace(
        self, trial_key: str, before: Mapping[str, str], after: Mapping[str, str], patience_s: float
    ) -> None:
        """Puts the new list in the place of the old one, then deletes bytes that only the old one names."""
        text = json.dumps(after, indent=1, sort_keys=True).encode()
        names = [{_stored_name(trial_key, *entry) for entry in files.items()} for files in (before, after)]

        def publish(fs: Any, root: str) -> None:
            _write(fs, root, f"{root}/{trial_key}/{_FILES}", text)

        def clean(fs: Any, root: str) -> None:
            for name in names[0] - names[1]:
                _delete(fs, f"{root}/{name}")

        if before != after:
            self._tried("write", publish, patience_s)
            with suppress(StorageError):  # bytes that nothing names do no harm
                self._tried("clean", clean, 0.0)


class _DamagedError(Exception):
    """A stored file is missing or not what was stored."""


def _opened(url: str) -> tuple[Any, str]:
    """The fsspec file system, which fsspec keeps for the next call, and the path in it."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return fs, str(root).rstrip("/")


def _in_folder(fs: Any, root: str, path: str, write: Callable[[str], Any]) -> None:
    """Writes; where folders are real, makes those under the root that are missing, but never the root."""
    try:
        write(path)
    except FileNotFoundError:
        if not fs.isdir(root):
            raise
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        write(path)


def _write(fs: Any, root: str, path: str, content: bytes) -> None:
    """A small file, whole or not there. An object store would need no renaming; a file system does."""
    folder, _, name = path.rpartition("/")
    beside = f"{folder}/.{name}.{uuid.uuid4().hex}"
    _in_folder(fs, root, beside, lambda there: fs.pipe_file(there, content))
    fs.mv(beside, path)


def _delete(fs: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        fs.rm_file(path)


# --- names ---------------------------------------------------------------------------------------------


def _checked_key(trial_key: str) -> str:
    if not _KEY.fullmatch(trial_key):
        raise ValueError(f"a trial key is {KEY_LENGTH} hexadecimal characters, got {trial_key!r}")
    return trial_key


def _checked_path(path: str) -> str:
    """A plain path in a trial directory, unchanged; ValueError for one that is absolute, climbs or hides."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith(".") for part in parts)
    if not parts or hidden or path.startswith("/") or "/".join(parts) != path or not _PATH.fullmatch(path):
        raise ValueError(f"not a path in a trial directory: {path!r}")
    return path


def _inside(directory: Path, file: Path) -> str:
    """The path of a file in the directory; ValueError when it lies elsewhere, links followed."""
    return _checked_path(file.resolve().relative_to(directory.resolve()).as_posix())


def _stored_name(trial_key: str, path: str, sha256: str) -> str:
    return f"{_checked_key(trial_key)}/{path}.{sha256[:16]}"


def _lies_in(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)


def _paths_in(directory: Path) -> set[str]:
    """Paths of all files in the directory, but hidden ones: another process's downloads, our own list."""
    files = (path for path in directory.rglob("*") if path.is_file() or path.is_symlink())
    names = (path.relative_to(directory).as_posix() for path in files)
    return {name for name in names if not PurePosixPath(name).name.startswith(".")}


# --- lists of files ------------------------------------------------------------------------------------


def _listed(content: bytes, where: str) -> dict[str, str]:
    """SHA-256 by path from the text of a list, every path checked: others may write there."""
    try:
        files = json.loads(content)
        return {_checked_path(path): _checked_sha256(files[path]) for path in files}
    except (ValueError, TypeError) as error:
        raise StorageError(f"{where} is damaged ({error}); delete it and the trial starts anew.") from error


def _checked_sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError(f"not a SHA-256: {text!r}")
    return text


def _known(directory: Path) -> dict[str, str]:
    path = directory / _KNOWN
    return _listed(path.read_bytes(), str(path)) if path.exists() else {}


def _remember(directory: Path, files: Mapping[str, str]) -> None:
    try:
        write_whole(directory / _KNOWN, json.dumps(dict(files)))
    except OSError as error:
        raise _said(error, f"write in {directory}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- failures ------------------------------------------------------------------------------------------


def _persistently(action: Callable[[], _T], what: str, patience_s: float) -> _T:
    """Does it, again and again where waiting may help, for as long as the patience lasts."""
    deadline, wait = time.monotonic() + patience_s, _FIRST_WAIT_S
    while True:
        try:
            return action()
        except (_DamagedError, UserError):
            raise
        except Exception as error:
            if _is_final(error) or time.monotonic() + wait > deadline:
                raise _said(error, what) from error
            _log.warning("Cannot %s (%s); trying again.", what, hidden(str(error)))
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT_S)


def _is_final(error: Exception) -> bool:
    known = (FileNotFoundError, PermissionError, NotADirectoryError, ImportError, TypeError, ValueError)
    return isinstance(error, known) or (isinstance(error, OSError) and error.errno in _FULL)


def _said(error: Exception, what: str) -> StorageError:
    """What could not be done, where and why, and what helps."""
    reason = hidden(str(error)) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        advice = "It is not there: make the bucket or the folder first."
    elif isinstance(error, PermissionError):
        advice = "It may not be used: check the credentials and rights on that machine."
    elif isinstance(error, OSError) and error.errno in _FULL:
        advice = "The disk is full: free some space."
    else:
        advice = "The same command goes on from the last checkpoints once it answers."
    return StorageError(f"{socket.gethostname()} cannot {what}: {reason}. {advice}")
