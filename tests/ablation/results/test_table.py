from dataclasses import replace

import pytest

from ablation.plan import make_plan
from ablation.protocol import Evaluated
from ablation.results.table import FilledCell, assemble, grid, mark_best, num_heading_columns, spans


def tables_of(workspace):
    return {filled.table.id: filled for filled in assemble(workspace.study, workspace.plan, workspace.store)}


def test_a_complete_cell_knows_ours_the_papers_and_where_it_comes_from(full):
    cell = tables_of(full)["table1"].cell("base", "AP")
    assert (cell.mean, cell.spread, cell.paper, cell.state) == (42.5, None, 32.5, "complete")
    assert cell.difference == pytest.approx(10.0)
    (source,) = cell.sources
    assert source.trial_key == full.trial_key("base")
    assert source.commit == "0123456789abcdef"
    assert source.bootstrap is not None
    assert source.bootstrap.is_file()


def test_an_absent_cell_says_its_state(partial):
    steps = tables_of(partial)["table1"]
    assert steps.cell("other", "AP").state == "running 41 %"
    assert steps.cell("base+gn+giou", "AP").state == "failed"
    assert steps.cell("base+gn", "AP").state == "waiting"
    assert tables_of(partial)["table4"].cell("k=3", "AP").state == "waiting"


def test_a_cell_with_some_of_its_seeds_shows_their_mean_but_is_not_complete(partial):
    steps = tables_of(partial)["table1"]
    assert steps.cell("base+gn", "AP").values == {0: 43.4}
    assert not steps.cell("base+gn", "AP").complete
    both = steps.cell("base", "AP")
    assert both.mean == pytest.approx(42.7)
    assert both.spread == pytest.approx(0.4 / 2**0.5)  # two values 0.4 apart


def test_a_cell_whose_trial_was_cancelled_says_so(make_workspace):
    workspace = make_workspace()
    workspace.store.cancel([workspace.trial_key("giou")])
    assert tables_of(workspace)["table3"].cell("a_b", "AP").state == "cancelled"
    assert tables_of(workspace)["table3"].cell("c", "AP").state == "waiting"


def test_a_number_that_is_nan_is_undefined(full):
    cell = tables_of(full)["table3"].cell("a_b", "APS")
    assert cell.mean is None
    assert cell.state == "undefined"


def test_a_number_that_a_finished_evaluation_does_not_have_is_undefined(make_workspace):
    workspace = make_workspace()
    attempt = workspace.start("giou")
    for evaluation in workspace.plan.trial(workspace.trial_key("giou")).evaluations:
        workspace.store.record(attempt, [Evaluated(evaluation.key, {"AP": 40.0}, {})])
    workspace.store.finish(attempt)
    numbers = tables_of(workspace)["table3"]
    assert numbers.cell("a_b", "AP").mean == 40.0
    assert numbers.cell("a_b", "APS").state == "undefined"


def test_the_best_of_a_column_is_marked_with_all_that_show_the_same_number(full):
    tables = tables_of(full)
    best = {(cell.row, cell.column) for cell in tables["table2"].cells if cell.best}
    assert best == {("SSC", "Box"), ("SSC", "Point")}
    low, middle, high = tables["table4"].cells
    equal = replace(middle, sources=(replace(middle.sources[0], value=high.mean - 0.01),))
    assert [cell.best for (cell,) in mark_best([(low,), (equal,), (high,)])] == [False, True, True]


def test_where_all_show_the_same_number_none_is_best(full):
    """44.96 and 45.0 both show 45.0; 30.0 has nothing to be compared with."""
    assert not any(cell.best for cell in tables_of(full)["table3"].cells)


def test_incomplete_cells_are_never_best(partial):
    assert not any(cell.best for filled in tables_of(partial).values() for cell in filled.cells)


def test_a_transposed_table_is_drawn_with_rows_as_columns(full):
    steps = tables_of(full)["table1"]
    lines = grid(steps)
    assert lines[0] == ("Method", "Other", "Base", "Base", "Base")
    assert lines[1] == ("GroupNorm", True, False, True, True)
    assert lines[3][0] == "AP"
    assert all(isinstance(item, FilledCell) for item in lines[3][1:])
    assert num_heading_columns(steps) == 1


def test_only_neighbouring_equal_texts_share_a_heading():
    assert spans(("a", "b", "b", True, True)) == [("a", 1), ("b", 2), (True, 1), (True, 1)]


def test_caption_names_profile_data_seeds_commit_and_setting(partial):
    steps = tables_of(partial)["table1"]
    for part in ("shapes", "shapes_v1 & co", "seeds 0, 1", "commit 0123456789", "96x96", "the paper's: COCO"):
        assert part in steps.caption
    assert "commit none yet" in tables_of(partial)["table4"].caption


def test_uncommitted_changes_show_in_the_caption(make_workspace):
    workspace = make_workspace()
    attempt = workspace.start("base", dirty=True)
    evaluation = workspace.plan.trial(workspace.trial_key("base")).evaluations[0]
    workspace.store.record(attempt, [Evaluated(evaluation.key, {"AP": 40.0})])
    assert "commit 0123456789+changes" in tables_of(workspace)["table1"].caption


def test_tables_that_are_not_planned_are_filled_too_and_wait_where_nothing_has_run(make_workspace):
    workspace = make_workspace()
    workspace.measure("k3", 49.3)
    plan = make_plan(workspace.study, workspace.setting, (0,), ["table2"], workspace.store)
    tables = assemble(workspace.study, plan, workspace.store, ["table1", "table4"])
    assert [cell.state for cell in tables[0].cells] == ["waiting"] * 4
    assert [cell.state for cell in tables[1].cells] == ["complete", "waiting", "waiting"]


def test_named_tables_alone_are_assembled(full):
    assert [t.name for t in assemble(full.study, full.plan, full.store, ["table2"])] == ["Table 2"]


# --- an evaluation server's numbers -------------------------------------------------------------------


def test_a_cell_that_only_a_server_can_fill_says_submit_and_the_caption_what_to_do(make_workspace):
    workspace = make_workspace()
    key, *_ = workspace.submit("k3")
    workspace.submit("k5")
    table = tables_of(workspace)["table4"]
    assert [cell.state for cell in table.cells] == ["submit", "submit", "waiting"]
    assert table.cell("k=3", "AP").mean is None
    file = f"artifacts/{workspace.trial_key('k3')}/submission.zip"
    assert f"Upload {file} of the workspace, and import what comes back for {key}" in table.caption
    assert "1 more likewise" in table.caption
    assert "import what comes back" not in tables_of(workspace)["table1"].caption


def test_an_imported_number_is_a_number_that_is_marked(make_workspace):
    workspace = make_workspace()
    workspace.give(*workspace.submit("k5"), 43.6)
    table = tables_of(workspace)["table4"]
    cell = table.cell("k=5", "AP")
    assert (cell.mean, cell.state, cell.complete, cell.imported) == (43.6, "imported", True, True)
    assert cell.difference == pytest.approx(43.6 - 39.5)
    assert cell.sources[0].bootstrap is None
    assert "† An evaluation server's number" in table.caption
    assert "†" not in tables_of(workspace)["table1"].caption


def test_one_seed_to_submit_leaves_the_others_mean(make_workspace):
    workspace = make_workspace((0, 1))
    workspace.give(*workspace.submit("k5"), 43.6)
    workspace.submit("k5", seed=1)
    cell = tables_of(workspace)["table4"].cell("k=5", "AP")
    assert (cell.mean, cell.complete, cell.state) == (43.6, False, "submit")


# --- the paper's own scale ----------------------------------------------------------------------------


def test_cells_within_tolerance_are_counted_at_the_papers_own_scale_alone(make_workspace):
    workspace = make_workspace()
    for method, value in {"k3": 39.64, "k5": 39.1}.items():  # the paper's: 39.3 and 39.5, within 0.3
        workspace.measure(method, value)
    sentence = "Within their tolerance of the paper's number: 1 of 2 cells."
    assert sentence not in tables_of(workspace)["table4"].caption
    workspace.setting.at_paper_scale = True
    table = tables_of(workspace)["table4"]
    assert [cell.reproduced for cell in table.cells] == [True, False, None]
    assert sentence in table.caption
    assert "tolerance" not in tables_of(workspace)["table1"].caption
