"""Two drivers on one store: its server restarts, one of them is killed, and no trial is trained twice."""

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ablation.driver.attempts import AttemptManager
from ablation.driver.display import Board, PlainDisplay
from ablation.storage import storage_at
from ablation.store import Store
from ablation.workspace import Workspace
from tests.support.driver import Driver, attempts, key_of, newest_step, starts, states, wait_until
from tests.support.toy_driver import Toy, planned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_drivers_share_a_study_through_a_restart_of_the_server_and_the_death_of_one(
    folder: Path, postgres: Any
) -> None:
    url = postgres.new_database()
    folder.mkdir()
    store = Store.open(url, root=folder)
    toys = [{"name": f"toy{i}", "steps": 4 + i, "step_seconds": 0.3} for i in range(12)]
    toys += [{"name": f"long{i}", "steps": 80, "step_seconds": 0.5, "checkpoint_every": 4} for i in range(2)]
    with (
        Driver(folder, toys, store=url, concurrency=1) as one,
        Driver(folder, toys, store=url, concurrency=1) as two,
    ):
        # The longest are first, so that each driver is in the middle of one of them.
        wait_until(lambda: all(newest_step(folder, key) >= 4 for key in long_keys(store)), one.running)
        postgres.stop(signal.SIGQUIT)
        postgres.start()
        before = [newest_step(folder, key) for key in long_keys(store)]
        one.until(lambda: all(newest_step(folder, key) > before[0] + 4 for key in long_keys(store)))

        one.process.kill()
        summary = two.summary()
    rows = attempts(store)
    names = {name: [row.state for row in rows[name]] for name in rows}
    lost = [name for name in names if names[name] == ["LOST", "COMPLETE"]]
    assert len(lost) == 1 and lost[0].startswith("long"), names
    assert all(names[name] == ["COMPLETE"] for name in names if name != lost[0]), names
    assert {row.pid for name in rows for row in rows[name]} == {one.process.pid, two.process.pid}
    # Every trial was trained once: what began anew went on from the checkpoint that was there.
    for name in rows:
        began_at = starts(folder, key_of(store, name))
        assert len(began_at) == len(rows[name])
        assert began_at[0] == 0
        assert all(later > 0 and later % 4 == 0 for later in began_at[1:])
        assert all(first.ended and first.ended <= then.started for first, then in pairwise(rows[name]))
    assert not summary["failed"] and not summary["waiting"]
    assert states(store).keys() == {toy["name"] for toy in toys}
    store.close()


def test_a_process_that_dies_after_another_driver_took_its_trial_over_ends_nothing(tmp_path: Path) -> None:
    store, workspace = Store.open(tmp_path / "store.db"), Workspace.at(tmp_path)
    plan, said = planned([Toy("one")], store), list[str]()
    (trial,) = plan.trials
    listener, storage = PlainDisplay(Board(plan), said.append), storage_at(workspace.artifacts)
    manager = AttemptManager(store, storage, workspace, listener, {}, max_retries=2)
    attempt = manager.claim(trial)
    assert attempt is not None
    store.reclaim_all()
    assert store.claim(trial.key, "another", {}) is not None
    manager.on_worker_lost(attempt, "killed")
    assert manager.running == {}
    assert "another driver has taken it over" in said[-1]
    assert states(store) == {"one": ["LOST", "RUNNING"]}


def long_keys(store: Store) -> list[str]:
    return [key for key, row in store.trial_states().items() if "long" in row.name] or ["none"]
