"""An error rate, and accuracy beside seconds, in every table, claim, figure and display."""

import csv as stdlib_csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ablation.driver.display import Board, PlainDisplay, display
from ablation.metric import SeedNoise
from ablation.plan import make_plan
from ablation.protocol import Evaluated, Progress
from ablation.render import csv, html, latex, markdown, terminal
from ablation.render.drawing import draw
from ablation.render.files import write_results
from ablation.results.by_class import by_class
from ablation.results.claims import Verdict, verdicts
from ablation.results.table import FilledTable, assemble
from ablation.store import schema
from ablation.study import ByClass, Row, Table
from dashboards.report import page
from tests.support.metric_studies import ERRORS, LIKELIHOOD, cell, measured_errors, measured_times
from tests.support.workspaces import Workspace, make


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return measured_errors(tmp_path_factory.mktemp("errors"))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return measured_times(tmp_path_factory.mktemp("timed"))


def tables(workspace: Workspace) -> dict[str, FilledTable]:
    return {one.table.id: one for one in assemble(workspace.study, workspace.plan, workspace.store)}


def judged(workspace: Workspace) -> dict[str, Verdict]:
    found = verdicts(workspace.study, list(tables(workspace).values()), workspace.setting)
    return {verdict.id: verdict for verdict in found}


def printed(renderable: object) -> str:
    console = Console(width=100, file=(file := io.StringIO()), color_system=None)
    console.print(renderable)
    return file.getvalue()


def rows_of(table: FilledTable) -> list[dict[str, str]]:
    return list(stdlib_csv.DictReader(io.StringIO(csv.table(table))))


def leave(workspace: Workspace, attempt: int, evaluation: str, path: Path) -> None:
    """An attempt's detections, recorded after it ended."""
    with workspace.store._transaction(writes=True) as t:
        file = {"kind": "detections", "path": str(path.relative_to(workspace.root)), "time": t.now}
        ids = {"attempt_id": attempt, "evaluation_key": evaluation}
        trial = workspace.store.attempts()[attempt - 1].trial_key
        t.insert(schema.artifacts, {**file, **ids, "trial_key": trial})


# --- tables -------------------------------------------------------------------------------------------


def test_the_lowest_error_is_best(errors: Workspace) -> None:
    best = {key: [cell.row for cell in one.cells if cell.best] for key, one in tables(errors).items()}
    assert best == {"table1": ["most"], "table2": ["3"]}


def test_each_column_has_a_best_of_its_own_metric(timed: Workspace) -> None:
    found = tables(timed)["table1"]
    assert [(c.row, c.column) for c in found.cells if c.best] == [("slow", "Accuracy"), ("fast", "Time")]


def test_cells_of_different_metrics_in_a_column_are_not_compared(timed: Workspace) -> None:
    assert not any(cell.best for cell in tables(timed)["table2"].cells)


def test_every_format_shows_an_error_with_its_digits_and_the_plain_difference(errors: Workspace) -> None:
    table = tables(errors)["table1"]
    assert "**3.00** ±0.01 (4.00, −1.00)" in markdown.table(table)
    assert r"\ours{\textbf{3.00}{\scriptsize\,$\pm$0.01}}{(4.00, $-$1.00)}" in latex.table(table)
    assert "<b>3.00</b> <i>±0.01</i><small>(4.00, −1.00)</small>" in html.table(table)
    assert "3.00* ±0.01" in printed(terminal.table(table))
    (line,) = (line for line in rows_of(table) if line["row"] == "most")
    assert [line[name] for name in ("metric", "ours", "difference")] == ["error", "3.005", "-0.995"]


def test_every_format_names_the_unit_and_direction_of_what_is_no_high_percentage(timed: Workspace) -> None:
    table, said = tables(timed)["table1"], "Units: time in s, lower is better."
    for text in (markdown.table(table), latex.table(table), html.table(table)):
        assert said in text
    assert said in printed(terminal.tables([table]))
    assert "Accuracy in" not in table.caption


def test_seconds_beside_percent_keep_their_own_digits(timed: Workspace) -> None:
    table = tables(timed)["table1"]
    assert "**93.0** ±0.0 (92.0, +1.0) | 3.005 ±0.007 (3.000, +0.005)" in markdown.table(table)
    times = {line["row"]: line["ours"] for line in rows_of(table) if line["metric"] == "time"}
    assert times == {"slow": "3.005", "mid": "2.005", "fast": "0.505"}


def test_large_counts_are_written_out_in_csv(errors: Workspace) -> None:
    table = tables(errors)["table1"]
    source = replace(table.cells[0].sources[0], value=1234567.25)
    large = replace(table, rows=((replace(table.cells[0], sources=(source,)),), *table.rows[1:]))
    assert rows_of(large)[0]["ours"] == "1234567.25"


def test_a_cell_is_reproduced_within_the_tolerance_of_its_metric(errors: Workspace, timed: Workspace) -> None:
    assert [cell.reproduced for cell in tables(errors)["table1"].cells] == [False, True, False]
    assert {cell.metric.name: cell.reproduced for cell in tables(timed)["table1"].cells[:2]} == {
        "accuracy": False,
        "time": None,
    }


def test_a_negative_number_is_a_value(tmp_path: Path) -> None:
    methods = {"low": -3.5, "high": -1.25, "none": math.nan}
    rows = tuple(Row(name, (name,), (cell(name, LIKELIHOOD, -1.0),)) for name in methods)
    table = Table("table1", "Likelihoods", ("Method",), ("Likelihood",), rows)
    study = replace(ERRORS, metrics=(LIKELIHOOD,), tables=(table,), claims=())
    workspace = make(tmp_path, (0,), study)
    for method, value in methods.items():
        workspace.measure(method, value)
    (filled,) = tables(workspace).values()
    assert [(c.mean, c.state, c.best) for c in filled.cells] == [
        (-3.5, "complete", False),
        (-1.25, "complete", True),
        (None, "undefined", False),
    ]
    assert "−3.5 (−1.0, −2.5)" in markdown.table(filled)
    assert "likelihood in nats, higher is better" in filled.caption


def test_by_class_the_lowest_error_of_each_class_is_best(tmp_path: Path) -> None:
    errors = measured_errors(tmp_path)

    def measure(*arguments: object) -> dict[str, float]:
        return {"cat": float(len(Path(str(arguments[-1])).read_text())), "dog": math.nan}

    study = replace(errors.study, by_class=ByClass("error", measure))
    for method, text in {"base": "long text", "more": "text", "most": "t"}.items():
        (trial,) = (t for t in errors.plan.trials if t.key == errors.trial_key(method))
        path = errors.root / "artifacts" / trial.key / "detections"
        path.write_text(text)
        attempt = errors.store.attempts([trial.key])[-1].id
        leave(errors, attempt, trial.evaluations[0].key, path)
    made, problems = by_class(study, make_plan(study, errors.setting, (0,)), errors.store)
    (table,) = (one for one in made if one.table.id == "table1")
    assert (problems, table.table.title) == ([], "Methods: error by class")
    assert [(c.row, c.metric.text(c.mean or 0), c.best) for c in table.cells if c.column == "cat"] == [
        ("base", "9.00", False),
        ("more", "4.00", False),
        ("most", "1.00", True),
    ]
    assert table.caption.count("Units: error in %, lower is better.") == 1
    assert {line["metric"] for line in rows_of(table)} == {"error of cat", "error of dog"}


# --- claims -------------------------------------------------------------------------------------------


def test_a_lower_error_supports_every_kind_of_claim(errors: Workspace) -> None:
    found = judged(errors)
    assert {v.verdict for v in found.values()} == {"supported"}
    assert all(v.points_the_papers_way for v in found.values())
    better, chain = found["Error-better"], found["Error-chain"]
    assert (better.estimate, better.paper) == (pytest.approx(-4.004), -2.0)
    assert (chain.estimate, chain.paper) == (pytest.approx(-2.0), -1.0), "the step that gains least"
    assert found["Error-range"].estimate == pytest.approx(0.104)


def test_a_higher_error_refutes_the_same_claims(tmp_path: Path) -> None:
    workspace = make(tmp_path, (0, 1), ERRORS)
    values = {"base": 3.0, "more": 5.0, "most": 7.0, "k1": 4.0, "k2": 7.0, "k3": 9.0}
    for method, value in values.items():
        for seed in (0, 1):
            workspace.measure(method, value + seed / 100, seed)
    found = judged(workspace).values()
    assert {v.verdict for v in found} == {"refuted"}
    assert not any(v.points_the_papers_way for v in found)


def test_claims_of_two_metrics_are_judged_each_in_its_direction_and_unit(timed: Workspace) -> None:
    found = judged(timed)
    assert {v.verdict for key, v in found.items() if "better" in key or "chain" in key} == {"supported"}
    shown = markdown.claims("Claims", list(found.values()))
    assert "+4.00 [+3.82, +4.18]  " in shown
    assert "−2.5000 [−2.7082, −2.2918] s |" in shown
    assert "Differences: Accuracy in points, higher is better; time in s, lower is better." in shown
    for text in (html.claims(list(found.values())), printed(terminal.claims(list(found.values()), "retry"))):
        assert "−2.5000 [−2.7082, −2.2918] s" in text
        assert "−2.000 s" in text


def test_the_spread_assumed_for_one_seed_is_that_of_the_metric_alone(tmp_path: Path) -> None:
    workspace = measured_times(tmp_path)
    workspace.seeds, workspace.setting.seed_noise = (0,), {"accuracy": SeedNoise(0.05, 8)}
    found = judged(workspace)
    assert found["Accuracy-better"].verdict == "supported"
    assert "taken from the profile" in found["Accuracy-better"].detail
    assert found["Time-better"].verdict == "undecided"
    assert "one seed: spread over seeds unknown" in found["Time-better"].detail


def test_the_manifest_says_what_each_claim_and_cell_measures(timed: Workspace, tmp_path: Path) -> None:
    write_results(tmp_path, timed.study, list(tables(timed).values()), list(judged(timed).values()), ["md"])
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["tables"]["table1"]["rows"]["fast"]["Time"]["metric"] == "time"
    metric = manifest["claims"]["Time-better"]["metric"]
    assert (metric["name"], metric["unit"], metric["better"]) == ("time", "s", "lower")


# --- figures, displays, dashboard ---------------------------------------------------------------------


def test_axes_say_metric_unit_and_direction(errors: Workspace, timed: Workspace) -> None:
    dots, curve = (draw(one) for one in tables(errors).values())
    assert [axes.get_xlabel() for axes in dots.axes] == ["error (%, lower is better)"] * 2
    assert [axes.get_ylabel() for axes in curve.axes] == ["error (%, lower is better)"] * 2
    ours = draw(tables(timed)["table1"]).axes[0]
    assert (ours.get_xlabel(), len(ours.containers)) == ("Accuracy (%)", 1), (
        "no seconds on an axis of percent"
    )


def test_a_figure_leaves_out_rows_of_another_metric(timed: Workspace) -> None:
    (axes,) = draw(tables(timed)["table2"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["accuracy"]


def test_a_display_shows_what_the_study_declares(errors: Workspace) -> None:
    plan = make_plan(errors.study, errors.setting, (0, 1))
    trial, lines = plan.trials[0], list[str]()
    shown = PlainDisplay(Board(plan), lines.append, every_s=0.0)
    shown.started(trial)
    shown.reported(trial, Progress(5, 10, {"loss": 0.25, "rate": 1234.4, "other": 1.0}))
    assert "5/10, loss 0.250, speed 1234 words/s, " in lines[-1]
    shown.reported(trial, Progress(10, 10))
    shown.reported(trial, Evaluated(trial.evaluations[0].key, {"error": 7.004}))
    shown.finished(trial)
    assert any("error 7.00 %, " in line for line in lines)
    assert lines[-1].endswith("table1    7.00    ·    ·")


def test_a_terminal_shows_what_the_study_declares(errors: Workspace) -> None:
    plan = make_plan(errors.study, errors.setting, (0,))
    console = Console(file=(file := io.StringIO()), force_terminal=True, width=120, color_system=None)
    with display(plan, {plan.trials[1].evaluations[0].key: {"error": -0.5}}, console) as shown:
        shown.started(plan.trials[0])
        shown.reported(plan.trials[0], Progress(5, 10, {"loss": 0.25, "rate": 80.0}))
    for piece in ("loss 0.250", "speed 80 words/s", "   · −0.50    ·"):
        assert piece in file.getvalue()


def test_a_dashboard_draws_the_declared_curves_and_lists_the_declared_metrics(errors: Workspace) -> None:
    text = page(errors.study, errors.plan, errors.store)
    assert text.count('aria-label="loss from 2.000 to 1.000 over 100 steps"') == len(errors.plan.trials)
    assert 'aria-label="speed' not in text, "no training reported it"
    assert "<td>error 7.004</td>" in text
    assert "Units: error in %, lower is better." in text
