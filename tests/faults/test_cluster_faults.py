"""Machines of a cluster die and join while a group trains across them."""

import os
import signal
import sys
from pathlib import Path

import pytest

from ablation.store import Store
from tests.support.driver import Driver, attempts, key_of, newest_step, starts, states
from tests.support.machines import Machines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_group_outlives_a_machine_and_goes_on_with_a_new_one_and_then_on_another_cluster(
    folder: Path, store: Store, machines: Machines
) -> None:
    toys = [{"name": "pair", "workers": 2, "steps": 120, "step_seconds": 0.25, "checkpoint_every": 4}]
    machines.start_head(cpus=1)  # with one CPU on each, the group needs both machines
    machines.join("left", cpus=1)
    with Driver(folder, toys, inside=machines.on("head"), cluster=machines.address) as driver:
        driver.until(lambda: newest_step(folder) >= 4)
        machines.switch_off("left")
        driver.until(lambda: states(store)["pair"][0] == "INTERRUPTED")
        left_at = newest_step(folder)

        machines.join("right", cpus=1)
        driver.until(lambda: newest_step(folder) >= left_at + 4)
        (gcs,) = machines.processes("head", "/gcs_server\0")
        os.kill(gcs, signal.SIGKILL)
        status, text = driver.end()
    assert status == 1
    assert "Ray stopped in the middle of the run" in text
    for machine in ("right", "head"):
        machines.switch_off(machine)
    head_at = newest_step(folder)

    machines.start_head(cpus=2)
    with Driver(folder, toys, inside=machines.on("head"), cluster=machines.address) as driver:
        assert len(driver.summary()["finished"]) == 1
    assert states(store) == {"pair": ["INTERRUPTED", "INTERRUPTED", "COMPLETE"]}
    assert starts(folder, key_of(store, "pair")) == [0, left_at, head_at]
    # Two workers in each of the attempts: rank 0 gives 1 and rank 1 gives 2 at every step.
    for row in attempts(store)["pair"]:
        losses = {m.step: m.value for m in store.metrics(row.id) if m.name == "loss"}
        assert losses == pytest.approx({step: 3 / step for step in losses})
    assert list(losses) == list(range(head_at + 1, 121))


def test_a_machine_without_our_code_trains(folder: Path, store: Store, machines: Machines) -> None:
    code = [Path(path) for path in sys.path if (Path(path) / "ablation").is_dir()]
    machines.start_head(cpus=0)
    machines.join("bare", cpus=2, without=code)
    toys = [{"name": "single", "workers": 1}, {"name": "pair", "workers": 2}]
    with Driver(folder, toys, inside=machines.on("head"), cluster=machines.address) as driver:
        assert len(driver.summary()["finished"]) == 2
    assert states(store) == {"single": ["COMPLETE"], "pair": ["COMPLETE"]}
