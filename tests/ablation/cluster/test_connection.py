"""What there is to run on, and what a trial gets of it."""

import os
import socket
from pathlib import Path

import pytest

from ablation.cluster import connection as cluster
from ablation.cluster.connection import Layout, share
from ablation.errors import UserError
from ablation.resources import Node, Resources
from ablation.run_options import Options


@pytest.mark.parametrize("field", ["concurrency", "workers_per_trial", "micro_batch"])
def test_options_refuse_what_could_never_run(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be >= 1, got 0"):
        Options(**{field: 0})


@pytest.mark.parametrize(
    ("options", "cpus", "gpus", "shared"),
    [
        (Options(), 8, 0, (8, Resources(1, gpus=0.0))),
        (Options(concurrency=1), 8, 0, (1, Resources(1, cpus=8))),
        (Options(workers_per_trial=2), 8, 0, (4, Resources(2, gpus=0.0))),
        (Options(workers_per_trial=4), 2, 0, (1, Resources(4, gpus=0.0))),
        (Options(concurrency=3), 8, 1, (3, Resources(1, cpus=2, gpus=1 / 3))),
        (Options(concurrency=2), 8, 4, (2, Resources(1, cpus=4, gpus=1.0))),
        (Options(cluster="auto"), 96, 8, (8, Resources(1, gpus=1.0))),
        (Options(cluster="auto", workers_per_trial=4), 96, 8, (2, Resources(4, gpus=1.0))),
    ],
)
def test_what_there_is_is_shared_among_the_trials(
    options: Options, cpus: int, gpus: int, shared: tuple[int, Resources]
) -> None:
    assert share(options, cpus, gpus, exclusive_gpus=False) == shared


@pytest.mark.parametrize(
    ("workers", "concurrency", "exclusive_gpus", "shared"),
    [
        (1, None, True, (8, Resources(1, cpus=8, gpus=1.0))),
        (2, None, True, (4, Resources(2, cpus=8, gpus=1.0))),
        (8, None, True, (1, Resources(8, cpus=8, gpus=1.0))),
        (1, 3, True, (3, Resources(1, cpus=21, gpus=1.0))),
        (2, 4, True, (4, Resources(2, cpus=8, gpus=1.0))),
        (1, None, False, (64, Resources(1, cpus=1, gpus=1 / 8))),
        (2, None, False, (4, Resources(2, cpus=8, gpus=1.0))),
        (8, None, False, (1, Resources(8, cpus=8, gpus=1.0))),
        (1, 16, False, (16, Resources(1, cpus=4, gpus=1 / 2))),
        (2, 3, False, (3, Resources(2, cpus=10, gpus=1.0))),
    ],
)
def test_64_cpus_and_8_gpus_are_shared_by_what_a_worker_needs(
    workers: int, concurrency: int | None, exclusive_gpus: bool, shared: tuple[int, Resources]
) -> None:
    options = Options(concurrency=concurrency, workers_per_trial=workers)
    assert share(options, 64, 8, exclusive_gpus=exclusive_gpus) == shared


@pytest.mark.parametrize("options", [Options(), Options(workers_per_trial=2), Options(concurrency=3)])
def test_whole_gpus_mean_nothing_where_there_are_none(options: Options) -> None:
    assert share(options, 8, 0, exclusive_gpus=True) == share(options, 8, 0, exclusive_gpus=False)


@pytest.mark.parametrize(
    ("options", "exclusive_gpus", "said"),
    [
        (Options(cluster="auto", workers_per_trial=16), True, "needs 16 GPUs; the cluster has 8"),
        (Options(workers_per_trial=16), True, "needs 16 GPUs; this machine has 8"),
        (Options(workers_per_trial=16), False, "needs 16 GPUs; this machine has 8"),
        (Options(concurrency=9), True, "--concurrency 9 needs 9 GPUs.*there are 8.*at most 8"),
        (Options(concurrency=9, cluster="auto"), True, "needs 9 GPUs"),
        (Options(concurrency=5, workers_per_trial=2), True, "needs 10 GPUs.*at most 4"),
        (Options(concurrency=5, workers_per_trial=2), False, "needs 10 GPUs.*at most 4"),
    ],
)
def test_what_would_never_find_its_gpus_is_refused(options: Options, exclusive_gpus: bool, said: str) -> None:
    with pytest.raises(UserError, match=said):
        share(options, 64, 8, exclusive_gpus=exclusive_gpus)


def test_a_cluster_without_room_for_a_group_is_refused() -> None:
    with pytest.raises(UserError, match="needs 9 CPUs; the cluster has 8"):
        share(Options(cluster="auto", workers_per_trial=9), 8, 0, exclusive_gpus=False)


@pytest.mark.parametrize("field", ["max_retries", "grace", "hang_after"])
def test_options_refuse_a_negative_time_or_number(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be >= 0, got -1"):
        Options(**{field: -1})


def test_a_trial_that_asks_for_nothing_gets_a_fair_share_and_one_that_asks_gets_it() -> None:
    layout = Layout((Node("a", 8, 2, 0),), Resources(gpus=0.5), 4)
    assert layout.resources(None) == Resources(gpus=0.5)
    assert layout.resources(Resources(2, 4, 1)) == Resources(2, 4, 1)


def test_the_users_number_of_workers_replaces_the_profiles() -> None:
    layout = Layout((Node("a", 8, 8, 0),), Resources(4, gpus=1), None, workers=4)
    assert layout.resources(Resources(1, 2, 1)) == Resources(4, 2, 1)


def test_no_trial_waits_for_a_gpu_where_there_is_none_at_all() -> None:
    layout = Layout((Node("a", 8, 0, 0),), Resources(), None)
    assert layout.resources(Resources(2, 4, 1)) == Resources(2, 4, 0)


def test_an_address_of_ray_client_is_refused_with_what_to_give_instead() -> None:
    with (
        pytest.raises(UserError, match=r"ray://head:10001 .* \(HOST:6379\)"),
        cluster.ray_for(Options(cluster="ray://head:10001"), [], exclusive_gpus=False),
    ):
        pass


def test_a_cluster_that_does_not_answer_is_an_error_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(UserError, match=f"No Ray cluster answers at '{address}': nothing listens there"),
            cluster.ray_for(Options(cluster=address), [], exclusive_gpus=False),
        ):
            pass


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "before")
    monkeypatch.delenv("TWO", raising=False)
    monkeypatch.setenv("THREE", "before")
    with cluster.environment({"ONE": "1", "TWO": "2", "THREE": None}):
        assert os.environ["ONE"] + os.environ["TWO"] == "12"
        assert "THREE" not in os.environ
    assert os.environ["ONE"] == os.environ["THREE"] == "before"
    assert "TWO" not in os.environ


def test_the_niceness_of_a_cluster_that_is_there_cannot_be_given() -> None:
    with (
        pytest.raises(UserError, match=r"RAY_worker_niceness=5 ray start"),
        cluster.ray_for(Options(cluster="auto", niceness=5), [], exclusive_gpus=False),
    ):
        pass


def test_options_refuse_a_niceness_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="niceness must be from 0 to 19, got 20"):
        Options(niceness=20)


@pytest.mark.parametrize(("said", "limit"), [("8589934592\n", 8 << 30), ("max\n", None)])
def test_a_container_has_the_memory_that_it_may_use(
    said: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "memory.max").write_text(said)
    monkeypatch.setattr(cluster, "CGROUP_MEMORY_FILES", (file, tmp_path / "absent"))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 << 18}.__getitem__)
    (machine,) = cluster.here(Options(), [], 0, exclusive_gpus=False).nodes
    assert machine.memory == (limit or 16 << 30) - cluster.OBJECT_STORE_BYTES


@pytest.mark.parametrize(("visible", "number"), [(None, 3), ("", 0), ("1,2", 2), ("0,1,2,3,4", 3)])
def test_gpus_are_counted_as_far_as_they_may_be_seen(
    visible: str | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path(f"/dev/nvidia{i}") for i in range(3)]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cluster.gpus_here() == number
