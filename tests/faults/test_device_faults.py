"""A GPU, or a machine, that fails whatever trains on it, and a trial that makes GPUs fail."""

from pathlib import Path

import pytest

from ablation.store import Store
from tests.support.driver import Driver, key_of, starts, states
from tests.support.machines import Machines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_gpu_that_fails_every_trial_costs_one_of_them_one_attempt_and_the_others_run_elsewhere(
    folder: Path, store: Store, machines: Machines
) -> None:
    # Long enough for a second process to start beside the first, which would do all of them else.
    slow = {"workers": 1, "gpus": 1.0, "step_seconds": 2.0}
    toys = [{"name": f"toy{i}", "broken": "0", **slow} for i in range(3)]
    machines.start_head(cpus=4, gpus=2)
    with Driver(folder, toys, inside=machines.on("head"), cluster=machines.address) as driver:
        assert len(driver.summary()["finished"]) == 3
    ends = sorted(states(store).values())
    assert ends == [["COMPLETE"]] * 2 + [["INTERRUPTED", "COMPLETE"]]
    (failed_under,) = (name for name, rows in states(store).items() if len(rows) == 2)
    assert starts(folder, key_of(store, failed_under)) == [0, 2]
    said = [line for line in driver.log.read_text().splitlines() if "Quarantined" in line]
    assert len(said) == 1
    assert "GPU 0 of " in said[0] and "uncorrectable ECC error" in said[0]


def test_a_group_is_kept_from_a_machine_that_fails_it(folder: Path, store: Store, machines: Machines) -> None:
    toys = [{"name": "pair", "workers": 2, "broken": "10.213.77.2"}]
    machines.start_head(cpus=1)
    machines.join("bad", cpus=1)
    with Driver(folder, toys, inside=machines.on("head"), cluster=machines.address) as driver:
        driver.until(lambda: "Quarantined" in driver.log.read_text())
        driver.until(lambda: "waits for nodes" in driver.log.read_text())
        machines.join("good", cpus=1)
        assert len(driver.summary()["finished"]) == 1
    assert states(store) == {"pair": ["INTERRUPTED", "COMPLETE"]}


def test_a_trial_under_which_every_gpu_fails_is_the_one_at_fault(
    folder: Path, store: Store, machines: Machines
) -> None:
    toys = [{"name": name, "workers": 1, "gpus": 1.0} for name in ("one", "two", "three")]
    machines.start_head(cpus=4, gpus=1)
    wild = {"name": "wild", "workers": 1, "gpus": 1.0, "broken": "all"}
    with Driver(
        folder, [wild, *toys], inside=machines.on("head"), cluster=machines.address, max_retries=1
    ) as driver:
        summary = driver.summary()
    assert [len(summary[end]) for end in ("finished", "failed", "waiting")] == [3, 1, 0]
    assert states(store)["wild"] == ["INTERRUPTED", "FAILED"]
    assert "a new process can use it" in next(iter(summary["failed"].values()))
