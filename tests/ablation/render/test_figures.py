from dataclasses import replace

import pytest
from PIL import Image

from ablation.metric import SeedNoise
from ablation.render import drawing
from ablation.render.drawing import draw
from ablation.render.figures import write_figures
from ablation.results.table import assemble


def test_every_table_with_a_number_gets_a_png_and_a_pdf(partial, tmp_path):
    paths, _ = write_figures(tmp_path / "figures", assemble(partial.study, partial.plan, partial.store))
    assert [path.name for path in paths] == ["table1.pdf", "table1.png"]
    with Image.open(paths[1]) as image:
        assert image.width > 800
    assert paths[0].read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["table1.pdf", "table1.png"]


def test_equal_results_give_equal_files(full, tmp_path):
    tables = assemble(full.study, full.plan, full.store, ["table2"])
    first, second = (write_figures(tmp_path / name, tables)[0] for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_figure_is_drawn_again_only_when_it_changed_or_a_file_is_missing(full, partial, tmp_path):
    tables = assemble(full.study, full.plan, full.store, ["table2"])
    (pdf, png), _ = write_figures(tmp_path, tables)
    before = pdf.stat().st_mtime_ns
    write_figures(tmp_path, tables)
    assert pdf.stat().st_mtime_ns == before
    pdf.unlink()
    write_figures(tmp_path, tables)
    after = pdf.stat().st_mtime_ns
    assert after != before
    png.write_bytes(b"damaged")
    write_figures(tmp_path, tables)
    assert pdf.stat().st_mtime_ns != after
    (other,) = assemble(partial.study, partial.plan, partial.store, ["table1"])
    assert repr(other) != repr(tables[0])


def test_numeric_rows_are_a_curve_and_named_rows_are_dots(full):
    dots, curve = (draw(t) for t in assemble(full.study, full.plan, full.store, ["table2", "table4"]))
    ours, papers = curve.axes
    assert list(ours.get_xticks()) == [3, 5, 7]
    assert list(papers.lines[0].get_ydata()) == [39.3, 39.5, 39.7]
    assert [label.get_text() for label in dots.axes[0].get_yticklabels()] == ["IoU", "SSC"]


@pytest.mark.parametrize("heading", ["inf", "nan", "1e999", True])
def test_headings_that_are_no_finite_numbers_are_names_of_rows(full, heading):
    (filled,) = assemble(full.study, full.plan, full.store, ["table4"])
    rows = (*filled.table.rows[:2], replace(filled.table.rows[2], headers=(heading,)))
    figure = draw(replace(filled, table=replace(filled.table, rows=rows)))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["k=3", "k=5", "k=7"]


def test_a_table_that_cannot_be_drawn_is_named_and_the_others_have_their_figures(full, tmp_path, monkeypatch):
    tables = assemble(full.study, full.plan, full.store, ["table2", "table4"])
    write_figures(tmp_path, tables[1:])

    def broken(filled):
        if filled.table.id == "table4":
            raise OverflowError("too large")
        return draw(filled)

    monkeypatch.setattr(drawing, "draw", broken)
    monkeypatch.setattr("ablation.render.figures._source", lambda filled: "another")
    paths, problems = write_figures(tmp_path, tables)
    assert [path.name for path in paths] == ["table2.pdf", "table2.png"]
    assert problems == ["Table 4 has no figure: OverflowError: too large"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table2.pdf", "table2.png"]


def test_bars_leave_out_the_noise_that_all_cells_share(full):
    """The replicates of the fixture share noise of 2 points; what each has of its own is 0.1."""
    (figure,) = (draw(t) for t in assemble(full.study, full.plan, full.store, ["table4"]))
    (bars,) = (c for c in figure.axes[0].collections)
    lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert len(lengths) == 3 and all(0 < length < 0.5 for length in lengths)


def test_a_bar_is_about_the_mean_that_its_own_cell_is_in(make_workspace):
    """Two trainings are each half their difference from their mean, and so is what their seeds do to it."""
    workspace = make_workspace()
    for method in ("k3", "k5"):
        workspace.measure(method, 49.3, noise=0.0)
    workspace.setting.seed_noise = {"AP": SeedNoise(0.6, 8)}
    (table,) = assemble(workspace.study, workspace.plan, workspace.store, ["table4"])
    (bars,) = draw(table).axes[0].collections
    lengths = {round(segment[1][1] - segment[0][1], 3) for segment in bars.get_segments() if len(segment)}
    assert lengths == {round(2 * 2.306 * 0.6 * 2**0.5 / 2, 3)}


def test_a_row_without_a_number_says_why(partial):
    (figure,) = (draw(t) for t in assemble(partial.study, partial.plan, partial.store, ["table1"]))
    assert {text.get_text() for text in figure.axes[0].texts} == {"running 41 %", "failed"}


def test_numbers_of_an_evaluation_server_are_drawn_without_bars(make_workspace):
    workspace = make_workspace((0, 1))
    for seed in (0, 1):
        for method, value in {"k3": 49.3, "k5": 49.5, "k7": 49.7}.items():
            workspace.give(*workspace.submit(method, seed), value + seed / 10)
    (figure,) = (draw(t) for t in assemble(workspace.study, workspace.plan, workspace.store, ["table4"]))
    ours = figure.axes[0]
    assert list(ours.lines[0].get_ydata()) == pytest.approx([49.35, 49.55, 49.75])
    (bars,) = ours.collections
    assert all(segment[0][1] == segment[1][1] for segment in bars.get_segments())
