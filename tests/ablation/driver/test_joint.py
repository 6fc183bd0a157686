"""Trained rows are measured together when that is due, and never in part."""

from dataclasses import replace
from pathlib import Path

import pytest

from ablation.driver import joint, run
from ablation.errors import UserError
from ablation.plan import make_plan
from ablation.protocol import JointRequest, JointResult
from ablation.run_options import Options
from ablation.session import Selection, Session
from ablation.study import JointMeasurement, Study
from ablation.workspace import Workspace
from tests.support import workspaces
from tests.support.systems_study import ROUNDS, SYSTEMS, trained

FACTS = {"commit": "0123456789"}


def session_of(filled: workspaces.Workspace, study: Study = SYSTEMS) -> Session:
    setting = replace(filled.setting, data_name="shapes_v1 & co")
    plan = make_plan(study, setting, filled.seeds, None, filled.store)
    return Session(study, Workspace(filled.root, filled.root / "results"), filled.store, plan)


def failing(error: Exception) -> Study:
    def measure(request: JointRequest) -> JointResult:
        raise error

    return replace(SYSTEMS, joint=JointMeasurement(("speed",), "Batch 1", measure))


def test_a_measurement_is_due_until_every_trained_row_has_it(tmp_path: Path) -> None:
    filled = workspaces.make(tmp_path, (0,), SYSTEMS)
    assert not joint.due(session_of(filled)), "nothing is trained"
    filled.measure("slow", {"AP": 70.0})
    assert joint.due(session_of(filled))
    said = joint.measure(session_of(filled), FACTS)
    assert said == "Measured speed of 1 rows in turns, on the test's machine."
    assert not joint.due(session_of(filled))
    filled.measure("fast", {"AP": 75.0})
    assert joint.due(session_of(filled)), "a row is new"
    joint.measure(session_of(filled), FACTS)
    newest = filled.store.joint("systems", "shapes", "shapes_v1 & co")
    assert newest is not None
    assert sorted(row["speed"] for row in newest.rounds.values()) == sorted(ROUNDS.values())


def test_a_training_that_was_replaced_is_measured_again_with_all_others(tmp_path: Path) -> None:
    filled = trained(tmp_path)
    joint.measure(session_of(filled), FACTS)
    key = filled.trial_key("slow")
    filled.store.renew({key: len(filled.store.attempts([key]))})
    assert not joint.due(session_of(filled)), "its new training has not ended"
    filled.measure("slow", {"AP": 71.0})
    assert joint.due(session_of(filled))


def test_the_study_is_told_where_the_files_of_each_training_lie(tmp_path: Path) -> None:
    filled, asked = trained(tmp_path, (0, 1)), list[JointRequest]()
    key = filled.trial_key("slow")
    filled.store.renew({key: len(filled.store.attempts([key]))})
    filled.measure("slow", {"AP": 71.0})

    def measure(request: JointRequest) -> JointResult:
        asked.append(request)
        return JointResult("here", {row.key: {"speed": [1.0]} for row in request.rows})

    study = replace(SYSTEMS, joint=JointMeasurement(("speed",), "Batch 1", measure))
    joint.measure(session_of(filled, study), FACTS)
    (request,) = asked
    assert [row.name for row in request.rows] == ["table1 Slow, seed 0", "table1 Fast, seed 0"]
    folders = [row.directory.relative_to(tmp_path / "artifacts").as_posix() for row in request.rows]
    assert folders == [f"{key}/attempt-2", filled.trial_key("fast")]


def test_a_study_without_such_metrics_says_so(tmp_path: Path) -> None:
    filled = workspaces.make(tmp_path, (0,))
    with pytest.raises(UserError, match="'paper' has no metric that rows measure together"):
        joint.measure(session_of(filled, filled.study), FACTS)
    (tmp_path / "new").mkdir()
    untrained = workspaces.make(tmp_path / "new", (0,), SYSTEMS)
    with pytest.raises(UserError, match="'systems' has no row yet whose training has ended"):
        joint.measure(session_of(untrained), FACTS)


def test_a_run_measures_what_is_due_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled = trained(tmp_path)
    assert run._measure_jointly(session_of(filled), Options(), FACTS) == ""
    assert "Measured speed of 2 rows in turns" in capsys.readouterr().out
    assert run._measure_jointly(session_of(filled), Options(), FACTS) == ""
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [UserError("no checkpoint"), RuntimeError("no checkpoint")])
def test_a_measurement_that_fails_leaves_the_trainings_and_names_the_command(
    error: Exception, tmp_path: Path
) -> None:
    filled = trained(tmp_path)
    session = replace(session_of(filled, failing(error)), selection=Selection(study="systems"))
    said = run._measure_jointly(session, Options(), FACTS)
    assert said.startswith("not measured (speed)")
    assert "no checkpoint" in said and "measure --" in said
    assert filled.store.joint("systems", "shapes", "shapes_v1 & co") is None


def test_after_a_run_on_a_cluster_a_person_chooses_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = trained(tmp_path)
    assert run._measure_jointly(session_of(filled), Options(cluster="auto"), FACTS) == ""
    assert "on the machine that is meant, measures speed." in capsys.readouterr().out
    assert filled.store.joint("systems", "shapes", "shapes_v1 & co") is None
