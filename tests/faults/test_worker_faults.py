"""What happens to one trial's processes is the affair of that trial alone."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ablation.running.scheduler import PROCESS_DIED
from ablation.store import AttemptRow, Store
from tests.faults.driver import Driver, attempts, key_of, newest_step, starts, states

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


def most_at_once(held: list[tuple[AttemptRow, int]]) -> int:
    """The most slots that attempts held at any time; one that ends makes room before the next begins."""
    changes = [(row.started, 1, size) for row, size in held]
    changes += [(row.ended, 0, -size) for row, size in held if row.ended]
    now, most = 0, 0
    for _, _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
