"""What Ray Tune calls, without a Ray that runs."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray import cloudpickle

from ablation.driver import tune
from ablation.driver.dispatch import Dispatcher
from ablation.driver.heartbeat import Monitor
from ablation.driver.shutdown import StopRun
from ablation.errors import UserError
from ablation.protocol import Progress, Request
from ablation.resources import Resources
from ablation.worker.messages import Message

REQUEST = Request("0123456789ab", "config", (), Path("/w/artifacts/0123456789ab"), resources=Resources())
TRIAL = SimpleNamespace(config={"attempt": 7, "request": REQUEST}, error_file=None)


@dataclass
class Calls:
    """A dispatcher that notes what it is told."""

    current: int = 7
    told: list[tuple[object, ...]] = field(default_factory=list)

    def next(self) -> Any:
        return SimpleNamespace(id=self.current), REQUEST

    def poll(self) -> None:
        self.told.append(("poll",))

    def on_messages(self, key: str, id: int, messages: list[Message]) -> bool:
        self.told.append((key, id, *messages))
        return id == self.current

    def on_worker_lost(self, key: str, id: int, reason: str) -> None:
        self.told.append((key, id, reason))

    def on_start_failed(self, key: str, id: int, error: str) -> None:
        self.told.append((key, id, ("failed", error)))


@pytest.fixture
def calls() -> Calls:
    return Calls()


def callback(calls: Calls, failure: Exception | None = None) -> tune.PassOn:
    return tune.PassOn(cast(Dispatcher, calls), cast(Monitor, SimpleNamespace(failure=failure)))


def test_the_next_trial_of_tune_is_the_next_attempt(calls: Calls) -> None:
    searcher = tune.NextAttempt(cast(Dispatcher, calls))
    assert searcher.suggest("trial") == {"attempt": 7, "request": REQUEST}


def test_messages_reach_the_dispatcher_as_they_were_sent(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    report = Progress(1, 2, {"loss": 0.5})
    callback(calls).on_trial_result(1, [], TRIAL, {"messages": [report], "process": "its process"})
    assert calls.told == [(REQUEST.trial_key, 7, report)]
    assert killed == []


def test_a_process_whose_attempt_has_ended_is_killed(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    calls.current = 8
    callback(calls).on_trial_result(1, [], TRIAL, {"messages": [], "process": "its process"})
    assert killed == ["its process"]


def test_the_loss_of_a_process_reaches_the_dispatcher_with_a_reason(calls: Calls) -> None:
    callback(calls).on_trial_error(1, [], TRIAL)
    assert calls.told == [(REQUEST.trial_key, 7, tune.PROCESS_DIED)]


def test_a_process_that_cannot_import_its_study_has_failed_and_is_not_tried_again(
    calls: Calls, tmp_path: Path
) -> None:
    error = "Traceback:\nModuleNotFoundError: No module named 'cells'"
    (tmp_path / "error.txt").write_text(f"\nFailure # 1 (occurred at noon)\n{error}\n")
    trial = SimpleNamespace(config=TRIAL.config, error_file=str(tmp_path / "error.txt"))
    callback(calls).on_trial_error(1, [], trial)
    assert calls.told == [(REQUEST.trial_key, 7, ("failed", error))]


def test_an_import_that_failed_before_a_process_died_of_something_else_is_a_lost_process(
    calls: Calls, tmp_path: Path
) -> None:
    error = "ModuleNotFoundError: No module named 'cells'\nduring handling:\nActorDiedError: killed"
    (tmp_path / "error.txt").write_text(f"\nFailure # 1 (occurred at noon)\n{error}\n")
    trial = SimpleNamespace(config=TRIAL.config, error_file=str(tmp_path / "error.txt"))
    callback(calls).on_trial_error(1, [], trial)
    assert calls.told == [(REQUEST.trial_key, 7, f"{error}\n{tune.PROCESS_DIED}")]


def test_a_failure_beside_the_loop_ends_it_at_its_next_step(calls: Calls) -> None:
    with pytest.raises(StopRun) as stop:
        callback(calls, UserError("Ray stopped")).on_step_begin(1, [])
    assert str(stop.value.__cause__) == "Ray stopped"


def test_tune_can_pickle_its_searcher_and_callback_and_gets_nothing_of_the_run(calls: Calls) -> None:
    for one in (tune.NextAttempt(cast(Dispatcher, calls)), callback(calls)):
        assert vars(cloudpickle.loads(cloudpickle.dumps(one))) == {}


def test_a_trial_of_one_worker_reserves_what_it_holds_and_a_group_a_token_beside_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")

    def reserved(resources: Resources) -> list[dict[str, float]]:
        config = {"request": SimpleNamespace(resources=resources)}
        return cast(list[dict[str, float]], tune._reserved(config).bundles)

    assert reserved(Resources(cpus=2, gpus=0.5)) == [{"CPU": 2, "GPU": 0.5}]
    assert reserved(Resources(workers=2, gpus=1)) == [{"node:10.0.0.1": 0.001}]
