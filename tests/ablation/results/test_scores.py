"""Numbers that an evaluation server gives: read, refused, kept, replaced, and waited for."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ablation.errors import UserError
from ablation.results.scores import import_scores, parse_scores, waiting
from ablation.workspace import Workspace
from tests.support import workspaces
from tests.support.coco_summary import SUMMARY

SCORES = {"AP": 43.6, "AP50": 62.1, "AP75": 47.4, "APS": 26.1, "APM": 47.0, "APL": 53.6}
FRACTIONS = {name: round(value / 100, 3) for name, value in SCORES.items()}
MakeWorkspace = Callable[..., workspaces.Workspace]


# --- reading -----------------------------------------------------------------------------------------


def test_the_summary_of_pycocotools_is_read_as_fractions() -> None:
    assert parse_scores(SUMMARY, "stdout.txt") == SCORES


@pytest.mark.parametrize(
    "given",
    [
        SCORES,
        FRACTIONS,
        {
            "AP": 0.436,
            "AP_50": 0.621,
            "AP_75": 0.474,
            "AP_small": 0.261,
            "AP_medium": 0.47,
            "AP_large": 0.536,
        },
        FRACTIONS | {"AR_max_100": 0.622, "ARs": 0.424},
    ],
)
def test_json_is_read_in_percent_or_fractions_and_in_either_spelling(given: dict[str, float]) -> None:
    assert parse_scores(json.dumps(given), "scores.json") == SCORES


def test_one_number_above_1_makes_all_of_a_json_percent() -> None:
    low = dict.fromkeys(SCORES, 0.4)
    assert parse_scores(json.dumps(low), "x")["APS"] == 40.0
    assert parse_scores(json.dumps(low | {"AP50": 1.2}), "x")["APS"] == 0.4


def test_what_has_nothing_to_average_stays_undefined() -> None:
    assert parse_scores(SUMMARY.replace("0.261", "-1.000"), "x")["APS"] == -1.0
    assert parse_scores(json.dumps(SCORES | {"APS": -1}), "x") == SCORES | {"APS": -1.0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "AP, AP50, AP75, APS, APM, APL missing. It must be the 12 lines"),
        (SUMMARY.replace("area= small", "area=  tiny"), "APS missing"),
        (SUMMARY + SUMMARY, "AP, AP50, AP75, APL, APM, APS given twice"),
        (SUMMARY.replace("0.436", "43.6"), "AP is 43.6, read as a fraction: it must lie in 0..1"),
        (SUMMARY.replace("0.436", "nan"), "AP is nan"),
        (json.dumps({"AP": 43.6}), "AP50, AP75, APS, APM, APL missing"),
        (json.dumps(SCORES | {"AP_50": 1.0}), "AP50 given twice"),
        (json.dumps(SCORES | {"mask": 1.0}), "mask unknown"),
        (json.dumps(SCORES | {"AP": 436}), "AP is 436, read as percent: it must lie in 0..100"),
        (json.dumps(SCORES | {"AP": True}), "AP must be a number, got True"),
        (json.dumps(SCORES | {"AP": [1]}), "AP must be a number"),
        (json.dumps(SCORES | {"AP": {"a": 1}}), "AP must be a number"),
        ("{", "no valid JSON"),
    ],
)
def test_a_file_without_the_six_numbers_is_refused_with_what_is_wrong(content: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        parse_scores(content, "scores.txt")


# --- waiting and importing ---------------------------------------------------------------------------


def _import(workspace: workspaces.Workspace, start: str, content: str, *, replace: bool = False) -> str:
    file = workspace.root / "returned.txt"
    file.write_text(content)
    return import_scores(workspace.store, Workspace.at(workspace.root), start, file, replace=replace)


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
    said = _import(workspace, key[:3], SUMMARY)
    assert said.startswith(f"table4 k=5, seed 0 (evaluation {key}): AP 43.6, AP50 62.1")
    row = workspace.store.evaluations()[key]
    assert (row.metrics, row.imported, row.awaits_scores) == (SCORES, True, False)
    assert workspace.store.resolve(row.artifacts["scores"]).read_text() == SUMMARY
    assert waiting(workspace.plan, workspace.store) == []


def test_other_numbers_take_the_place_of_imported_ones_only_when_told_to(
    make_workspace: MakeWorkspace,
) -> None:
    workspace = make_workspace()
    (key,) = workspace.submit("k5")
    _import(workspace, key, SUMMARY)
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
        _import(workspace, "nothing", SUMMARY)
    with pytest.raises(UserError, match="measured here"):
        _import(workspace, measured, SUMMARY)
    with pytest.raises(ValueError, match="does not wait"):
        workspace.store.import_scores(measured, SCORES, "artifacts")
    keys = workspace.submit("k3") + workspace.submit("k5")
    with pytest.raises(UserError, match=f"nothing.*These do: .*{keys[0]}"):
        _import(workspace, "nothing", SUMMARY)
    with pytest.raises(UserError, match="Several evaluations start with ''"):
        _import(workspace, "", SUMMARY)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(
    content: bytes | None, make_workspace: MakeWorkspace, tmp_path: Path
) -> None:
    workspace = make_workspace()
    (key,) = workspace.submit("k5")
    file = tmp_path / "returned"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"returned cannot be read: (No such file|it is no text)"):
        import_scores(workspace.store, Workspace.at(workspace.root), key, file, replace=False)
