"""A trial computes in as many threads as it holds CPUs, which wait as told, at the niceness of the run."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ablation.store import Store
from tests.support.driver import Driver, key_of

CORES = len(os.sched_getaffinity(0))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_threads_follow_the_cpus_that_a_trial_holds_and_niceness_is_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinity")
    monkeypatch.setenv("RAY_worker_niceness", "9")
    toys: list[dict[str, Any]] = [
        {"name": "open"},
        {"name": "one", "workers": 1, "cpus": 1},
        {"name": "three", "workers": 1, "cpus": 3},
        {"name": "pair", "workers": 2, "cpus": 2},
    ]
    folder = tmp_path / "w"
    folder.mkdir()
    with Driver(folder, toys, concurrency=1, niceness=2) as driver:
        assert len(driver.summary()["finished"]) == len(toys)
    store = Store.open(folder / "store.db", read_only=True)
    files = {toy["name"]: folder / "artifacts" / key_of(store, toy["name"]) / "starts.txt" for toy in toys}
    store.close()
    written = {name: file.read_text().split()[2:] for name, file in files.items()}
    nice = str(min(19, os.nice(0) + 2))
    assert written == {
        "open": [str(CORES), "10000", nice],
        "one": ["1", "10000", nice],
        "three": ["3", "10000", nice],
        "pair": ["2", "10000", nice],
    }


def test_torch_computes_with_the_runtime_whose_threads_are_told_how_long_to_spin() -> None:
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None
    assert list(Path(torch.origin).parent.glob("lib/libgomp*"))
