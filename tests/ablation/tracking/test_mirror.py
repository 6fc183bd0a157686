"""MLflow mirrors the store: everything arrives once, in a readable shape, however late."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ablation.errors import UserError
from ablation.protocol import Checkpointed, Evaluated, Progress
from ablation.store import AttemptRow, Store, TrialRow
from ablation.tracking import mirror as tracking
from ablation.tracking import runs
from ablation.tracking.client import flatten, metric_name, server_address
from ablation.tracking.lease import MirrorBusyError
from ablation.tracking.mirror import Mirror
from ablation.workspace import Workspace

TRIAL, EVALUATION, SECOND = "0123456789ab", "ba9876543210", "000000000002"
NAME = "table3 RetinaNet (#A=1) + ATSS, seed 0"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.db")
    opened.add_study("toy", "smoke", "shapes")
    config = '{"__type__": "Trial", "head": {"__type__": "Head", "convs": 2}, "seed": 0}'
    opened.ensure_trial(TRIAL, NAME, config, 0, "smoke", "shapes", "toy", ("table3", "table4"))
    opened.ensure_evaluation(EVALUATION, TRIAL, "{}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow database: its migrations take seconds, so they run once."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def mirror(store: Store, migrated: bytes, tmp_path: Path) -> Mirror:
    path = tmp_path / "mlflow.db"
    path.write_bytes(migrated)
    return Mirror(store, f"sqlite:///{path}", (tmp_path / "mlruns").as_uri())


def _start(store: Store) -> int:
    invocation = store.start_invocation("ablation run", {"commit": "c0ffee"})
    attempt = store.claim(TRIAL, "me", {"commit": "c0ffee"}, invocation)
    assert attempt is not None
    return attempt


def _evaluate(store: Store, attempt: int, folder: Path) -> None:
    files = {"picture": folder / "detections.png", "checkpoint": folder / "step.pt"}
    for path in files.values():
        path.write_bytes(b"content")
    artifacts = {"picture": str(files["picture"])}
    store.record(
        attempt,
        [
            Checkpointed(20, str(files["checkpoint"]), "0" * 64),
            Evaluated(EVALUATION, {"AP": 39.3, "APS": float("nan")}, artifacts),
        ],
    )


def _runs(mirror: Mirror) -> tuple[MlflowClient, list[object]]:
    client = MlflowClient(mirror.uri)
    experiment = client.get_experiment_by_name("toy smoke")
    assert experiment is not None
    return client, client.search_runs([experiment.experiment_id])


def test_a_finished_attempt_arrives_with_its_curves_numbers_files_and_tags(
    store: Store, mirror: Mirror, tmp_path: Path
) -> None:
    attempt = _start(store)
    store.record(attempt, [Progress(10, 20, {"loss": 2.0}), Progress(20, 20, {"loss": 1.0})])
    _evaluate(store, attempt, tmp_path)
    store.finish(attempt)
    mirror.sync()
    client, runs = _runs(mirror)
    child = next(run for run in runs if run.info.run_name == NAME)
    parent = next(run for run in runs if run is not child)
    assert child.info.status == "FINISHED"
    assert child.data.metrics["AP"] == 39.3 and "APS" not in child.data.metrics
    history = [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "loss")]
    assert history == [(10, 2.0), (20, 1.0)]
    assert child.data.params == {"head": "Head", "head.convs": "2", "seed": "0"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.data.tags["trial_key"], child.data.tags["tables"]) == (TRIAL, "table3, table4")
    assert child.data.tags["commit"] == "c0ffee"
    found = {item.path for item in client.list_artifacts(child.info.run_id)}
    assert found == {"config.json", "evaluation", "checkpoint"}


def test_a_renewed_training_has_its_own_run_and_the_earlier_one_keeps_its_metrics(
    store: Store, mirror: Mirror, tmp_path: Path
) -> None:
    for value in (39.3, 40.1):
        attempt = _start(store)
        store.record(attempt, [Evaluated(EVALUATION, {"AP": value})])
        store.finish(attempt)
        if value == 39.3:
            store.renew({TRIAL: 1})  # before it was mirrored
    mirror.sync()
    numbers = {run.info.run_name: run.data.metrics for run in _runs(mirror)[1] if "seed" in run.data.tags}
    assert numbers == {NAME: {"AP": 39.3}, f"{NAME}, attempt 2": {"AP": 40.1}}


def test_syncing_again_copies_nothing_twice(store: Store, mirror: Mirror) -> None:
    attempt = _start(store)
    store.record(attempt, [Progress(10, 20, {"loss": 2.0})])
    assert mirror.sync() == 1
    assert mirror.sync() == 0
    store.record(attempt, [Progress(20, 20, {"loss": 1.0})])
    assert mirror.sync() == 1
    client, runs = _runs(mirror)
    child = next(run for run in runs if run.info.run_name == NAME)
    assert len(client.get_metric_history(child.info.run_id, "loss")) == 2


def test_nothing_is_lost_while_the_server_is_unreachable(store: Store, mirror: Mirror) -> None:
    away = Mirror(store, "http://127.0.0.1:9")
    attempt = _start(store)
    store.record(attempt, [Progress(10, 20, {"loss": 2.0})])
    store.fail(attempt, "Traceback ...\nDivergedError: the loss is not finite")
    assert not away.try_sync()
    assert away.last_error
    mirror.sync()
    client, runs = _runs(mirror)
    child = next(run for run in runs if run.info.run_name == NAME)
    assert child.info.status == "FAILED"
    assert child.data.metrics["loss"] == 2.0
    assert [item.path for item in client.list_artifacts(child.info.run_id)] == ["config.json", "error.txt"]


def test_a_deleted_experiment_is_restored_for_new_metrics(store: Store, mirror: Mirror) -> None:
    attempt = _start(store)
    mirror.sync()
    client = MlflowClient(mirror.uri)
    client.delete_experiment(mirror._experiments.ids[0])
    store.record(attempt, [Progress(10, 20, {"loss": 2.0})])
    assert not mirror.try_sync()  # finds out
    mirror.sync()
    (run,) = [run for run in _runs(mirror)[1] if run.info.run_name == NAME]
    assert run.data.metrics == {"loss": 2.0}


def test_a_deleted_experiment_that_nothing_more_is_copied_to_stays_deleted(
    store: Store, mirror: Mirror
) -> None:
    store.release(_start(store))
    mirror.sync()
    client = MlflowClient(mirror.uri)
    experiment = mirror._experiments.ids[0]
    client.delete_experiment(experiment)
    Mirror(store, mirror.uri, mirror.artifact_root).sync()
    assert client.get_experiment(experiment).lifecycle_stage == "deleted"


def test_an_experiment_of_the_name_that_keeps_its_files_elsewhere_is_left_alone(
    store: Store, mirror: Mirror
) -> None:
    client = MlflowClient(mirror.uri)
    other = client.create_experiment("toy smoke", artifact_location="/nowhere")
    _start(store)
    with pytest.raises(UserError, match=r"keeps its files in /nowhere.*Rename the experiment"):
        mirror.sync()
    assert client.search_runs([other]) == []
    client.rename_experiment(other, "another's")
    assert mirror.sync(rebuild=True) == 1
    assert len(_runs(mirror)[1]) == 2


def test_another_tracking_store_gets_everything_by_a_rebuild_and_nothing_without(
    store: Store, mirror: Mirror, migrated: bytes, tmp_path: Path
) -> None:
    attempt = _start(store)
    store.record(attempt, [Progress(10, 20, {"loss": 2.0})])
    store.finish(attempt)
    mirror.sync()
    path = tmp_path / "another.db"
    path.write_bytes(migrated)
    another = Mirror(store, f"sqlite:///{path}", mirror.artifact_root)
    with pytest.raises(UserError, match=r"copied to another MLflow than .*sync with --rebuild"):
        another.sync()
    assert another.sync(rebuild=True) == 1
    (run,) = [run for run in _runs(another)[1] if run.info.run_name == NAME]
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 2.0})
    with pytest.raises(UserError, match="copied to another MLflow"):
        mirror.sync()


def test_a_rebuild_where_the_copy_is_already_makes_nothing_twice(store: Store, mirror: Mirror) -> None:
    attempt = _start(store)
    store.record(attempt, [Progress(10, 20, {"loss": 2.0})])
    store.finish(attempt)
    mirror.sync()
    assert Mirror(store, mirror.uri, mirror.artifact_root).sync(rebuild=True) == 1
    client, runs = _runs(mirror)
    (run,) = [run for run in runs if run.info.run_name == NAME]
    assert len(runs) == 2
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1


def test_a_rebuild_leaves_runs_deleted_that_were_deleted_on_purpose(store: Store, mirror: Mirror) -> None:
    store.finish(_start(store))
    mirror.sync()
    (row,) = store.attempts()
    assert row.mlflow_run_id is not None
    mirror.delete_runs([row.mlflow_run_id])
    store.forget_mlflow_runs([row.mlflow_run_id])
    assert mirror.sync(rebuild=True) == 0


def test_an_attempt_whose_run_was_deleted_gets_a_new_one_with_all_of_it(store: Store, mirror: Mirror) -> None:
    attempt = _start(store)
    store.record(attempt, [Progress(10, 20, {"loss": 2.0})])
    mirror.sync()
    client, runs = _runs(mirror)
    for run in runs:
        client.delete_run(run.info.run_id)
    store.record(attempt, [Progress(20, 20, {"loss": 1.0})])
    mirror.sync()
    client, runs = _runs(mirror)
    child = next(run for run in runs if run.info.run_name == NAME)
    history = [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "loss")]
    assert history == [(10, 2.0), (20, 1.0)]


def test_an_attempt_that_cannot_be_copied_does_not_stop_the_others(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _start(store)
    store.release(first)
    second = store.claim(TRIAL, "me", {})
    copy = mirror._runs.copy

    def refuse(attempt: AttemptRow, trial: TrialRow) -> None:
        if attempt.id == first:
            raise ValueError("refused")
        copy(attempt, trial)

    monkeypatch.setattr(mirror._runs, "copy", refuse)
    assert not mirror.try_sync()
    assert mirror.last_error == "ValueError: refused"
    assert [row.id for row in store.attempts_to_mirror()] == [first]
    assert second != first


def test_a_failure_while_a_run_is_made_loses_no_parameters(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(store)
    with monkeypatch.context() as broken:
        broken.setattr(runs, "log_params", lambda *_: (_ for _ in ()).throw(ValueError("away")))
        assert not mirror.try_sync()
    mirror.sync()
    (attempt,) = store.attempts()
    assert attempt.mlflow_run_id is not None
    run = MlflowClient(mirror.uri).get_run(attempt.mlflow_run_id)
    assert run.data.params == {"head": "Head", "head.convs": "2", "seed": "0"}


def test_the_parent_run_of_a_killed_driver_is_ended_and_queried_once(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(store)
    mirror.sync()
    store.reclaim_all()
    mirror.sync()
    assert {run.info.status for run in _runs(mirror)[1]} == {"FINISHED", "KILLED"}
    monkeypatch.setattr(MlflowClient, "search_runs", lambda *_: pytest.fail("looked again"))
    mirror.sync()


def test_a_second_evaluation_by_a_later_attempt_is_not_shown_as_the_first(
    store: Store, mirror: Mirror, tmp_path: Path
) -> None:
    first = _start(store)
    _evaluate(store, first, tmp_path)
    store.finish(first)
    store.ensure_evaluation(SECOND, TRIAL, '{"multi_scale": true}')
    second = _start(store)
    store.record(second, [Evaluated(SECOND, {"AP": 41.0}, {})])
    store.finish(second)
    mirror.sync()
    runs = {run.data.tags.get("attempt"): run.data.metrics for run in _runs(mirror)[1]}
    assert runs["1"]["AP"] == 39.3
    assert runs["2"] == {"evaluation_2/AP": 41.0}


def test_characters_that_mlflow_refuses_are_replaced_in_metric_names() -> None:
    assert metric_name("AP@[.5:.95]") == "AP__.5:.95_"


def test_settings_flatten_to_dotted_names() -> None:
    config = {"__type__": "Trial", "a": {"__type__": "Box", "b": 1}, "c": [1, 2]}
    assert list(flatten(config)) == [("a", "Box"), ("a.b", "1"), ("c", "[1, 2]")]


def test_imported_metrics_are_copied_after_their_attempt(
    store: Store, mirror: Mirror, tmp_path: Path
) -> None:
    attempt = _start(store)
    detections = tmp_path / "detections.json"
    detections.write_text("[]")
    store.record(attempt, [Evaluated(EVALUATION, {}, {"submission": str(detections)})])
    store.finish(attempt)
    mirror.sync()
    returned = tmp_path / "scores.txt"
    returned.write_text("AP 43.6")
    store.import_scores(EVALUATION, {"AP": 43.6}, str(returned))
    assert mirror.sync() == 1
    client, runs = _runs(mirror)
    (run,) = [run for run in runs if "attempt" in run.data.tags]
    assert (run.data.metrics["AP"], run.info.status) == (43.6, "FINISHED")
    assert [f.path for f in client.list_artifacts(run.info.run_id, "evaluation")] == [
        "evaluation/detections.json",
        "evaluation/scores.txt",
    ]
    assert mirror.sync() == 0


def test_a_workspace_that_was_moved_writes_no_files_where_it_was(
    store: Store, mirror: Mirror, tmp_path: Path
) -> None:
    attempt = _start(store)
    mirror.sync()
    before = sorted((tmp_path / "mlruns").rglob("*"))
    store.finish(attempt)
    moved = Mirror(store, mirror.uri, (tmp_path / "elsewhere").as_uri())
    with pytest.raises(UserError, match=r"keeps its files in .*mlruns.*, not in .*elsewhere"):
        moved.sync()
    assert sorted((tmp_path / "mlruns").rglob("*")) == before


# --- one at a time, once -------------------------------------------------------------------------------


def test_a_run_whose_creation_lost_its_reply_is_found_again(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(store)
    create = MlflowClient.create_run

    def lose_the_reply(*arguments: object, **keywords: object) -> None:
        create(*arguments, **keywords)
        raise TimeoutError

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "create_run", lose_the_reply)
        assert not mirror.try_sync()  # makes the parent
        assert not mirror.try_sync()  # finds it, makes the child
    mirror.sync()
    assert len(_runs(mirror)[1]) == 2


def test_a_run_that_was_created_twice_is_kept_once(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(store)
    create = MlflowClient.create_run

    def lose_the_reply(*arguments: object, **keywords: object) -> None:
        create(*arguments, **keywords)
        create(*arguments, **keywords)
        raise TimeoutError

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "create_run", lose_the_reply)
        assert not mirror.try_sync()
    mirror.sync()
    assert len(_runs(mirror)[1]) == 2


def test_concurrent_mirrors_create_each_run_once(store: Store, mirror: Mirror) -> None:
    for _ in range(5):
        attempt = store.claim(TRIAL, "me", {})
        assert attempt is not None
        store.release(attempt)
    mirrors = [Mirror(store, mirror.uri, mirror.artifact_root) for _ in range(3)]
    threads = [threading.Thread(target=one.try_sync, args=(60,)) for one in mirrors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.last_error for one in mirrors] == [None] * 3
    assert len(_runs(mirror)[1]) == 5


@pytest.mark.process
def test_the_lease_of_a_dead_process_is_free(store: Store, mirror: Mirror) -> None:
    _start(store)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = f"{socket.gethostname()}:{{}}:0"
    assert store.lease_mirror(holder.format(os.getpid()), 60)
    with pytest.raises(MirrorBusyError, match="another process"):
        mirror.sync()
    assert store.lease_mirror(holder.format(os.getpid()), 0)
    assert store.lease_mirror(holder.format(ended.pid), 60)
    assert mirror.sync() == 1


def test_a_lease_expires(store: Store) -> None:
    assert store.lease_mirror("elsewhere:1:0", 60)
    assert not store.lease_mirror("elsewhere:2:0", 60)
    assert store.lease_mirror("elsewhere:1:0", 0.01)
    time.sleep(0.05)
    assert store.lease_mirror("elsewhere:2:0", 60)
    assert not store.lease_mirror("elsewhere:1:0", 60)


def test_a_database_server_keeps_the_mirrors_notes(postgres_url: str, tmp_path: Path) -> None:
    shared = Store.open(postgres_url, root=tmp_path)
    shared.add_study("toy", "smoke", "shapes")
    shared.ensure_trial(TRIAL, NAME, "{}", 0, "smoke", "shapes", "toy", ("table3",))
    attempt = _start(shared)
    assert shared.lease_mirror("elsewhere:1:0", 60) and not shared.lease_mirror("elsewhere:2:0", 60)
    assert shared.lease_mirror("elsewhere:1:0", 0.01)
    time.sleep(0.05)
    assert shared.lease_mirror("elsewhere:2:0", 60)
    assert (shared.studies(), shared.experiment("toy", "smoke")) == ([("toy", "smoke")], None)
    shared.set_mlflow_run(attempt, "run")
    shared.mark_mirrored(attempt, 0, "RUNNING")
    assert shared.attempts_to_mirror() == []
    shared.set_experiment("toy", "smoke", "3@1700")
    assert shared.experiment("toy", "smoke") == "3@1700"
    shared.forget_mirror()
    assert shared.experiment("toy", "smoke") is None
    assert [row.mlflow_run_id for row in shared.attempts_to_mirror()] == [None]
    shared.close()


# --- a server that is away ------------------------------------------------------------------------------


def test_the_pauses_for_an_unreachable_server_grow_up_to_a_limit(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            delays.append(timeout)
            return len(delays) == 8

    answers = [False] * 5 + [True] * 3
    monkeypatch.setattr(mirror, "_stop", Stop())
    monkeypatch.setattr(Mirror, "try_sync", lambda *_: answers.pop(0))
    mirror._loop()
    assert delays == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 5.0, 5.0]


def test_the_end_of_a_run_waits_for_a_silent_server_no_longer_than_its_bound(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = _start(store)
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = Mirror(store, f"http://127.0.0.1:{silent.getsockname()[1]}", interval=0.01)
        assert mirror.client  # its import takes seconds
        mirror.start()
        began = time.monotonic()
        store.record(attempt, [Progress(10, 20, {"loss": 2.0})])
        store.finish(attempt)
        mirror.close()
        assert time.monotonic() - began < 5
        assert mirror.last_error == "it took longer than 0 s"
        assert [row.id for row in store.attempts_to_mirror()] == [attempt]


# --- deletion ---------------------------------------------------------------------------------------------


def test_deleting_a_run_deletes_its_files(store: Store, mirror: Mirror, tmp_path: Path) -> None:
    attempt = _start(store)
    _evaluate(store, attempt, tmp_path)
    store.finish(attempt)
    mirror.sync()
    (row,) = store.attempts()
    assert row.mlflow_run_id is not None
    folders = list((tmp_path / "mlruns").glob(f"*/{row.mlflow_run_id}"))
    assert len(folders) == 1
    assert mirror.delete_runs([row.mlflow_run_id, "0" * 32]) == 1
    assert not [path for path in folders[0].rglob("*") if path.is_file()]
    assert [run.info.run_name for run in _runs(mirror)[1]] != [NAME]
    assert mirror.delete_runs([row.mlflow_run_id]) == 1


# --- addresses ---------------------------------------------------------------------------------------------


def test_credentials_in_an_address_are_split_off(store: Store, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path)
    mirror = Mirror.of(store, workspace, "https://ann:s%40crit@mlflow.example:8443/lab/?key=s%40crit")
    assert mirror.uri == "https://mlflow.example:8443/lab"
    assert mirror.login == ("ann", "s@crit")
    assert "crit" not in repr(mirror)


def test_the_address_comes_from_the_flag_or_the_environment_or_is_the_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.at(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert server_address(None) is None
    assert Mirror.of(store, workspace).uri == workspace.mlflow_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@one:5000")
    assert server_address(None) == Mirror.of(store, workspace).uri == "http://one:5000"
    assert server_address("http://two") == Mirror.of(store, workspace, "http://two").uri == "http://two"


@pytest.mark.parametrize(
    "uri",
    ["runs/mlruns", "sqlite:///mlflow.db", "postgresql://ann:secret@host/db", "http://:x@", "http://a:b"],
)
def test_what_is_no_servers_address_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(UserError, match="address is http://HOST:PORT") as error:
        server_address(uri)
    assert "secret" not in str(error.value)
