"""The driver: its book-keeping alone, and real Ray with trials that fail, die and are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ablation import scheduler
from ablation.display import Board, PlainDisplay
from ablation.errors import UserError
from ablation.protocol import Checkpointed, Evaluated, Progress, to_wire
from ablation.scheduler import Desk, Layout, Options, share
from ablation.store import AttemptRow, Store
from ablation.worker import FAILED
from ablation.workspace import Workspace
from tests.ablation import toy_driver
from tests.ablation.toy_driver import Toy, planned

PATIENCE_S = 120


# --- without Ray ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["concurrency", "workers_per_trial", "micro_batch"])
def test_options_refuse_what_could_never_run(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be >= 1, got 0"):
        Options(**{field: 0})


@pytest.mark.parametrize(
    ("options", "cpus", "gpus", "layout"),
    [
        (Options(), 8, 0, Layout(8, 1, 0.0)),
        (Options(workers_per_trial=2), 8, 0, Layout(4, 2, 0.0)),
        (Options(workers_per_trial=4), 2, 0, Layout(1, 4, 0.0)),
        (Options(concurrency=3), 8, 1, Layout(3, 1, 1 / 3)),
        (Options(concurrency=2), 8, 4, Layout(2, 1, 1.0)),
        (Options(cluster="auto"), 96, 8, Layout(8, 1, 1.0)),
        (Options(cluster="auto", workers_per_trial=4), 96, 8, Layout(2, 4, 1.0)),
    ],
)
def test_what_there_is_is_shared_among_the_trials(
    options: Options, cpus: int, gpus: int, layout: Layout
) -> None:
    assert share(options, cpus, gpus, whole_gpus=False) == layout


@pytest.mark.parametrize(
    ("workers", "concurrency", "whole_gpus", "layout"),
    [
        (1, None, True, Layout(8, 1, 1.0)),
        (2, None, True, Layout(4, 2, 1.0)),
        (8, None, True, Layout(1, 8, 1.0)),
        (1, 3, True, Layout(3, 1, 1.0)),
        (2, 4, True, Layout(4, 2, 1.0)),
        (1, None, False, Layout(64, 1, 1 / 8)),
        (2, None, False, Layout(4, 2, 1.0)),
        (8, None, False, Layout(1, 8, 1.0)),
        (1, 16, False, Layout(16, 1, 1 / 2)),
        (2, 3, False, Layout(3, 2, 1.0)),
    ],
)
def test_64_cpus_and_8_gpus_are_shared_by_what_a_worker_needs(
    workers: int, concurrency: int | None, whole_gpus: bool, layout: Layout
) -> None:
    options = Options(concurrency=concurrency, workers_per_trial=workers)
    assert share(options, 64, 8, whole_gpus=whole_gpus) == layout


@pytest.mark.parametrize("options", [Options(), Options(workers_per_trial=2), Options(concurrency=3)])
def test_whole_gpus_mean_nothing_where_there_are_none(options: Options) -> None:
    assert share(options, 8, 0, whole_gpus=True) == share(options, 8, 0, whole_gpus=False)


@pytest.mark.parametrize(
    ("options", "whole_gpus", "said"),
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
def test_what_would_never_find_its_gpus_is_refused(options: Options, whole_gpus: bool, said: str) -> None:
    with pytest.raises(UserError, match=said):
        share(options, 64, 8, whole_gpus=whole_gpus)


def test_a_cluster_without_room_for_a_group_is_refused() -> None:
    with pytest.raises(UserError, match="needs 9 CPUs; the cluster has 8"):
        share(Options(cluster="auto", workers_per_trial=9), 8, 0, whole_gpus=False)


@pytest.mark.parametrize(("visible", "count"), [(None, 4), (["0", "2"], 2), ([], 0), (list("012345"), 4)])
def test_the_gpus_here_are_those_that_ray_would_find(
    visible: list[str] | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", staticmethod(lambda: 4))
    monkeypatch.setattr(manager, "get_current_process_visible_accelerator_ids", staticmethod(lambda: visible))
    assert scheduler._gpus_here() == count


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.db")


@pytest.fixture
def desk(store: Store) -> Desk:
    plan = planned([Toy("one"), Toy("two")], store)
    return Desk(plan.work(), store, PlainDisplay(Board(plan), lambda line: None), {})


def states(store: Store, desk: Desk) -> list[tuple[str, list[str]]]:
    rows = store.trial_states()
    return [(rows[t.key].state, [a.state for a in store.attempts([t.key])]) for t in desk.work]


def test_a_trial_is_claimed_recorded_and_finished(store: Store, desk: Desk) -> None:
    wanted = desk.work[0].evaluations[0].key
    desk.start(0)
    desk.receive(0, to_wire(Progress(4, 4, {"loss": 0.5})))
    desk.receive(0, to_wire(Evaluated(wanted, {"AP": 40.0})))
    desk.finish(0)
    assert states(store, desk)[0] == ("COMPLETE", ["COMPLETE"])
    assert store.evaluations([wanted])[wanted].metrics == {"AP": 40.0}
    assert desk.summary(1.0).finished == (desk.work[0].key,)


def test_a_trial_that_reported_its_failure_is_not_finished_when_its_process_goes_on(
    store: Store, desk: Desk
) -> None:
    desk.start(0)
    desk.receive(0, {"kind": FAILED, "error": "ValueError: broken"})
    desk.finish(0)
    assert states(store, desk)[0] == ("FAILED", ["FAILED"])
    assert desk.summary(1.0).failed == {desk.work[0].key: "ValueError: broken"}


def test_a_lost_trial_starts_again_as_a_new_attempt(store: Store, desk: Desk) -> None:
    desk.start(0)
    desk.lose(0, "killed")
    desk.start(0)
    assert states(store, desk)[0] == ("RUNNING", ["INTERRUPTED", "RUNNING"])
    assert store.notices(desk.work[0].key) == ["killed"]


def test_a_trial_whose_process_never_started_is_failed_with_the_reason(store: Store, desk: Desk) -> None:
    desk.fail(1, "no memory")
    assert states(store, desk)[1] == ("FAILED", ["FAILED"])


def test_closing_leaves_what_ran_waiting(store: Store, desk: Desk) -> None:
    desk.start(0)
    desk.interrupted = True
    desk.close()
    assert states(store, desk) == [("WAITING", ["INTERRUPTED"]), ("WAITING", [])]
    assert desk.summary(1.0).waiting == tuple(trial.key for trial in desk.work)


def test_an_error_of_the_store_ends_the_run_and_nothing_is_written_after_it(
    store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.start(0)
    monkeypatch.setattr(store, "record", lambda *_: (_ for _ in ()).throw(UserError("disk is full")))
    desk.guard(desk.receive, 0, to_wire(Checkpointed(1, "x", "y")))
    desk.guard(desk.finish, 0)
    assert states(store, desk)[0][0] == "RUNNING"
    assert str(desk.failure) == "disk is full"
    with pytest.raises(scheduler._StopNow):
        desk.check()


@pytest.mark.parametrize(("end", "arguments"), [("finish", ()), ("fail", ("boom",)), ("lose", ("boom",))])
def test_an_end_that_the_store_did_not_take_leaves_the_attempt_to_be_released(
    store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch, end: str, arguments: tuple[str, ...]
) -> None:
    desk.start(0)
    with monkeypatch.context() as broken:
        for name in ("finish", "fail", "record"):
            broken.setattr(store, name, lambda *_: (_ for _ in ()).throw(UserError("disk is full")))
        desk.guard(getattr(desk, end), 0, *arguments)
    assert str(desk.failure) == "disk is full"
    desk.close()
    assert states(store, desk)[0] == ("WAITING", ["INTERRUPTED"])


def test_closing_passes_over_an_attempt_that_has_ended_elsewhere(store: Store, desk: Desk) -> None:
    desk.start(0)
    desk.start(1)
    store.finish(desk.running[0])
    desk.close()
    assert states(store, desk) == [("WAITING", ["COMPLETE"]), ("WAITING", ["INTERRUPTED"])]


def test_an_error_in_the_very_last_step_is_raised_too(
    tmp_path: Path, store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tuner:
        """Ends well, with an error of the store after the last check."""

        def fit(self) -> None:
            desk.failure = UserError("disk is full")

    @contextmanager
    def nothing(*_: object) -> Iterator[Layout]:
        yield Layout(1, 1, 0.0)

    for name in ("_ray", "_pulse"):
        monkeypatch.setattr(scheduler, name, nothing)
    monkeypatch.setattr(scheduler, "_tuner", lambda *_: Tuner())
    with pytest.raises(UserError, match="disk is full"):
        scheduler._run_on_ray(
            desk, toy_driver.train, None, Workspace.at(tmp_path), Options(), False, tmp_path
        )


def test_an_address_of_ray_client_is_refused_with_what_to_give_instead() -> None:
    with (
        pytest.raises(UserError, match=r"ray://head:10001 .* \(HOST:6379\)"),
        scheduler._ray(Options(cluster="ray://head:10001"), whole_gpus=False),
    ):
        pass


def test_a_cluster_that_does_not_answer_is_an_error_at_once_and_leaves_the_trials_waiting(
    tmp_path: Path, store: Store, desk: Desk
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"No Ray cluster answers at '{address}': nothing listens there"):
            scheduler.run(
                desk.work,
                toy_driver.train,
                None,
                store,
                Workspace.at(tmp_path),
                Options(cluster=address),
                desk.listener,
                whole_gpus=False,
                provenance={},
            )
    assert states(store, desk) == [("WAITING", []), ("WAITING", [])]
    assert not (tmp_path / "scratch").exists()


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "before")
    monkeypatch.delenv("TWO", raising=False)
    with scheduler._environment({"ONE": "1", "TWO": "2"}):
        assert os.environ["ONE"] + os.environ["TWO"] == "12"
    assert os.environ["ONE"] == "before"
    assert "TWO" not in os.environ


# --- with Ray ------------------------------------------------------------------------------------------


class Driver:
    """`toy_driver.py` as a process of its own."""

    def __init__(self, folder: Path, toys: list[dict[str, Any]], **options: Any) -> None:
        self.folder = folder
        self.log = folder.parent / f"{time.monotonic_ns()}.log"
        command = [sys.executable, toy_driver.__file__, str(folder), "--toys", json.dumps(toys)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--options", json.dumps(options)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> tuple[int, str]:
        """Waits for its end; its exit status and what it printed."""
        return self.process.wait(PATIENCE_S), self.log.read_text()

    def summary(self) -> dict[str, Any]:
        """Of a run that came to its end."""
        status, text = self.end()
        assert status == 0, text
        return json.loads(text.splitlines()[-1])

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits while the driver runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def child(self, name: str) -> int:
        """The process id of one of Ray's processes that it started."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                command = (stat.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == self.process.pid and f"/{name}\0".encode() in command:
                return int(stat.parent.name)
        raise LookupError(name)


def attempts(folder: Path) -> dict[str, list[AttemptRow]]:
    """By the toy's name."""
    store = Store.open(folder / "store.db")
    names = {key: row.name.split()[1].rstrip(",") for key, row in store.trial_states().items()}
    return {name: store.attempts([key]) for key, name in names.items()}


def starts(folder: Path) -> list[list[int]]:
    """For each trial, the step at which each of its attempts began."""
    files = sorted(folder.glob("artifacts/*/starts.txt"))
    return [[int(line.split()[0]) for line in file.read_text().splitlines()] for file in files]


def newest_step(folder: Path) -> int:
    """Of the checkpoints that are there; 0 when there are none."""
    return max(
        (json.loads(p.read_text())["step"] for p in folder.glob("artifacts/*/checkpoint.json")), default=0
    )


@pytest.mark.slow
def test_a_failed_trial_stops_no_other_a_killed_one_resumes_and_ctrl_c_leaves_the_rest_waiting(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "w"
    toys = [
        {"name": "good"},
        {"name": "bad", "fault": "raise"},
        {"name": "unlucky", "fault": "die once"},
        {"name": "doomed", "fault": "die"},
        {"name": "long", "steps": 1000, "step_seconds": 0.1},
        {"name": "last"},
    ]
    with Driver(folder, toys, concurrency=1, max_retries=1) as driver:
        driver.until(lambda: newest_step(folder) > 10)
        os.killpg(driver.process.pid, signal.SIGINT)
        summary = driver.summary()
    rows = attempts(folder)
    assert {name: [row.state for row in rows[name]] for name in rows} == {
        "good": ["COMPLETE"],
        "bad": ["FAILED"],
        "unlucky": ["INTERRUPTED", "COMPLETE"],
        "doomed": ["INTERRUPTED", "FAILED"],
        "long": ["INTERRUPTED"],
        "last": [],
    }
    assert str(rows["bad"][0].error).endswith("ValueError: the loss is not a number\n")
    assert str(rows["doomed"][1].error).endswith(scheduler.PROCESS_DIED)
    # Steps 1 and 2 are in the checkpoint that a process killed in step 3 leaves.
    assert sorted(starts(folder)) == [[0], [0], [0], [0, 2], [0, 2]]
    assert [len(summary[end]) for end in ("finished", "failed", "waiting")] == [2, 2, 2]
    assert summary["interrupted"]
    assert not (folder / "scratch").exists()
    assert "raylet" not in driver.log.read_text()


@pytest.mark.slow
def test_the_same_command_goes_on_after_the_driver_or_ray_was_killed(tmp_path: Path) -> None:
    folder, toys = tmp_path / "w", [{"name": "long", "steps": 30, "step_seconds": 0.25}]

    with Driver(folder, toys, concurrency=1) as driver:
        driver.until(lambda: newest_step(folder) >= 3)
        driver.process.kill()
    time.sleep(2)
    step = newest_step(folder)
    time.sleep(2)
    assert newest_step(folder) == step, "the trial's process outlives the driver"

    with Driver(folder, toys, concurrency=1) as driver:
        driver.until(lambda: newest_step(folder) >= step + 3)
        os.kill(driver.child("raylet"), signal.SIGKILL)
        status, text = driver.end()
    assert status == 1
    assert "Ray stopped in the middle of the run" in text

    with Driver(folder, toys, concurrency=1) as driver:
        assert len(driver.summary()["finished"]) == 1
    assert [row.state for row in attempts(folder)["long"]] == ["LOST", "INTERRUPTED", "COMPLETE"]
    (began_at,) = starts(folder)
    assert began_at[0] == 0 < began_at[1] == step < began_at[2]


@pytest.mark.slow
def test_two_workers_train_one_trial_together(tmp_path: Path) -> None:
    with Driver(tmp_path / "w", [{"name": "pair"}], concurrency=1, workers_per_trial=2) as driver:
        (key,) = driver.summary()["finished"]
    store = Store.open(tmp_path / "w" / "store.db")
    (attempt,) = store.attempts([key])
    assert attempt.state == "COMPLETE"
    # Rank 0 gives 1 and rank 1 gives 2; their sum, divided by the step, once for each step.
    losses = [(row.step, row.value) for row in store.metrics(attempt.id) if row.name == "loss"]
    assert losses == [(1, 3.0), (2, 1.5), (3, 1.0), (4, 0.75)]
    assert store.notices(key) == ["counted among 2"]
    assert [row.metrics for row in store.evaluations().values()] == [{"AP": 4.0}]
