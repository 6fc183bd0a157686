"""The tables by class: what the detections behind each row give when somebody asks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.errors import UserError
from ablation.plan import make_plan
from ablation.protocol import Evaluated
from ablation.render import csv, html, latex, markdown
from ablation.results import by_class as by_class_module
from ablation.results.by_class import by_class
from ablation.results.table import FilledTable
from ablation.study import ByClass
from tests.support.workspaces import Workspace

asked: list[Path] = []


def read(setting: object, trial: object, evaluation: object, detections: Path) -> dict[str, float]:
    """Stands for the detector's judge: the file holds the numbers."""
    asked.append(detections)
    return dict(json.loads(detections.read_text()))


@pytest.fixture
def make(make_workspace: Callable[..., Workspace]) -> Callable[..., Workspace]:
    def made(seeds: tuple[int, ...] = (0,)) -> Workspace:
        workspace = make_workspace(seeds)
        workspace.study = replace(workspace.study, by_class=ByClass("AP", read))
        asked.clear()
        return workspace

    return made


def leave(workspace: Workspace, method: str, classes: Mapping[str, float], seed: int = 0) -> None:
    """The trial of a method ends with detections of these numbers."""
    attempt = workspace.start(method, seed)
    trial = workspace.plan.trial(workspace.trial_key(method, seed))
    path = workspace.root / "artifacts" / trial.key / "detections.npz"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(classes))
    for evaluation in trial.evaluations:
        workspace.store.record(attempt, [Evaluated(evaluation.key, {"AP": 40.0}, {"detections": str(path)})])
    workspace.store.finish(attempt)


def tables(workspace: Workspace) -> dict[str, FilledTable]:
    made, problems = by_class(workspace.study, workspace.plan, workspace.store)
    assert problems == []
    return {one.table.id: one for one in made if one.table.columns}


def test_each_class_is_a_column_and_the_best_row_of_it_is_marked(make: Callable[..., Workspace]) -> None:
    workspace = make()
    leave(workspace, "giou", {"cat": 30.0, "dog": 60.0})
    leave(workspace, "c", {"cat": 50.0, "dog": 20.0})
    found = tables(workspace)["table3"]
    assert (found.table.columns, found.table.transposed) == (("cat", "dog"), False)
    values = {(cell.row, cell.column): (cell.mean, cell.best) for cell in found.cells}
    assert values == {
        ("a_b", "cat"): (30.0, False),
        ("a_b", "dog"): (60.0, True),
        ("c", "cat"): (50.0, True),
        ("c", "dog"): (20.0, False),
    }


def test_a_row_whose_columns_are_trainings_of_their_own_has_a_line_for_each(
    make: Callable[..., Workspace],
) -> None:
    workspace = make()
    leave(workspace, "iou-box", {"cat": 30.0})
    leave(workspace, "ssc-point", {"cat": 40.0})
    found = tables(workspace)["table2"]
    assert [row.headers for row in found.table.rows] == [
        ("IoU", "Box"),
        ("IoU", "Point"),
        ("SSC", "Box"),
        ("SSC", "Point"),
    ]
    assert [cell.mean for cell in found.cells] == [30.0, None, None, 40.0]
    assert [cell.state for cell in found.cells] == ["complete", "waiting", "waiting", "complete"]


def test_classes_that_outnumber_the_rows_are_rows_themselves(make: Callable[..., Workspace]) -> None:
    workspace = make()
    leave(workspace, "c", {f"class {k}": float(k) for k in range(80)})
    assert tables(workspace)["table3"].table.transposed


def test_seeds_are_averaged_and_a_class_that_one_of_them_lacks_counts_without_it(
    make: Callable[..., Workspace],
) -> None:
    workspace = make((0, 1))
    leave(workspace, "c", {"cat": 30.0, "dog": 10.0}, seed=0)
    leave(workspace, "c", {"cat": 40.0}, seed=1)
    cells = {(cell.row, cell.column): cell for cell in tables(workspace)["table3"].cells}
    assert (cells["c", "cat"].mean, cells["c", "dog"].mean) == (35.0, 10.0)
    assert cells["c", "dog"].state == "undefined"


def test_tables_that_cite_the_same_test_read_its_detections_once(make: Callable[..., Workspace]) -> None:
    workspace = make()
    leave(workspace, "giou", {"cat": 30.0})
    assert {"table1", "table3"} <= set(tables(workspace))
    assert len(asked) == 1


def test_what_only_an_evaluation_server_can_tell_has_no_numbers_by_class(
    make: Callable[..., Workspace],
) -> None:
    workspace = make()
    (key, *_) = workspace.submit("giou")
    leave(workspace, "c", {"cat": 30.0})
    for told in (False, True):
        if told:
            workspace.give(key, 41.0)
        table = tables(workspace)["table3"]
        assert [cell.state for cell in table.cells] == ["undefined", "complete"]
        assert "import-scores" not in table.caption


def test_a_class_that_the_images_do_not_hold_is_undefined(make: Callable[..., Workspace]) -> None:
    workspace = make()
    leave(workspace, "c", {"cat": 30.0, "rare": math.nan})
    states = {cell.column: cell.state for cell in tables(workspace)["table3"].cells if cell.row == "c"}
    assert states == {"cat": "complete", "rare": "undefined"}


def test_one_unreadable_file_leaves_the_other_rows_as_they_are(
    make_workspace: Callable[..., Workspace],
) -> None:
    workspace = make_workspace()

    def some(setting: object, trial: object, evaluation: object, detections: Path) -> dict[str, float]:
        if detections.read_text() == '{"cat": 30.0}':
            raise UserError("detections.npz: not a zip file")
        return read(setting, trial, evaluation, detections)

    workspace.study = replace(workspace.study, by_class=ByClass("AP", some))
    leave(workspace, "giou", {"cat": 30.0})
    leave(workspace, "c", {"cat": 40.0})
    made, problems = by_class(workspace.study, workspace.plan, workspace.store)
    (table,) = (one for one in made if one.table.id == "table3")
    assert [(cell.state, cell.mean) for cell in table.cells] == [("unreadable", None), ("complete", 40.0)]
    assert problems == ["detections.npz: not a zip file"]


def test_a_row_that_ends_while_the_tables_are_made_is_shown_as_it_was_read(
    make: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, assemble = make(), by_class_module.assemble
    leave(workspace, "giou", {"cat": 30.0})

    def beside_a_run(*arguments: object) -> list[FilledTable]:
        found = assemble(*arguments)  # type: ignore[arg-type]
        leave(workspace, "c", {"cat": 40.0})
        return found

    monkeypatch.setattr(by_class_module, "assemble", beside_a_run)
    found = tables(workspace)["table3"]
    assert {cell.row: cell.mean for cell in found.cells} == {"a_b": 30.0, "c": None}


def test_tables_that_are_not_planned_are_there_too(make: Callable[..., Workspace]) -> None:
    workspace = make()
    leave(workspace, "giou", {"cat": 30.0})
    plan = make_plan(workspace.study, workspace.setting, (0,), ["table1"], workspace.store)
    made, _ = by_class(workspace.study, plan, workspace.store)
    assert [one.table.id for one in made if one.table.columns] == ["table1", "table3"]


def test_before_the_first_result_there_is_no_table(make: Callable[..., Workspace]) -> None:
    assert tables(make()) == {}


def test_a_study_without_classes_says_so(make_workspace: Callable[..., Workspace]) -> None:
    with pytest.raises(UserError, match="no numbers by class"):
        tables(make_workspace())


@pytest.mark.parametrize("render", [markdown.table, latex.table, html.table, csv.table])
def test_every_format_can_draw_it_and_none_speaks_of_the_papers_number(
    make: Callable[..., Workspace], render: Callable[[FilledTable], str]
) -> None:
    workspace = make()
    leave(workspace, "c", {"cat_1": 30.04})
    text = render(tables(workspace)["table3"])
    assert "30.0" in text
    assert "the paper's number" not in text
