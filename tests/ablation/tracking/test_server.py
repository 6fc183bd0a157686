"""The mirror against real MLflow servers: killed and brought back, slow, silent, with login."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run

from ablation.protocol import Checkpointed, Evaluated, Progress
from ablation.store import Store
from ablation.tracking import mirror as tracking
from ablation.tracking.mirror import Mirror
from ablation.workspace import Workspace
from benchmarks.mlflow_server import PASSWORD, Proxy, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EVALUATION = "ba9876543210"
COPY = """
import sys
from pathlib import Path
from ablation.store import Store
from ablation.tracking.mirror import Mirror
store = Store.open(Path(sys.argv[1]))
for _ in range(3):
    Mirror(store, sys.argv[2]).sync(patience=120)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("flask_wtf", reason="a server with login needs mlflow[auth]")
    started = Server(tmp_path_factory.mktemp("guarded"), login=True)
    started.start()
    yield started
    started.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    opened = Proxy(server.port)
    yield opened
    opened.close()


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    """A name, and so an experiment, of each test's own."""
    return str(request.node.name)[:60]


@pytest.fixture
def store(tmp_path: Path, study: str) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.db")
    opened.add_study(study, "smoke", "shapes")
    yield opened
    opened.close()


def _trial(store: Store, study: str, number: int = 0) -> int:
    """A running attempt at a trial of its own."""
    key = f"{number:012x}"
    store.ensure_trial(key, f"trial {number}", '{"seed": 0}', 0, "smoke", "shapes", study, ("table3",))
    attempt = store.claim(key, "me", {"commit": "c0ffee"}, store.start_invocation("ablation run", {}))
    assert attempt is not None
    return attempt


def _report(store: Store, attempt: int, step: int) -> None:
    store.record(attempt, [Progress(step, 100, {"loss": 1.0 / step})])


def _runs(mirror: Mirror, study: str) -> list[Run]:
    """The attempts' runs, as the server has them."""
    client = mirror.client
    experiment = client.get_experiment_by_name(f"{study} smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if "trial_key" in run.data.tags]


def _history(mirror: Mirror, run: Run) -> list[int]:
    return [metric.step for metric in mirror.client.get_metric_history(run.info.run_id, "loss")]


def test_numbers_and_files_go_through_the_server(
    server: Server, store: Store, study: str, tmp_path: Path
) -> None:
    attempt = _trial(store, study)
    store.ensure_evaluation(EVALUATION, f"{0:012x}", "{}")
    (tmp_path / "step.pt").write_bytes(os.urandom(3_000_000))
    (tmp_path / "picture.png").write_bytes(b"picture")
    _report(store, attempt, 20)
    evaluated = Evaluated(EVALUATION, {"AP": 39.3}, {"picture": "picture.png"})
    store.record(attempt, [Checkpointed(20, "step.pt", "0" * 64), evaluated])
    store.finish(attempt)
    mirror = Mirror.of(store, Workspace.at(tmp_path), server.uri)
    assert mirror.sync() == 1
    (run,) = _runs(mirror, study)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"AP": 39.3, "loss": 0.05})
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    arrived = download_artifacts(f"{run.info.artifact_uri}/checkpoint/step.pt", tracking_uri=server.uri)
    assert Path(arrived).read_bytes() == (tmp_path / "step.pt").read_bytes()
    assert list((server.folder / "artifacts").rglob(f"{run.info.run_id}/artifacts/evaluation/picture.png"))
    assert mirror.delete_runs([run.info.run_id]) == 1
    assert not list((server.folder / "artifacts").rglob(f"{run.info.run_id}/**/step.pt"))


def test_a_rebuild_copies_a_workspace_from_its_file_to_a_server(
    server: Server, store: Store, study: str, tmp_path: Path
) -> None:
    workspace = Workspace.at(tmp_path)
    for number in range(3):
        attempt = _trial(store, study, number)
        _report(store, attempt, 10)
        store.finish(attempt)
    assert Mirror.of(store, workspace).sync() == 3
    moved = Mirror.of(store, workspace, server.uri)
    assert moved.sync(rebuild=True) == 3
    runs = _runs(moved, study)
    assert {run.data.tags["mlflow.runName"] for run in runs} == {"trial 0", "trial 1", "trial 2"}
    assert all(_history(moved, run) == [10] for run in runs)
    assert Mirror.of(store, workspace, server.uri).sync() == 0


def test_reports_during_an_outage_are_copied_when_the_server_is_back(
    server: Server, store: Store, study: str
) -> None:
    mirror = Mirror(store, server.uri, interval=0.2)
    attempt = _trial(store, study)
    _report(store, attempt, 10)
    mirror.sync()
    server.kill()
    try:
        _report(store, attempt, 20)
        other = _trial(store, study, 1)
        mirror.start()
        time.sleep(1)
        began = time.monotonic()
        store.finish(attempt)
        store.fail(other, "Traceback ...\nDivergedError: the loss is not finite")
        mirror.close()
        assert time.monotonic() - began < 5  # a refused connection costs nothing
        assert mirror.last_error is not None
    finally:
        server.start()
    assert Mirror(store, server.uri).sync() == 2
    runs = {run.data.tags["mlflow.runName"]: run for run in _runs(mirror, study)}
    assert {name: run.info.status for name, run in runs.items()} == {
        "trial 0": "FINISHED",
        "trial 1": "FAILED",
    }
    assert _history(mirror, runs["trial 0"]) == [10, 20]


def test_a_running_driver_copies_again_when_the_server_is_back(
    proxy: Proxy, store: Store, study: str
) -> None:
    attempt = _trial(store, study)
    mirror = Mirror(store, proxy.uri, interval=0.2)
    proxy.away = True
    mirror.start()
    _report(store, attempt, 10)
    deadline = time.monotonic() + 60
    while mirror.last_error is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert mirror.last_error is not None
    proxy.away = False
    while store.attempts_to_mirror() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not store.attempts_to_mirror()
    mirror.close()
    assert mirror.last_error is None


def test_a_silent_server_delays_neither_the_driver_nor_its_end_beyond_the_bound(
    server: Server, proxy: Proxy, store: Store, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 2.0)
    attempt = _trial(store, study)
    mirror = Mirror(store, proxy.uri, interval=0.1)
    mirror.sync()
    proxy.silent = True
    mirror.start()
    began = time.monotonic()
    for step in range(10, 60, 10):
        _report(store, attempt, step)
        store.heartbeat([attempt])
        time.sleep(0.1)
    store.finish(attempt)
    assert time.monotonic() - began < 5
    mirror.close()
    assert time.monotonic() - began < 10
    assert mirror.last_error == "it took longer than 2 s"
    mirror.lease.release()  # as the end of the process gives it back
    later = Mirror(store, server.uri)
    assert later.sync(patience=60) == 1
    (run,) = _runs(later, study)
    assert _history(later, run) == [10, 20, 30, 40, 50]


def test_a_request_that_reaches_a_stopped_server_late_makes_no_second_run(
    server: Server, proxy: Proxy, store: Store, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(store, proxy.uri)
    mirror.sync()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.delay = 1.5  # every request arrives, every reply is too late
    _trial(store, study)
    for _ in range(4):
        assert not mirror.try_sync()
    proxy.delay = 0
    time.sleep(2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    mirror.sync()
    assert len(_runs(mirror, study)) == 1


def test_a_slow_server_slows_no_report(server: Server, proxy: Proxy, store: Store, study: str) -> None:
    attempts = [_trial(store, study, number) for number in range(2)]

    def reports(first: int) -> float:
        began = time.monotonic()
        for step in range(first, first + 50):
            for attempt in attempts:
                _report(store, attempt, step)
            time.sleep(0.02)
        return time.monotonic() - began

    alone = reports(1)
    proxy.delay = 1.0
    mirror = Mirror(store, proxy.uri, interval=0.1)
    assert mirror.client  # its import takes seconds of CPU
    mirror.start()
    beside = reports(51)
    proxy.delay = 0
    mirror.close()
    assert mirror.last_error is None
    # Reports that waited for the server would take 100 s more; benchmarks/tracking.py measures.
    assert beside < alone + 20
    assert all(sorted(_history(mirror, run)) == list(range(1, 101)) for run in _runs(mirror, study))


def test_drivers_on_one_store_make_each_run_once(
    server: Server, store: Store, study: str, tmp_path: Path
) -> None:
    for number in range(4):
        attempt = _trial(store, study, number)
        _report(store, attempt, 10)
    drivers = [
        subprocess.Popen([sys.executable, "-c", COPY, str(tmp_path / "store.db"), server.uri])
        for _ in range(3)
    ]
    assert [driver.wait(timeout=300) for driver in drivers] == [0, 0, 0]
    runs = _runs(Mirror(store, server.uri), study)
    assert sorted(run.data.tags["mlflow.runName"] for run in runs) == [f"trial {n}" for n in range(4)]


# --- login -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores what a test's mirror tells MLflow."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("no_login")
def test_a_server_with_login_takes_name_and_password_from_the_environment(
    guarded: Server, store: Store, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _trial(store, study)
    mirror = Mirror.of(store, Workspace.at(tmp_path), guarded.uri)
    assert not mirror.try_sync()
    assert "not authenticated" in str(mirror.last_error)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert mirror.sync() == 1


@pytest.mark.usefixtures("no_login")
def test_credentials_in_the_address_log_in_and_are_found_nowhere(
    guarded: Server, store: Store, study: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt = _trial(store, study)
    uri = guarded.uri.replace("://", f"://admin:{PASSWORD}@")
    store.end_invocation(store.start_invocation(f"ablation run --mlflow-uri {uri}", {}))
    (tmp_path / "step.pt").write_bytes(b"content")
    store.record(attempt, [Checkpointed(20, "step.pt", "0" * 64)])
    store.finish(attempt)
    mirror = Mirror.of(store, Workspace.at(tmp_path), uri)
    mirror.start()
    mirror.close()
    assert mirror.last_error is None
    (run,) = _runs(mirror, study)
    assert [item.path for item in mirror.client.list_artifacts(run.info.run_id, "checkpoint")]
    wrong = Mirror.of(store, Workspace.at(tmp_path), uri.replace(PASSWORD, f"not-{PASSWORD}"))
    assert not wrong.try_sync()
    shown = "".join(capfd.readouterr()) + repr(mirror) + repr(wrong) + str(wrong.last_error)
    assert PASSWORD not in shown + json.dumps(run.to_dictionary())
    assert PASSWORD.encode() not in (guarded.folder / "mlflow.db").read_bytes()


def test_no_thread_of_a_mirror_outlives_its_close(server: Server, store: Store, study: str) -> None:
    _trial(store, study)
    mirror = Mirror(store, server.uri)
    mirror.start()
    thread = mirror._thread
    mirror.close()
    assert thread is not None and not thread.is_alive()
