"""Both kinds of storage; the remote one over file://, with a file system that fails when told to."""

import errno
import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from ablation.errors import UserError
from ablation.protocol import Checkpointed, Evaluated, Noticed
from ablation.storage import Remote, SharedFolder, Storage, StorageError, filesystem, storage_at
from ablation.storage import remote as remote_module
from ablation.storage.names import HANG, LOG
from ablation.storage.reports import files_of, moved

KEY, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "bucket"
    folder.mkdir()
    return folder


@pytest.fixture
def remote(place: Path) -> Remote:
    made = storage_at(f"file://{place}")
    assert isinstance(made, Remote)
    return made


@pytest.fixture(params=["shared", "remote"])
def storage(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(remote_module, "STOP_POLL_S", 0.0)
    return storage_at(place if request.param == "shared" else f"file://{place}")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return _directory(tmp_path / "here" / KEY)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return _directory(tmp_path / "there" / KEY)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries for half a second, with short waits."""
    monkeypatch.setattr(remote_module, "WORKER_RETRY_S", 0.5)
    monkeypatch.setattr(remote_module, "DRIVER_RETRY_S", 0.5)
    monkeypatch.setattr(filesystem, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(filesystem, "LONGEST_WAIT_S", 0.05)


class Faults:
    """Makes a method of the local file system fail, as often as told, perhaps after half its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.calls = 0

    def inject(self, method: str, error: Exception, times: int, half: bool = False) -> None:
        real = getattr(LocalFileSystem, method)

        def faulty(fs: LocalFileSystem, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls > times:
                return real(fs, *arguments, **named)
            if half:
                source, target = map(str, arguments[:2])
                content = Path(source).read_bytes()
                Path(fs._strip_protocol(target)).write_bytes(content[: len(content) // 2])
            raise error

        self.monkeypatch.setattr(LocalFileSystem, method, faulty)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


def _directory(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _write(directory: Path, path: str, text: str = "bytes") -> Path:
    file = directory / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def _contents(directory: Path) -> dict[str, str]:
    files = [p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {p.relative_to(directory).as_posix(): p.read_text() for p in files}


# --- what both kinds do ----------------------------------------------------------------------------------


def test_a_trial_is_asked_to_stop_until_the_request_is_taken_back(storage: Storage) -> None:
    assert not storage.stop_asked(KEY)
    storage.ask_to_stop(KEY)
    assert storage.stop_asked(KEY) and not storage.stop_asked(OTHER)
    storage.ask_to_stop(KEY)
    storage.clear_stop(KEY)
    storage.clear_stop(KEY)
    assert not storage.stop_asked(KEY)


def test_a_storage_in_order_is_probed_without_a_trace(storage: Storage, place: Path) -> None:
    storage.probe()
    assert list(place.iterdir()) == []


def test_a_marker_that_cannot_be_written_is_an_error_of_the_storage(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    (tmp_path / KEY).write_text("a file where the trial's folder should be")
    for action in (storage.ask_to_stop, storage.clear_stop):
        with pytest.raises(StorageError, match="shared folder"):
            action(KEY)


def test_a_storage_travels_to_workers(storage: Storage) -> None:
    assert pickle.loads(pickle.dumps(storage)) == storage


@pytest.mark.parametrize("key", ["../../etc", "", "0123456789AB", "0123456789ab/.."])
def test_what_is_no_trial_key_is_refused(storage: Storage, key: str) -> None:
    for action in (storage.directory, storage.ask_to_stop, storage.clear_stop):
        with pytest.raises(ValueError, match="a trial key is"):
            action(key)


@pytest.mark.parametrize(
    "path", ["../other", "/etc/passwd", "a/../../b", "", ".", "a//b", ".hidden", "a\x00b"]
)
def test_no_path_leaves_the_trials_directory(storage: Storage, here: Path, path: str) -> None:
    with pytest.raises(ValueError, match="not a path in a trial directory"):
        storage.download(KEY, path, here)


def test_the_shared_folder_moves_nothing(place: Path) -> None:
    storage = storage_at(place)
    directory = storage.directory(KEY)
    file = _write(directory, "evaluations/e/detections.npz")
    assert storage.fetch(KEY, directory) == []
    storage.upload(KEY, directory, [file])
    storage.prune(KEY, directory)
    storage.delete(KEY, ["evaluations/e/detections.npz"])
    assert storage.download(KEY, "evaluations/e/detections.npz", directory) == file
    assert _contents(place) == {f"{KEY}/evaluations/e/detections.npz": "bytes"}


# --- which kind --------------------------------------------------------------------------------------------


def test_a_path_is_a_shared_folder_and_a_text_a_place_outside_the_workspace(place: Path) -> None:
    assert storage_at(place) == SharedFolder(place)
    assert storage_at(str(place)) == Remote(f"file://{place}")
    assert storage_at(f"file://{place}") == Remote(f"file://{place}")


@pytest.mark.parametrize("url", ["memory://x", "s3://", "simplecache::file:///x", "nothing://bucket/x"])
def test_a_url_that_no_worker_could_use_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--storage"):
        storage_at(url)


def test_a_password_in_the_url_is_never_shown() -> None:
    remote = Remote("ftp://me:secret@127.0.0.1:1/folder")
    assert "secret" not in repr(remote) and remote.shown == "ftp://***@127.0.0.1:1/folder"
    with pytest.raises(StorageError) as caught:
        remote.probe()
    assert "secret" not in str(caught.value)


# --- there and back ----------------------------------------------------------------------------------------


def test_another_machine_gets_exactly_what_was_stored(remote: Remote, here: Path, there: Path) -> None:
    files = [_write(here, "checkpoints/step_1.pt", "one"), _write(here, "evaluations/e/matches.npz", "two")]
    _write(here, "not-reported.txt")
    remote.upload(KEY, here, files)
    _write(there, "checkpoints/step_7.pt", "an attempt that was lost wrote this")
    _write(there, LOG, "the harness is writing this")
    _write(there, f"{HANG}.123", "and this")
    assert remote.fetch(KEY, there) == []
    assert _contents(there) == {
        "checkpoints/step_1.pt": "one",
        "evaluations/e/matches.npz": "two",
        LOG: "the harness is writing this",
        f"{HANG}.123": "and this",
    }


def test_of_a_training_begun_anew_only_its_own_folder_and_the_log_are_fetched(
    remote: Remote, here: Path, there: Path, place: Path
) -> None:
    names = (
        LOG,
        "checkpoints/step_9.pt",
        "attempt-2/checkpoints/step_1.pt",
        "attempt-20/checkpoints/step_1.pt",
    )
    remote.upload(KEY, here, [_write(here, name) for name in names])
    assert remote.fetch(KEY, there, "attempt-2") == []
    assert sorted(_contents(there)) == ["attempt-2/checkpoints/step_1.pt", LOG]
    remote.upload(KEY, there, [_write(there, "attempt-2/checkpoints/step_2.pt")])
    remote.prune(KEY, there)
    assert (place / KEY / "checkpoints").is_dir(), "what is not fetched is not removed"


def test_a_trial_that_stored_nothing_starts_with_an_empty_directory(remote: Remote, here: Path) -> None:
    _write(here, "checkpoints/step_7.pt")
    assert remote.fetch(KEY, here) == []
    assert _contents(here) == {}


def test_a_file_that_is_there_is_moved_neither_up_nor_down(
    remote: Remote, here: Path, there: Path, faults: Faults
) -> None:
    file = _write(here, "checkpoints/step_1.pt")
    remote.upload(KEY, here, [file])
    remote.fetch(KEY, there)
    for method in ("put_file", "get_file"):
        faults.inject(method, AssertionError(f"{method} is not wanted"), times=100)
    remote.upload(KEY, here, [file])
    remote.fetch(KEY, there)
    assert remote.download(KEY, "checkpoints/step_1.pt", there) == there / "checkpoints/step_1.pt"


def test_new_bytes_under_an_old_name_replace_the_old_ones(
    remote: Remote, here: Path, there: Path, place: Path
) -> None:
    for text in ("one", "two"):
        remote.upload(KEY, here, [_write(here, "checkpoint.json", text)])
    remote.fetch(KEY, there)
    assert _contents(there) == {"checkpoint.json": "two"}
    assert len(list(place.glob(f"{KEY}/checkpoint.json.*"))) == 1


def test_the_driver_gets_one_file(remote: Remote, here: Path, there: Path) -> None:
    files = [_write(here, f"evaluations/e/{name}", name) for name in ("matches.npz", "bootstrap.npz")]
    remote.upload(KEY, here, files)
    assert remote.download(KEY, "evaluations/e/bootstrap.npz", there).read_text() == "bootstrap.npz"
    assert list(_contents(there)) == ["evaluations/e/bootstrap.npz"]
    with pytest.raises(StorageError, match="has no evaluations/e/other of trial 0123456789ab"):
        remote.download(KEY, "evaluations/e/other", there)


def test_what_has_gone_here_goes_there_too(remote: Remote, here: Path, there: Path, place: Path) -> None:
    one, two = (_write(here, f"checkpoints/step_{step}.pt", str(step)) for step in (1, 2))
    remote.upload(KEY, here, [one])
    one.unlink()
    remote.upload(KEY, here, [two])
    remote.prune(KEY, here)
    remote.fetch(KEY, there)
    assert list(_contents(there)) == ["checkpoints/step_2.pt"]
    assert len(list((place / KEY / "checkpoints").iterdir())) == 1


def test_a_lost_attempt_that_still_runs_deletes_nothing_of_the_new_one(
    remote: Remote, here: Path, there: Path, tmp_path: Path
) -> None:
    old = _write(here, "checkpoints/step_1.pt", "1")
    remote.upload(KEY, here, [old])
    remote.fetch(KEY, there)
    remote.upload(KEY, there, [_write(there, "checkpoints/step_2.pt", "2")])
    old.unlink()
    remote.upload(KEY, here, [_write(here, "checkpoints/step_9.pt", "the lost one's")])
    remote.prune(KEY, here)
    fresh = _directory(tmp_path / "fresh")
    remote.fetch(KEY, fresh)
    assert "checkpoints/step_2.pt" in _contents(fresh)


def test_the_driver_discards_files_by_name(remote: Remote, here: Path, place: Path) -> None:
    remote.upload(KEY, here, [_write(here, "a/one"), _write(here, "two")])
    remote.delete(KEY, ["a/one", "never/was"])
    assert json.loads((place / KEY / "files.json").read_text()).keys() == {"two"}
    assert list((place / KEY / "a").iterdir()) == []


def test_a_file_outside_the_directory_is_not_stored(remote: Remote, here: Path, there: Path) -> None:
    link = here / "link"
    link.symlink_to(_write(there, "secret"))
    for file in (there / "secret", here / ".." / "x", link):
        with pytest.raises(ValueError, match=r"not in the subpath|not a path"):
            remote.upload(KEY, here, [file])


def test_each_user_and_place_has_scratch_directories_of_its_own(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = remote.directory(KEY)
    assert directory.is_dir() and directory == remote.directory(KEY)
    assert directory != Remote("file:///elsewhere").directory(KEY)
    assert (tmp_path / f"ablation-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 4_242)
    (tmp_path / "ablation-4242").mkdir()
    with pytest.raises(StorageError, match="belongs to another user"):
        remote.directory(KEY)


# --- reports ---------------------------------------------------------------------------------------------


def test_the_files_of_a_report_are_found_and_moved(here: Path, there: Path) -> None:
    checkpoint = Checkpointed(3, str(here / "checkpoints/c.pt"), "ab")
    evaluated = Evaluated("e", {"AP": 1.0}, {"matches": str(here / "evaluations/e/m.npz")})
    assert files_of(checkpoint) == [here / "checkpoints/c.pt"]
    assert files_of(evaluated) == [here / "evaluations/e/m.npz"]
    assert files_of(Noticed("x")) == []
    assert moved(checkpoint, here, there) == Checkpointed(3, str(there / "checkpoints/c.pt"), "ab")
    assert moved(evaluated, here, there) == Evaluated(
        "e", {"AP": 1.0}, {"matches": str(there / "evaluations/e/m.npz")}
    )
    assert moved(Noticed("x"), here, there) == Noticed("x")


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_a_network_that_goes_away_in_the_middle_of_an_upload_is_waited_for(
    remote: Remote, here: Path, there: Path, faults: Faults, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "WORKER_RETRY_S", 60.0)
    faults.inject("put_file", ConnectionError("reset by peer"), times=3, half=True)
    remote.upload(KEY, here, [_write(here, "checkpoints/step_1.pt", "a long checkpoint")])
    assert faults.calls == 4
    remote.fetch(KEY, there)
    assert _contents(there) == {"checkpoints/step_1.pt": "a long checkpoint"}


@pytest.mark.usefixtures("hasty")
def test_half_an_upload_is_never_taken_for_a_file(
    remote: Remote, here: Path, there: Path, place: Path, faults: Faults
) -> None:
    remote.upload(KEY, here, [_write(here, "checkpoints/step_1.pt", "good")])
    faults.inject("put_file", ConnectionError("gone for good"), times=1_000, half=True)
    with pytest.raises(
        StorageError, match=r"cannot store checkpoints/step_2.pt in the storage .*gone for good"
    ):
        remote.upload(KEY, here, [_write(here, "checkpoints/step_2.pt", "a long checkpoint")])
    assert list((place / KEY / "checkpoints").glob("step_2*"))  # half of it lies there
    remote.fetch(KEY, there)
    assert _contents(there) == {"checkpoints/step_1.pt": "good"}


@pytest.mark.parametrize("method", ["pipe_file", "mv"])
@pytest.mark.usefixtures("hasty")
def test_an_upload_whose_list_is_not_replaced_changes_nothing(
    remote: Remote, here: Path, there: Path, faults: Faults, method: str
) -> None:
    remote.upload(KEY, here, [_write(here, "checkpoint.json", "one")])
    faults.inject(method, ConnectionError("gone"), times=1_000)
    with pytest.raises(StorageError):
        remote.upload(KEY, here, [_write(here, "checkpoint.json", "two")])
    remote.fetch(KEY, there)
    assert _contents(there) == {"checkpoint.json": "one"}


def test_a_file_damaged_in_the_storage_is_passed_over_and_said(
    remote: Remote, here: Path, there: Path, place: Path
) -> None:
    files = [_write(here, f"checkpoints/step_{step}.pt", f"step {step}") for step in (1, 2, 3)]
    remote.upload(KEY, here, files)
    for step, damage in ((2, lambda p: p.write_text("ste")), (3, lambda p: p.unlink())):
        damage(next((place / KEY / "checkpoints").glob(f"step_{step}*")))
    notices = remote.fetch(KEY, there)
    assert notices == [
        f"checkpoints/step_2.pt of trial {KEY} does not have its checksum",
        f"checkpoints/step_3.pt of trial {KEY} is missing",
    ]
    assert list(_contents(there)) == ["checkpoints/step_1.pt"]
    with pytest.raises(StorageError, match="does not have its checksum"):
        remote.download(KEY, "checkpoints/step_2.pt", there)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"../../x": "%s"}' % ("0" * 64),
        '{"/etc/x": "%s"}' % ("0" * 64),
        '{"a": "b/../c"}',
        '{"a": 1}',
    ],
)
def test_a_list_that_others_wrote_is_read_with_suspicion(
    remote: Remote, here: Path, there: Path, place: Path, text: str
) -> None:
    remote.upload(KEY, here, [_write(here, "x")])
    (place / KEY / "files.json").write_text(text)
    with pytest.raises(StorageError, match=r"files.json is damaged"):
        remote.fetch(KEY, there)
    assert _contents(there) == {}


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError(errno.EACCES, "Access Denied"), "check the credentials"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
    ],
)
def test_what_waiting_cannot_help_is_said_at_once(
    remote: Remote, here: Path, faults: Faults, error: Exception, advice: str
) -> None:
    faults.inject("put_file", error, times=1_000)
    with pytest.raises(StorageError, match=advice):
        remote.upload(KEY, here, [_write(here, "x")])
    assert faults.calls == 1


def test_a_disk_that_is_full_here_leaves_no_half_file(
    remote: Remote, here: Path, there: Path, faults: Faults
) -> None:
    remote.upload(KEY, here, [_write(here, "checkpoints/step_1.pt")])
    faults.inject("get_file", OSError(errno.ENOSPC, "No space left on device"), times=1_000)
    with pytest.raises(StorageError, match="The disk is full"):
        remote.fetch(KEY, there)
    assert [path for path in there.rglob("*") if path.is_file()] == []


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path, here: Path) -> None:
    missing = tmp_path / "not-mounted"
    storage = storage_at(f"file://{missing}")
    for action in (storage.probe, lambda: storage.upload(KEY, here, [_write(here, "x")])):
        with pytest.raises(StorageError, match="make the bucket or the folder first"):
            action()
    with pytest.raises(StorageError, match="make the bucket or the folder first"):
        storage_at(missing).probe()
    assert not missing.exists()


@pytest.mark.usefixtures("hasty")
def test_a_stop_that_cannot_be_looked_for_is_not_asked(remote: Remote, faults: Faults) -> None:
    remote.ask_to_stop(KEY)
    faults.inject("exists", ConnectionError("away"), times=1_000)
    assert not remote.stop_asked(KEY)


def test_the_remote_stop_marker_is_not_looked_for_at_every_step(remote: Remote, faults: Faults) -> None:
    faults.inject("exists", ConnectionError("away"), times=0)
    assert not any(remote.stop_asked(KEY) for _ in range(100))
    assert faults.calls == 1


def test_a_stop_is_over_for_a_process_that_saw_it_once_the_driver_has_taken_it_back(place: Path) -> None:
    """It may begin the trial's next attempt within moments."""
    driver, worker = storage_at(f"file://{place}"), storage_at(f"file://{place}")
    driver.ask_to_stop(KEY)
    assert worker.stop_asked(KEY)
    driver.clear_stop(KEY)
    assert not worker.stop_asked(KEY)


def test_a_stop_is_asked_for_once_because_the_driver_asks_again(remote: Remote, faults: Faults) -> None:
    faults.inject("pipe_file", ConnectionError("away"), times=1_000)
    with pytest.raises(StorageError):
        remote.ask_to_stop(KEY)
    assert faults.calls == 1


def test_a_shared_folder_that_cannot_be_looked_into_asks_nobody_to_stop(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "exists", stale)
    assert not storage_at(place).stop_asked(KEY)


def test_a_write_that_fails_leaves_nothing_behind(remote: Remote, place: Path, faults: Faults) -> None:
    faults.inject("mv", ConnectionError("away"), times=1)
    with pytest.raises(StorageError):
        remote.ask_to_stop(KEY)
    assert [path for path in place.rglob("*") if path.is_file()] == []


def test_readers_never_see_a_half_written_list(remote: Remote, here: Path, tmp_path: Path) -> None:
    files = [_write(here, f"file_{number}", str(number)) for number in range(20)]
    over, problems = threading.Event(), []

    def read(directory: Path) -> None:
        while not over.is_set():
            problems.extend(remote.fetch(KEY, directory))

    readers = [threading.Thread(target=read, args=(_directory(tmp_path / str(n)),)) for n in range(3)]
    for reader in readers:
        reader.start()
    for file in files:
        remote.upload(KEY, here, [file])
    over.set()
    for reader in readers:
        reader.join()
    assert problems == []


def test_two_processes_may_fetch_into_one_directory(remote: Remote, here: Path, there: Path) -> None:
    files = [_write(here, f"file_{number}", str(number) * 1_000) for number in range(20)]
    remote.upload(KEY, here, files)
    failed: list[Exception] = []

    def fetch() -> None:
        try:
            assert remote.fetch(KEY, there) == []
        except Exception as error:
            failed.append(error)

    fetchers = [threading.Thread(target=fetch) for _ in range(4)]
    for fetcher in fetchers:
        fetcher.start()
    for fetcher in fetchers:
        fetcher.join()
    assert failed == [] and _contents(there) == _contents(here)
