"""MLflow mirrors the store: everything arrives once, in a readable shape, however late."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ablation.protocol import Checkpointed, Evaluated, Progress
from ablation.store import AttemptRow, Store, TrialRow
from ablation.tracking import Mirror, flatten, metric_name

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


def test_nothing_is_lost_while_the_server_is_away(store: Store, mirror: Mirror) -> None:
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


def test_a_deleted_experiment_comes_back(store: Store, mirror: Mirror) -> None:
    client = MlflowClient(mirror.uri)
    client.delete_experiment(client.create_experiment("toy smoke"))
    _start(store)
    mirror.sync()
    assert len(_runs(mirror)[1]) == 2


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


def test_an_attempt_that_cannot_be_copied_holds_up_no_other(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _start(store)
    store.release(first)
    second = store.claim(TRIAL, "me", {})
    copy = mirror._copy

    def refuse(client: MlflowClient, attempt: AttemptRow, trial: TrialRow) -> None:
        if attempt.id == first:
            raise ValueError("refused")
        copy(client, attempt, trial)

    monkeypatch.setattr(mirror, "_copy", refuse)
    assert not mirror.try_sync()
    assert mirror.last_error == "ValueError: refused"
    assert [row.id for row in store.attempts_to_mirror()] == [first]
    assert second != first


def test_a_failure_while_a_run_is_made_loses_no_parameters(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(store)
    with monkeypatch.context() as broken:
        broken.setattr(Mirror, "_log_params", lambda *_: (_ for _ in ()).throw(ValueError("away")))
        assert not mirror.try_sync()
    mirror.sync()
    (attempt,) = store.attempts()
    assert attempt.mlflow_run_id is not None
    run = MlflowClient(mirror.uri).get_run(attempt.mlflow_run_id)
    assert run.data.params == {"head": "Head", "head.convs": "2", "seed": "0"}


def test_the_command_of_a_killed_driver_ends_with_the_next_one_and_is_looked_at_once(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(store)
    mirror.sync()
    store.reclaim_all()
    mirror.sync()
    assert {run.info.status for run in _runs(mirror)[1]} == {"FINISHED", "KILLED"}
    monkeypatch.setattr(MlflowClient, "get_run", lambda *_: pytest.fail("looked again"))
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


def test_metric_names_lose_what_mlflow_refuses() -> None:
    assert metric_name("AP@[.5:.95]") == "AP__.5:.95_"


def test_settings_flatten_to_dotted_names() -> None:
    config = {"__type__": "Trial", "a": {"__type__": "Box", "b": 1}, "c": [1, 2]}
    assert list(flatten(config)) == [("a", "Box"), ("a.b", "1"), ("c", "[1, 2]")]


def test_imported_numbers_arrive_though_the_attempt_was_copied_before(
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
