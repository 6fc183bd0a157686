"""Numbers that an evaluation server gives: awaited, imported, kept and replaced."""

import json
import math
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path

import pytest

from ablation.errors import UserError
from ablation.results.scores import import_scores, waiting
from ablation.workspace import Workspace
from tests.support import workspaces

SCORES = {"AP": 43.6, "APS": 26.1}
RETURNED = json.dumps(SCORES)
MakeWorkspace = Callable[..., "workspaces.Workspace"]


def _import(workspace: workspaces.Workspace, start: str, content: str, *, replace: bool = False) -> str:
    (file := workspace.root / "returned.txt").write_text(content)
    place = Workspace.at(workspace.root)
    return import_scores(workspace.store, place, workspace.study, start, file, replace=replace)


def test_an_evaluation_without_numbers_waits_by_the_name_of_its_row(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    workspace.measure("base", 42.5)
    (key,) = workspace.submit("k5")
    (found,) = waiting(workspace.plan, workspace.store)
    assert (found.key, found.name) == (key, "table4 k=5, seed 0")
    assert found.submission is not None
    assert found.submission.read_text() == "detections"
    assert workspace.plan.trial(workspace.trial_key("k5")).state == "COMPLETE"


def test_an_import_gives_the_numbers_and_keeps_what_was_returned(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    (key,) = workspace.submit("k5")
    said = _import(workspace, key[:3], RETURNED)
    assert said.startswith(f"table4 k=5, seed 0 (evaluation {key}): AP 43.6, APS 26.1.")
    row = workspace.store.evaluations()[key]
    assert (row.metrics, row.imported, row.awaits_scores) == (SCORES, True, False)
    assert workspace.store.resolve(row.artifacts["scores"]).read_text() == RETURNED
    assert waiting(workspace.plan, workspace.store) == []


def test_other_numbers_take_the_place_of_imported_ones_only_when_told_to(
    make_workspace: MakeWorkspace,
) -> None:
    workspace = make_workspace()
    (key,) = workspace.submit("k5")
    _import(workspace, key, RETURNED)
    assert "has these numbers already" in _import(workspace, key, json.dumps(SCORES))
    other = json.dumps(SCORES | {"AP": 44.0})
    with pytest.raises(UserError, match=r"AP 43.6.*while .* has AP 44.0.*--replace"):
        _import(workspace, key, other)
    _import(workspace, key, other, replace=True)
    row = workspace.store.evaluations()[key]
    assert row.metrics["AP"] == 44.0
    assert workspace.store.resolve(row.artifacts["scores"]).read_text() == other
    kept = [a for a in workspace.store.artifacts(row.trial_key) if a.kind == "scores"]
    assert [workspace.store.resolve(a.path).is_file() for a in kept] == [True, True]


def test_only_an_evaluation_that_a_server_measures_takes_its_numbers(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    workspace.measure("base", 42.5)
    (measured,) = workspace.store.evaluations()
    with pytest.raises(UserError, match="None does"):
        _import(workspace, "nothing", RETURNED)
    with pytest.raises(UserError, match="measured here"):
        _import(workspace, measured, RETURNED)
    with pytest.raises(ValueError, match="does not take"):
        workspace.store.import_scores(measured, SCORES, "artifacts")
    keys = workspace.submit("k3") + workspace.submit("k5")
    with pytest.raises(UserError, match=f"nothing.*These do: .*{keys[0]}"):
        _import(workspace, "nothing", RETURNED)
    with pytest.raises(UserError, match="Several evaluations start with ''"):
        _import(workspace, "", RETURNED)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(
    content: bytes | None, make_workspace: MakeWorkspace, tmp_path: Path
) -> None:
    workspace = make_workspace()
    (key,) = workspace.submit("k5")
    file = tmp_path / "returned"
    if content is not None:
        file.write_bytes(content)
    place = Workspace.at(workspace.root)
    with pytest.raises(UserError, match=r"returned cannot be read: (No such file|it is no text)"):
        import_scores(workspace.store, place, workspace.study, key, file, replace=False)


def test_an_undefined_number_is_imported_as_such_and_is_the_same_the_next_time(
    make_workspace: MakeWorkspace,
) -> None:
    workspace = make_workspace()
    (key,) = workspace.submit("k5")
    undefined = json.dumps(SCORES | {"APS": math.nan})
    assert "AP 43.6, APS undefined." in _import(workspace, key, undefined)
    assert "has these numbers already" in _import(workspace, key, undefined)
    assert math.isnan(workspace.store.evaluations()[key].metrics["APS"])


def test_a_study_that_reads_no_scores_or_another_one_is_named(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    (key,) = workspace.submit("k5")
    given = workspace.study
    for study in (changed(given, read_scores=None), changed(given, name="other")):
        workspace.study = study
        with pytest.raises(UserError, match="Name the evaluation's study with --study"):
            _import(workspace, key, RETURNED)
