"""Stale results are trained anew on request, from the start; the earlier ones are kept."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ablation.control.control import UNRECORDED, Control
from ablation.driver.attempts import AttemptManager
from ablation.driver.dispatch import Dispatcher
from ablation.driver.display import Board, PlainDisplay
from ablation.driver.heartbeat import Heartbeat
from ablation.driver.scheduler import GangScheduler
from ablation.driver.shutdown import Shutdown, StopRun
from ablation.plan import Plan
from ablation.provenance import staleness
from ablation.resources import Node
from ablation.storage import Storage, storage_at
from ablation.store import AttemptRow, Store
from ablation.worker.harness import messages
from ablation.worker.training import WorkerConfig
from ablation.workspace import Workspace
from tests.support import workspaces
from tests.support.toy_driver import Toy, planned, train

MakeWorkspace = Callable[..., workspaces.Workspace]


# --- which trials ----------------------------------------------------------------------------------------


@pytest.fixture
def workspace(make_workspace: MakeWorkspace) -> workspaces.Workspace:
    """k=3 rests on an old torch, k=5 on today's, and of k=7 nobody can tell."""
    made = make_workspace()
    for method, torch in (("k3", "1.0"), ("k5", workspaces.torch_today()), ("k7", None)):
        made.train_with(method, torch)
    return made


def test_a_cancelled_trial_is_renewed_only_by_name(workspace: workspaces.Workspace) -> None:
    plan = workspace.plan
    trials = tuple(replace(t, state="CANCELLED") if t.state == "COMPLETE" else t for t in plan.trials)
    control = Control(replace(plan, trials=trials), workspace.store)
    assert control.stale([]) == []
    assert [renewal.trial.name for renewal in control.stale(["table4 k=3"])] == ["table4 k=3, seed 0"]


def test_a_stale_cell_is_trained_anew_when_asked(workspace: workspaces.Workspace) -> None:
    control = Control(workspace.plan, workspace.store)
    (renewal,) = control.stale([])
    assert (renewal.trial.name, renewal.runs) == ("table4 k=3, seed 0", False)
    assert renewal.changes == (f"torch was 1.0, is {workspaces.torch_today()}",)
    assert control.renew([renewal]) == [renewal.trial]
    trial = workspace.plan.trial(renewal.trial.key)
    assert (trial.state, trial.missing, trial.step) == ("WAITING", trial.evaluations, 0)
    assert Control(workspace.plan, workspace.store).stale([]) == []
    workspace.train_with("k3", workspaces.torch_today())
    assert [f.kind for f in staleness.find(workspace.plan, workspace.store)] == ["unrecorded"]


def test_a_result_without_a_record_is_renewed_only_by_name(workspace: workspaces.Workspace) -> None:
    found = Control(workspace.plan, workspace.store).stale(["table4"])
    assert [(renewal.trial.config.method, renewal.changes[0]) for renewal in found] == [
        ("k3", f"torch was 1.0, is {workspaces.torch_today()}"),
        ("k7", UNRECORDED),
    ]
    assert Control(workspace.plan, workspace.store).stale(["table4 k=5"]) == []


def test_a_trial_with_a_new_attempt_is_not_renewed(workspace: workspaces.Workspace) -> None:
    control = Control(workspace.plan, workspace.store)
    found = control.stale([])
    assert len(control.renew(found)) == 1
    attempt = workspace.start("k3")
    assert control.renew(found) == []
    workspace.store.release(attempt)
    assert control.renew(found) == []


# --- what is trained then --------------------------------------------------------------------------------


@dataclass
class Lab:
    """A study of one trial that counts to 4, and a driver without Ray."""

    store: Store
    workspace: Workspace
    storage: Storage

    @property
    def plan(self) -> Plan:
        return planned([Toy("a")], self.store)

    @property
    def key(self) -> str:
        return self.plan.trials[0].key

    def run(self, stops: int = 0) -> None:
        """Does all that the plan misses; the first attempts are asked to stop."""
        plan, nodes = self.plan, (Node("here", 1, 0, 1 << 30),)
        listener = PlainDisplay(Board(plan), lambda line: None)
        manager = AttemptManager(self.store, self.storage, self.workspace, listener, {}, max_retries=0)
        dispatcher = Dispatcher(
            plan,
            manager,
            GangScheduler(nodes),
            Shutdown(grace=0.0),
            Heartbeat(manager),
            {self.key: 1.0},
            {self.key: workspaces.Resources()},
            None,
            lambda: nodes,
        )
        config = WorkerConfig(
            train, self.storage, self.workspace.artifacts, (), ("torch",), 0.0, self.workspace.root
        )
        with suppress(StopRun):
            while found := dispatcher.next():
                attempt, request = found
                if (stops := stops - 1) >= 0:
                    self.storage.ask_to_stop(attempt.key)
                for message in messages(config, request):
                    dispatcher.on_messages(attempt.key, attempt.id, [message])

    def steps(self, attempt: AttemptRow) -> list[int]:
        return [row.step for row in self.store.metrics(attempt.id) if row.name == "loss"]


@pytest.fixture(params=["shared folder", "elsewhere"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    workspace = Workspace.at(tmp_path / "runs")
    workspace.create()
    for name in ("local", "bucket"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "local"))
    place = workspace.artifacts if request.param == "shared folder" else str(tmp_path / "bucket")
    return Lab(Store.open(workspace.store_path), workspace, storage_at(place))


def test_the_new_training_does_not_start_from_the_old_checkpoint(lab: Lab) -> None:
    lab.run()
    assert lab.store.renew({lab.key: 1}) == [lab.key]
    lab.run()
    first, second = lab.store.attempts([lab.key])
    assert lab.steps(first) == lab.steps(second) == [1, 2, 3, 4]
    assert lab.plan.trials[0].state == "COMPLETE"
    own = [file.path.rpartition("/")[0] for file in lab.store.artifacts(lab.key)]
    folder = f"artifacts/{lab.key}"
    assert own == [folder] * 4 + [f"{folder}/attempt-2"] * 4


def test_a_renewed_training_that_was_stopped_resumes_at_its_own_checkpoint(lab: Lab) -> None:
    lab.run()
    lab.store.renew({lab.key: 1})
    lab.run(stops=1)
    attempts = lab.store.attempts([lab.key])
    assert [attempt.state for attempt in attempts] == ["COMPLETE", "INTERRUPTED", "COMPLETE"]
    assert [lab.steps(attempt) for attempt in attempts] == [[1, 2, 3, 4], [1], [2, 3, 4]]


def test_the_earlier_result_stays_in_the_store(lab: Lab) -> None:
    lab.run()
    lab.store.renew({lab.key: 1})
    assert lab.store.evaluations() == {}
    (before,) = lab.store.earlier_results(lab.key)
    assert (before.attempt_id, before.metrics) == (1, {"AP": 4.0})
    lab.run()
    (now,) = lab.store.evaluations().values()
    assert (now.attempt_id, now.metrics, now.key) == (2, {"AP": 4.0}, before.key)
    lab.store.renew({lab.key: 2})
    assert [result.attempt_id for result in lab.store.earlier_results(lab.key)] == [1, 2]
