"""The driver is stopped, killed, loses its Ray, is paused and told to do other things: nothing is lost."""

import os
import signal
import time
from pathlib import Path

import pytest

from ablation.store import Store
from tests.support.driver import Driver, key_of, newest_step, process_of, starts, states

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = {"name": "long", "steps": 80, "step_seconds": 0.25, "checkpoint_every": 4}


def test_the_same_command_goes_on_after_sigterm_after_kill_9_and_after_its_ray_died(
    folder: Path, store: Store
) -> None:
    with Driver(folder, [LONG], concurrency=1) as driver:
        driver.until(lambda: newest_step(folder) >= 4)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.summary()["interrupted"]
    key = key_of(store, "long")
    stopped_at = newest_step(folder)
    steps = [line for line in log_of(folder, key).splitlines() if "/80" in line]
    assert f"{stopped_at}/80" in steps[-1], "the step before the stop was saved"

    with Driver(folder, [LONG], concurrency=1) as driver:
        driver.until(lambda: newest_step(folder) >= stopped_at + 4)
        trial = process_of(folder, key)
        driver.process.kill()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{trial}").exists():
            assert time.monotonic() < deadline, "the trial's process outlives the driver"
            time.sleep(0.1)
    killed_at = newest_step(folder)

    with Driver(folder, [LONG], concurrency=1) as driver:
        driver.until(lambda: newest_step(folder) >= killed_at + 4)
        raylet = driver.the_one("/raylet/raylet\0")
        os.kill(raylet, signal.SIGKILL)
        status, text = driver.end()
    assert status == 1
    assert "Ray stopped in the middle of the run" in text

    with Driver(folder, [LONG], concurrency=1) as driver:
        assert len(driver.summary()["finished"]) == 1
    assert states(store)["long"] == ["INTERRUPTED", "LOST", "INTERRUPTED", "COMPLETE"]
    began_at = starts(folder, key)
    assert began_at[:3] == [0, stopped_at, killed_at]
    assert began_at[3] >= killed_at + 4


def log_of(folder: Path, key: str) -> str:
    return (folder / "artifacts" / key / "log.txt").read_text()


def test_a_running_driver_follows_what_people_want(folder: Path, store: Store) -> None:
    slow = {"steps": 40, "step_seconds": 0.25, "checkpoint_every": 1000}
    toys = [{"name": name, **slow} for name in ("first", "second", "third")]
    with Driver(folder, toys, concurrency=1) as driver:
        driver.until(lambda: state(store, "first") == "RUNNING" and started(store, folder, "first"))
        store.prioritise([key_of(store, "third")], 1)
        store.cancel([key_of(store, "first")])
        driver.until(lambda: started(store, folder, "third"))
        assert states(store) == {"first": ["INTERRUPTED"], "second": [], "third": ["RUNNING"]}

        store.set_paused("toy", "toy", "none", paused=True)
        driver.until(lambda: states(store)["third"] == ["INTERRUPTED"])
        stopped_at = newest_step(folder, key_of(store, "third"))
        time.sleep(5)
        assert [row.state for row in store.trial_states().values()].count("WAITING") == 2
        store.cancel([key_of(store, "second")])
        store.set_paused("toy", "toy", "none", paused=False)
        driver.until(lambda: states(store)["third"] == ["INTERRUPTED", "RUNNING"])
        store.retry([key_of(store, "first")])
        summary = driver.summary()
    assert states(store) == {
        "first": ["INTERRUPTED", "COMPLETE"],
        "second": [],
        "third": ["INTERRUPTED", "COMPLETE"],
    }
    assert state(store, "second") == "CANCELLED"
    assert stopped_at > 0
    assert starts(folder, key_of(store, "third")) == [0, stopped_at]
    assert len(summary["finished"]) == 2


def state(store: Store, name: str) -> str:
    return next((row.state for row in store.trial_states().values() if name in row.name), "")


def started(store: Store, folder: Path, name: str) -> bool:
    return bool(starts(folder, key_of(store, name)))


def test_a_trial_that_finds_no_room_on_this_machine_is_refused_before_anything_starts(
    folder: Path, store: Store
) -> None:
    huge = {"name": "huge", "workers": 1, "memory": 1 << 49}
    with Driver(folder, [huge], concurrency=1) as driver:
        status, text = driver.end()
    assert status == 1
    assert "huge, seed 0 needs 1 CPU, 5.24e+05 GiB at once; this machine with" in text
    assert states(store) == {"huge": []}
