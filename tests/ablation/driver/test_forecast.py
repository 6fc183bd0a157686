"""What a run will take, on the machines at hand and from what is known."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from ablation.calibration import Measured
from ablation.cluster import connection as cluster
from ablation.cluster.connection import Layout
from ablation.driver import forecast
from ablation.errors import UserError
from ablation.resources import Node, Resources
from ablation.run_options import Options
from ablation.session import Session
from ablation.workspace import Workspace
from tests.support import workspaces


@pytest.fixture
def session(make_workspace: Callable[..., workspaces.Workspace], monkeypatch: pytest.MonkeyPatch) -> Session:
    workspace = make_workspace()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(cluster, "gpus_here", lambda: 0)
    return Session(workspace.study, Workspace.at(workspace.root), workspace.store, workspace.plan)


def test_before_anything_was_measured_only_places_and_disk_are_told(session: Session) -> None:
    found = forecast.forecast(session, Options(), timed=False)
    assert found.gpu_hours is None
    assert found.trials == 11
    assert [node.cpus for node in found.nodes] == [4]


def test_a_probe_and_fewer_trials_at_a_time_change_the_time_that_is_told(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Measured(session.plan.trials[0].key, 36.0, 100)
    monkeypatch.setattr(forecast, "probe", lambda *_: seen)
    wide = forecast.forecast(session, Options(), timed=True)
    narrow = forecast.forecast(session, Options(concurrency=1), timed=True)
    assert "probe of 1 training" in wide.describe()
    assert wide.wall_seconds is not None and narrow.wall_seconds is not None
    assert narrow.wall_seconds > 3 * wide.wall_seconds
    assert wide.cpu_hours is not None  # one trial at a time holds all four CPUs
    assert narrow.cpu_hours == pytest.approx(4 * wide.cpu_hours)


def test_a_probe_of_trials_that_want_gpus_needs_one_here(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout((Node("a", 8, 4, 0),), Resources(gpus=1.0), None)
    monkeypatch.setattr(forecast, "_layout", lambda *_: layout)
    with pytest.raises(UserError, match="has no GPU, and the trials need one"):
        forecast.forecast(session, Options(cluster="auto"), timed=True)


def test_workers_asked_for_on_the_command_line_are_what_trials_are_estimated_to_hold(
    session: Session,
) -> None:
    found = forecast.forecast(session, Options(workers_per_trial=2), timed=False)
    assert {size.workers for size in found.sizes} == {2}


def test_a_trial_of_more_workers_than_this_machine_has_cpus_still_has_a_place(session: Session) -> None:
    wanted = tuple(replace(trial, resources=Resources(workers=8)) for trial in session.plan.trials)
    grown = replace(session, plan=replace(session.plan, trials=wanted))
    assert forecast.forecast(grown, Options(), timed=False).homeless == ()
