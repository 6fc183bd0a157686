"""What happens to one trial's processes is the affair of that trial alone."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ablation.driver.tune import PROCESS_DIED
from ablation.storage.names import LOG
from ablation.store import AttemptRow, Store
from tests.support.driver import TRIAL, Driver, attempts, key_of, newest_step, starts, states

CONTROLLER = "ray::TrainController"
"""What Train calls the process that looks after the workers of a group."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ACCIDENTS: list[dict[str, Any]] = [
    {"name": "good"},
    {"name": "bad", "fault": "raise"},
    {"name": "unlucky", "fault": "die once"},
    {"name": "doomed", "fault": "die"},
    {"name": "stuck", "fault": "hang once"},
    {"name": "evicted", "fault": "preempted once", "checkpoint_every": 100},
    {"name": "big", "fault": "memory"},
]


def test_each_accident_costs_its_own_trial_one_attempt_and_ctrl_c_leaves_the_rest_waiting(
    folder: Path, store: Store
) -> None:
    long = {"name": "long", "steps": 5000, "step_seconds": 0.1}
    with Driver(folder, [*ACCIDENTS, long], concurrency=2, max_retries=1, hang_after=3) as driver:
        driver.until(lambda: len(ended(store)) == len(ACCIDENTS) and newest_step(folder) > 10)
        os.killpg(driver.process.pid, signal.SIGINT)
        summary = driver.summary()
    assert states(store) == {
        "good": ["COMPLETE"],
        "bad": ["FAILED"],
        "unlucky": ["INTERRUPTED", "COMPLETE"],
        "doomed": ["INTERRUPTED", "FAILED"],
        "stuck": ["INTERRUPTED", "COMPLETE"],
        "evicted": ["INTERRUPTED", "COMPLETE"],
        "big": ["INTERRUPTED", "INTERRUPTED", "INTERRUPTED", "COMPLETE"],
        "long": ["INTERRUPTED"],
    }
    # Each accident comes in step 3, with a checkpoint of step 2; who is asked to go writes one of step 3.
    began_at = {name: starts(folder, key_of(store, name)) for name in states(store)}
    assert began_at == {
        "good": [0],
        "bad": [0],
        "unlucky": [0, 2],
        "doomed": [0, 2],
        "stuck": [0, 2],
        "evicted": [0, 3],
        "big": [0, 2, 2, 2],
        "long": [0],
    }
    rows = attempts(store)
    assert str(rows["bad"][0].error).endswith("ValueError: the loss is not a number\n")
    assert str(rows["doomed"][1].error).endswith(PROCESS_DIED)
    assert [len(summary[end]) for end in ("finished", "failed", "waiting")] == [5, 2, 1]
    assert summary["interrupted"]
    assert list((folder / "scratch").iterdir()) == []
    assert "raylet" not in driver.log.read_text()


def ended(store: Store) -> list[str]:
    return [key for key, row in store.trial_states().items() if row.state in ("COMPLETE", "FAILED")]


def test_trials_of_1_2_and_8_slots_share_8_slots_and_a_group_outlives_one_of_its_workers(
    folder: Path, store: Store
) -> None:
    ones = [{"name": f"one{i}", "workers": 1, "steps": 8 + i, "step_seconds": 0.25} for i in range(8)]
    eights = [{"name": f"eight{i}", "workers": 1, "cpus": 8, "steps": 4 * i} for i in (1, 8)]
    pair = {"name": "pair", "workers": 2, "fault": "die once", "steps": 4}
    with Driver(folder, [*ones, *eights, pair], concurrency=8) as driver:
        assert len(driver.summary()["finished"]) == 11
    rows = attempts(store)
    sizes = {"one": 1, "eig": 8, "pai": 2}
    assert most_at_once([(row, sizes[name[:3]]) for name in rows for row in rows[name]]) <= 8

    assert [row.state for row in rows["pair"]] == ["INTERRUPTED", "COMPLETE"]
    key = key_of(store, "pair")
    assert starts(folder, key) == [0, 2]
    # Rank 0 gives 1 and rank 1 gives 2; their sum, divided by the step, once for each step.
    losses = [
        (metric.step, metric.value)
        for row in rows["pair"]
        for metric in store.metrics(row.id)
        if metric.name == "loss"
    ]
    assert losses == [(1, 3.0), (2, 1.5), (3, 1.0), (4, 0.75)]
    assert "counted among 2" in store.notices(key)
    assert all(row.state == "COMPLETE" for name in rows if name != "pair" for row in rows[name])


def test_a_group_that_is_paused_before_it_told_anything_makes_room_for_its_next_attempt(
    folder: Path, store: Store
) -> None:
    pair = {"name": "pair", "workers": 2, "steps": 1000, "step_seconds": 0.2}
    with Driver(folder, [pair], concurrency=1) as driver:
        driver.until(lambda: states(store).get("pair") == ["RUNNING"])
        key = key_of(store, "pair")
        store.set_paused("toy", "toy", "none", paused=True)
        driver.until(lambda: states(store)["pair"] == ["INTERRUPTED"])
        assert starts(folder, key) == [], "its processes are still starting"
        store.set_paused("toy", "toy", "none", paused=False)
        driver.until(lambda: states(store)["pair"] == ["INTERRUPTED", "RUNNING"])
        driver.until(lambda: store.trial_states([key])[key].step > 0)  # as the second attempt told
        driver.until(lambda: len(driver.descendants(*TRIAL)) == 1)
        driver.process.send_signal(signal.SIGINT)
        assert driver.summary()["interrupted"]
    assert states(store) == {"pair": ["INTERRUPTED", "INTERRUPTED"]}


def test_a_process_that_stands_still_is_killed_and_its_trial_goes_on(folder: Path, store: Store) -> None:
    toys = [
        {"name": "single", "fault": "freeze once"},
        {"name": "pair", "workers": 2, "fault": "freeze once"},
    ]
    with Driver(folder, toys, concurrency=1, hang_after=3) as driver:
        assert len(driver.summary()["finished"]) == 2
    assert states(store) == {name: ["INTERRUPTED", "COMPLETE"] for name in ("single", "pair")}
    for name in ("single", "pair"):
        key = key_of(store, name)
        assert starts(folder, key) == [0, 2]
        assert any("It hung and was ended" in notice for notice in store.notices(key))
    assert "stood still" in (folder / "artifacts" / key_of(store, "single") / LOG).read_text()


def test_a_group_outlives_the_standstill_of_the_processes_that_only_wait_for_its_workers_beside_another_run(
    folder: Path, store: Store, tmp_path: Path
) -> None:
    pair = {"name": "pair", "workers": 2, "steps": 240, "step_seconds": 0.2}  # longer than both standstills
    other = {"name": "other", "steps": 5000, "step_seconds": 0.2}
    with (
        Driver(tmp_path / "other", [other], concurrency=1) as beside,
        Driver(folder, [pair], concurrency=1, hang_after=3) as driver,
    ):
        beside.until(lambda: newest_step(tmp_path / "other") > 0)
        for attempt, marks in ((1, TRIAL), (2, [CONTROLLER])):
            until_started(driver, folder, attempt)
            os.kill(driver.the_one(*marks), signal.SIGSTOP)
        assert len(driver.summary()["finished"]) == 1
    assert states(store) == {"pair": ["INTERRUPTED", "INTERRUPTED", "COMPLETE"]}
    log = (folder / "artifacts" / key_of(store, "pair") / LOG).read_text()
    assert log.count("stood still") == 2
    assert "Reporting" not in log, "Ray's own lines"


def test_a_group_of_which_a_process_is_asked_to_go_stops_at_a_checkpoint_first(
    folder: Path, store: Store
) -> None:
    pair = {"name": "pair", "workers": 2, "steps": 40, "step_seconds": 0.2, "checkpoint_every": 100}
    with Driver(folder, [{**pair, "fault": "preempted once"}], concurrency=1) as driver:
        until_started(driver, folder, 2)  # its last rank was asked to go in step 21
        os.kill(driver.the_one(*TRIAL), signal.SIGTERM)
        assert len(driver.summary()["finished"]) == 1
    assert states(store) == {"pair": ["INTERRUPTED", "INTERRUPTED", "COMPLETE"]}
    _, second, third = starts(folder, key_of(store, "pair"))
    assert 21 <= second < third < 40
    steps = [m.step for row in attempts(store)["pair"] for m in store.metrics(row.id) if m.name == "loss"]
    assert steps == list(range(1, 41)), "nothing is lost"


def until_started(driver: Driver, folder: Path, attempt: int) -> None:
    """Until the only trial trains, for the so manieth time."""
    pattern = "artifacts/*/starts.txt"
    driver.until(lambda: sum(file.read_text().count("\n") for file in folder.glob(pattern)) == attempt)


def most_at_once(held: list[tuple[AttemptRow, int]]) -> int:
    """The most slots that attempts held at any time; one that ends makes room before the next begins."""
    changes = [(row.started, 1, size) for row, size in held]
    changes += [(row.ended, 0, -size) for row, size in held if row.ended]
    now, most = 0, 0
    for _, _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
