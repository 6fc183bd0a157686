"""Rows that are reported and not trained, numbers that configs give, numbers that rows measure together."""

import csv as stdlib_csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ablation.claim import Better, CellRef
from ablation.control.control import trial_of
from ablation.driver.display import Board
from ablation.errors import UserError
from ablation.plan_text import describe_plan
from ablation.provenance import staleness
from ablation.render import csv, html, latex, markdown, terminal
from ablation.render.drawing import draw
from ablation.render.files import write_results
from ablation.results.by_class import by_class
from ablation.results.claims import Verdict, verdicts
from ablation.results.frames import _cell_records
from ablation.results.table import FilledTable, assemble
from ablation.session import Session
from ablation.study import ByClass, Cell, Row
from ablation.workspace import Workspace as Folders
from dashboards.report import page
from tests.support.systems_study import ROUNDS, SYSTEMS, trained
from tests.support.workspaces import Workspace

WHERE = ("systems", "shapes", "shapes_v1 & co")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return trained(tmp_path)


def measured(workspace: Workspace, **rounds: list[float]) -> Workspace:
    """The workspace after a joint measurement of its present results."""
    keys = {
        trial.config.method: (trial.evaluations[0].key, workspace.store.attempts([trial.key])[-1].id)
        for trial in workspace.plan.trials
        if trial.seed == 0
    }
    rounds = rounds or ROUNDS
    workspace.store.add_joint(
        WHERE,
        "the test's machine",
        {"commit": "abc", "environment": {"python": "3.1.0", "packages": {}, "modules": {}}},
        dict(keys.values()),
        {keys[method][0]: {"speed": values} for method, values in rounds.items()},
    )
    return workspace


def table(workspace: Workspace) -> FilledTable:
    (filled,) = assemble(workspace.study, workspace.plan, workspace.store)
    return filled


def verdict(workspace: Workspace) -> Verdict:
    return verdicts(workspace.study, [table(workspace)], workspace.setting)[0]


def printed(filled: FilledTable) -> str:
    console = Console(width=100, file=(file := io.StringIO()), color_system=None)
    console.print(terminal.tables([filled]))
    return file.getvalue()


# --- reported rows ---------------------------------------------------------------------------------------


def test_nothing_is_planned_for_a_reported_row(workspace: Workspace) -> None:
    plan = workspace.plan
    assert [trial.config.method for trial in plan.trials] == ["slow", "fast"]
    assert (plan.counts().rows, plan.counts().cells) == (2, 6)
    assert "Old" not in describe_plan(plan)
    assert not any("Old" in finding.row for finding in staleness.find(plan, workspace.store))
    with pytest.raises(UserError, match="No trial"):
        trial_of(plan, "table1 Old")
    assert Board(plan).tables() == {"table1": "   ·    ·"}


def test_a_reported_number_is_never_the_best_of_its_column(workspace: Workspace) -> None:
    filled = table(workspace)
    assert [(c.row, c.column) for c in filled.cells if c.best] == [("Fast", "AP")]
    assert [(c.mean, c.state, c.difference) for c in filled.rows[0]] == [
        (None, "reported", None),
        (None, "reported", None),
        (None, "unreported", None),
    ]


def test_every_format_marks_a_reported_number_and_names_its_source(
    workspace: Workspace, tmp_path: Path
) -> None:
    filled, said = table(workspace), "Reported, not trained here: Old (Someone, 2016)."
    assert "*reported* (99.0)" in markdown.table(filled)
    assert r"\ours{{\footnotesize\itshape reported}}{(99.0)}" in latex.table(filled)
    assert '<span class="reported">reported</span><small>(99.0)</small>' in html.table(filled)
    assert "reported" in printed(filled) and "99.0" in printed(filled)
    assert all(said in text for text in (markdown.table(filled), latex.table(filled), html.table(filled)))
    assert said in " ".join(printed(filled).split())
    first = next(iter(stdlib_csv.DictReader(io.StringIO(csv.table(filled)))))
    assert [first[name] for name in ("ours", "paper", "state", "trial_keys")] == ["", "99", "reported", ""]
    assert said in page(workspace.study, workspace.plan, workspace.store)
    write_results(tmp_path / "results", workspace.study, [filled], [], ["md"])
    assert '"state": "reported"' in (tmp_path / "results" / "manifest.json").read_text()


def test_the_figure_says_that_a_row_is_reported_and_shows_the_papers_number(workspace: Workspace) -> None:
    ours, papers = draw(table(workspace)).axes
    assert [text.get_text() for text in ours.texts] == ["reported"]
    assert papers.lines[0].get_xdata()[0] == 99.0  # type: ignore[index]


def test_a_claim_cannot_rest_on_a_reported_row() -> None:
    claim = Better("c", "", CellRef("table1", "Fast", "AP"), CellRef("table1", "Old", "AP"))
    with pytest.raises(ValueError, match="claim 'c' rests on a row that is reported and not trained"):
        replace(SYSTEMS, claims=(claim,))


def test_a_row_is_trained_or_names_its_source() -> None:
    with pytest.raises(ValueError, match="row 'a': either each cell has a variant"):
        Row("a", ("a",), (Cell(None, "AP", 1.0),))
    with pytest.raises(ValueError, match="row 'Slow': either each cell has a variant"):
        replace(SYSTEMS.tables[0].rows[1], source="Someone")


def test_by_class_a_reported_row_is_left_out(workspace: Workspace) -> None:
    study = replace(SYSTEMS, by_class=ByClass("AP", lambda *_: {}))
    (made,), problems = by_class(study, workspace.plan, workspace.store)
    assert (problems, [row.label for row in made.table.rows]) == ([], ["Slow", "Fast"])


def test_as_data_a_reported_number_has_its_source_and_a_joint_one_its_rounds(workspace: Workspace) -> None:
    records = _cell_records([table(measured(workspace))])
    shown = [(r["row"], r["round"], r["value"], r["paper"], r["state"], r["source"]) for r in records
             if r["column"] == "Speed"]  # fmt: skip
    assert shown[0] == ("Old", None, None, 400.0, "reported", "Someone, 2016")
    assert [one[:3] for one in shown[1:4]] == [("Slow", 0, 10.0), ("Slow", 1, 11.0), ("Slow", 2, 9.0)]


# --- numbers of configs ----------------------------------------------------------------------------------


def test_a_computed_number_is_there_before_anything_trains(tmp_path: Path) -> None:
    boxes = {cell.row: (cell.mean, cell.spread, cell.state) for cell in table(trained(tmp_path, (0, 1))).cells
             if cell.column == "Boxes" and cell.row != "Old"}  # fmt: skip
    assert boxes == {"Slow": (4000.0, None, "complete"), "Fast": (4000.0, None, "complete")}


def test_a_number_that_only_describes_is_never_best_and_has_no_difference(workspace: Workspace) -> None:
    cell = table(workspace).cell("Fast", "Boxes")
    assert (cell.best, cell.difference) == (False, None)
    assert "4000 (6375)" in markdown.table(table(workspace))
    claim = Better("c", "", *(CellRef("table1", row, "Boxes") for row in ("Fast", "Slow")))
    with pytest.raises(ValueError, match="'boxes' has no better direction"):
        replace(SYSTEMS, claims=(claim,))


# --- numbers that rows measure together -----------------------------------------------------------------


def test_a_joint_number_is_unmeasured_until_all_rows_were_measured_in_turns(workspace: Workspace) -> None:
    assert table(workspace).cell("Fast", "Speed").state == "unmeasured"
    assert verdict(workspace).verdict == "pending"
    cell = table(measured(workspace)).cell("Slow", "Speed")
    assert (cell.mean, cell.spread, cell.state) == (10.0, 1.0, "complete")


def test_the_caption_names_the_machine_the_conditions_and_the_rounds(workspace: Workspace) -> None:
    caption = table(measured(workspace)).caption
    assert "Speed: Batch 1, warm, on the test's machine, " in caption
    assert "all rows in turns, mean of 3 rounds ± sample standard deviation." in caption


def test_the_papers_speed_stands_beside_ours_without_a_difference(workspace: Workspace) -> None:
    filled = table(measured(workspace))
    assert "**15** ±1 (40)" in markdown.table(filled)
    assert "Beside ours and not compared: the paper's speed, boxes." in filled.caption
    assert filled.cell("Fast", "Speed").reproduced is None


def test_a_claim_on_speed_compares_round_by_round(workspace: Workspace) -> None:
    found = verdict(measured(workspace))
    # Differences of 5, 5 and 5.5; Student's t with 2 degrees of freedom is 4.303.
    half = 4.303 * (1 / 12) ** 0.5 / 3**0.5
    assert found.verdict == "supported"
    assert found.estimate == pytest.approx(31 / 6)
    assert found.interval == pytest.approx((31 / 6 - half, 31 / 6 + half), abs=1e-3)
    assert found.detail == "3 rounds in turns, of one training each"


def test_rounds_that_disagree_decide_nothing(workspace: Workspace) -> None:
    found = verdict(measured(workspace, slow=[10.0, 20.0, 10.0], fast=[15.0, 14.0, 11.0]))
    assert found.verdict == "undecided"


def test_a_row_that_is_trained_anew_waits_and_the_others_keep_their_rounds(workspace: Workspace) -> None:
    measured(workspace)
    attempts = len(workspace.store.attempts([workspace.trial_key("slow")]))
    assert workspace.store.renew({workspace.trial_key("slow"): attempts})
    workspace.measure("slow", {"AP": 71.0})
    assert table(workspace).cell("Slow", "Speed").state == "unmeasured"
    assert table(workspace).cell("Fast", "Speed").mean == pytest.approx(15.1667, abs=1e-3)


def test_of_several_seeds_the_first_is_measured(tmp_path: Path) -> None:
    cell = table(measured(trained(tmp_path, (0, 1)))).cell("Fast", "Speed")
    assert {source.seed for source in cell.sources} == {0}
    assert len(cell.sources) == 3


def test_code_that_has_changed_since_the_measurement_is_named(workspace: Workspace) -> None:
    plan, store = measured(workspace).plan, workspace.store
    (change,) = staleness.joint_changes(plan, store)
    assert change.startswith("Python was 3.1, is 3.")
    session = Session(plan.study, Folders.at(None), store, plan)
    text = staleness.describe([], plan, session.command, (change,))
    assert "`ablation measure` measures again" in text and change in text
