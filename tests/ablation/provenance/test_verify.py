import json
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.errors import UserError
from ablation.metric import SECONDS, Metric
from ablation.protocol import Evaluated
from ablation.provenance.verify import differences, summary, verify


def rescore(setting, trial, evaluation, detections: Path) -> dict[str, float]:
    """The toy study's judge: its detections are the numbers themselves."""
    if detections.read_text() == "no detections":
        raise UserError("they name no image")
    return json.loads(detections.read_text())


@pytest.fixture
def workspace(make_workspace):
    made = make_workspace()
    made.study = replace(made.study, rescore=rescore)
    return made


def evaluate(workspace, method, metrics, detections=None, **others: str):
    """The method's trial ends with these numbers and files; returns where the files lie."""
    attempt = workspace.start(method)
    trial = workspace.plan.trial(workspace.trial_key(method))
    folder = workspace.root / "artifacts" / trial.key / workspace.store.trial_states()[trial.key].folder
    folder.mkdir(parents=True)
    texts = {"detections": json.dumps(metrics) if detections is None else detections} | others
    for kind, text in texts.items():
        (folder / kind).write_text(text)
    paths = {kind: str(folder / kind) for kind in texts}
    for evaluation in trial.evaluations:
        workspace.store.record(attempt, [Evaluated(evaluation.key, metrics, paths)])
    workspace.store.finish(attempt)
    return folder


def verdicts(workspace):
    return list(verify(workspace.plan, workspace.store))


def test_an_evaluation_whose_metrics_are_recomputed_equally_is_ok(workspace):
    evaluate(workspace, "k3", {"AP": 12.345678901234567, "APS": float("nan")}, '{"AP": 12.345678901234567}')
    (verdict,) = verdicts(workspace)
    assert (verdict.ok, verdict.problems, verdict.notes) == (True, (), ())
    assert verdict.name == "table4 k=3, seed 0"
    assert summary([verdict]) == "1 of 1 evaluations are verified."


def test_a_number_that_differs_in_its_last_digit_is_a_problem(workspace):
    evaluate(workspace, "k3", {"AP": 40.1, "AP50": 60.0}, '{"AP": 40.10000000000001, "AP50": 60.0}')
    (verdict,) = verdicts(workspace)
    assert verdict.problems == ("AP is stored as 40.1 and recomputed as 40.10000000000001",)
    assert summary([verdict]) == "0 of 1 evaluations are verified, 1 differ from the store."


def test_a_metric_on_one_side_only_is_a_difference():
    assert len(differences({"AP": 1.0}, {"AP": 1.0, "AP50": 2.0})) == 1
    assert len(differences({"AP": 1.0, "AP50": 2.0}, {"AP": 1.0})) == 1
    assert differences({"AP": float("nan")}, {}) == []


def test_a_damaged_a_missing_and_another_kind_of_file_are_named(workspace):
    folder = evaluate(workspace, "k3", {"AP": 40.0}, bootstrap="b", matches="m")
    (folder / "detections").write_text("{}")
    (folder / "matches").unlink()
    (verdict,) = verdicts(workspace)
    place = f"artifacts/{folder.name}"
    assert verdict.problems == (
        f"detections: {place}/detections has changed since it was stored",
        f"matches: {place}/matches cannot be read (No such file or directory)",
    )


def test_of_a_renewed_evaluation_the_new_files_are_checked(workspace):
    before = evaluate(workspace, "k3", {"AP": 40.0}, matches="m")
    workspace.store.renew({workspace.trial_key("k3"): 1})
    assert verdicts(workspace) == []
    evaluate(workspace, "k3", {"AP": 41.0})
    (before / "matches").unlink()
    (verdict,) = verdicts(workspace)
    assert (verdict.problems, verdict.notes) == ((), ())


def test_a_file_that_was_missing_when_it_was_stored_is_a_problem(workspace):
    attempt = workspace.start("k3")
    (evaluation,) = workspace.plan.trial(workspace.trial_key("k3")).evaluations
    workspace.store.record(attempt, [Evaluated(evaluation.key, {"AP": 1.0}, {"bootstrap": "artifacts/none"})])
    (verdict,) = verdicts(workspace)
    assert "cannot be read" in verdict.problems[0]


def test_detections_that_cannot_be_scored_are_a_problem(workspace):
    evaluate(workspace, "k3", {"AP": 40.0}, "no detections")
    (verdict,) = verdicts(workspace)
    assert verdict.problems == ("the metrics cannot be recomputed: they name no image",)


def test_metrics_without_predictions_are_noted_as_unchecked(workspace):
    workspace.measure("k3", 40.0)
    (verdict,) = verdicts(workspace)
    assert verdict.ok
    assert verdict.notes == ("not recomputed: no predictions are stored",)
    assert "1 of them only in part" in summary([verdict])


def test_a_study_that_cannot_score_again_says_so(workspace):
    evaluate(workspace, "k3", {"AP": 40.0})
    workspace.study = replace(workspace.study, rescore=None)
    assert verdicts(workspace)[0].notes


def test_an_evaluation_that_awaits_scores_is_not_recomputed_but_its_files_are_checked(workspace):
    workspace.submit("k3")
    (verdict,) = verdicts(workspace)
    assert verdict.ok
    assert "still to come from an evaluation server" in verdict.notes[0]
    (workspace.root / "artifacts" / workspace.trial_key("k3") / "submission.zip").write_text("cut")
    assert not verdicts(workspace)[0].ok


def test_imported_numbers_are_compared_with_the_file_that_the_server_returned(workspace):
    (key,) = workspace.submit("k3")
    path = workspace.root / "artifacts" / "scores.txt"
    given = {"AP": 43.6, "APS": 26.0}
    path.write_text(json.dumps(given))
    workspace.store.import_scores(key, given, str(path))
    assert verdicts(workspace)[0].ok
    workspace.store.import_scores(key, given | {"AP": 43.7}, str(path))
    assert verdicts(workspace)[0].problems == ("AP is stored as 43.7 and recomputed as 43.6",)


def test_recomputed_metrics_may_differ_by_their_tolerance(workspace):
    workspace.study = replace(
        workspace.study,
        metrics=(
            Metric("AP", rescore_tolerance=0.1),
            Metric("APS"),
            Metric("seconds", unit=SECONDS, better="lower", rescore_tolerance=None),
        ),
    )
    stored = {"AP": 40.0, "APS": 20.0, "seconds": 3.2}
    evaluate(workspace, "k3", stored, json.dumps({"AP": 40.09, "APS": 20.0}))
    evaluate(workspace, "k5", stored, json.dumps({"AP": 40.2, "APS": 20.01}))
    evaluate(workspace, "k7", stored, json.dumps({"APS": 20.0}))
    problems = {verdict.name: len(verdict.problems) for verdict in verdicts(workspace)}
    assert problems == {"table4 k=3, seed 0": 0, "table4 k=5, seed 0": 2, "table4 k=7, seed 0": 1}


def test_every_result_gets_a_verdict_as_soon_as_it_is_verified(workspace):
    evaluate(workspace, "k3", {"AP": 40.0})
    evaluate(workspace, "k5", {"AP": 41.0})
    workspace.start("k7")
    found = verify(workspace.plan, workspace.store)
    assert next(found).name == "table4 k=3, seed 0"
    assert [verdict.name for verdict in found] == ["table4 k=5, seed 0"]
