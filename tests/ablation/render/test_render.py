import csv as stdlib_csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from ablation.errors import UserError
from ablation.render import csv, html, latex, markdown, terminal, text
from ablation.render.files import write_results
from ablation.results.claims import verdicts
from ablation.results.table import assemble

# The title of a table holds a sign that matplotlib's font lacks.
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")


def tables_of(workspace, table_ids=None):
    return assemble(workspace.study, workspace.plan, workspace.store, table_ids)


def judged_of(workspace):
    return verdicts(workspace.study, tables_of(workspace), workspace.setting)


def printed(renderable, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


# --- the words of a cell ------------------------------------------------------------------------------


def test_a_cell_reads_as_ours_the_papers_and_their_difference(full):
    (table,) = tables_of(full, ["table2"])
    cell = table.cell("IoU", "Box")
    assert (text.ours(cell), text.spread(cell), text.reference(cell)) == ("47.0", "", "37.0, +10.0")
    assert full.trial_key("iou-box") in text.provenance(cell)


def test_the_difference_is_that_of_the_numbers_shown(full):
    (table,) = tables_of(full, ["table3"])
    # 44.96 shows as 45.0, so the difference to 34.9 must show as 10.1.
    assert text.reference(table.cell("a_b", "AP")) == "34.9, +10.1"


def test_several_seeds_show_their_spread_and_missing_ones_are_counted(partial):
    (table,) = tables_of(partial, ["table1"])
    assert text.spread(table.cell("base", "AP")) == "±0.3"
    assert text.spread(table.cell("base+gn", "AP")) == "1/2"
    running = table.cell("other", "AP")
    assert (text.ours(running), text.reference(running)) == ("running 41 %", "37.8")


@pytest.fixture
def served(make_workspace):
    """table4 with an imported number, one to submit, and one that waits."""
    workspace = make_workspace()
    workspace.give(*workspace.submit("k3"), 43.6)
    workspace.submit("k5")
    return workspace


def test_a_number_of_an_evaluation_server_is_marked_in_every_format(served):
    (table,) = tables_of(served, ["table4"])
    assert text.ours(table.cell("k=3", "AP")) == "43.6†"
    assert "43.6† (39.3, +4.3)" in markdown.table(table)
    assert r"43.6$\dagger$" in latex.table(table)
    assert r"$\dagger$ An evaluation server's number" in latex.table(table)
    assert ">43.6†" in html.table(table)
    assert [line["state"] for line in stdlib_csv.DictReader(io.StringIO(csv.table(table)))] == [
        "imported",
        "submit",
        "waiting",
    ]


def test_the_terminal_says_below_a_table_what_to_submit(served):
    shown = " ".join(printed(terminal.tables(tables_of(served, ["table4", "table1"]))).split())
    before, after = shown.split("Table 4")
    assert "43.6†" in after
    assert "ablation status prints the command" in after
    assert "ablation status" not in before
    assert '<span class="submit">submit</span>' in html.table(tables_of(served, ["table4"])[0])


# --- Markdown -----------------------------------------------------------------------------------------


def test_markdown_is_as_it_was(full):
    (table,) = tables_of(full, ["table2"])
    assert markdown.table(table).splitlines()[2:6] == [
        "| Rule | Box                    | Point                  |",
        "| :--- | :--------------------: | :--------------------: |",
        "| IoU  | 47.0 (37.0, +10.0)     | 46.9 (36.9, +10.0)     |",
        "| SSC  | **47.8** (37.8, +10.0) | **47.8** (37.8, +10.0) |",
    ]


def test_markdown_keeps_the_papers_layout_with_check_marks(full):
    (table,) = tables_of(full, ["table1"])
    lines = [
        [entry.strip() for entry in line.strip("|").split("|")]
        for line in markdown.table(table).splitlines()
        if line.startswith("|")
    ]
    assert lines[0] == ["Method", "Other", "Base", "Base", "Base"]
    assert lines[2] == ["GroupNorm", "✓", "", "✓", "✓"]
    assert lines[4][:3] == ["AP", "**47.8** (37.8, +10.0)", "42.5 (32.5, +10.0)"]


def test_markdown_text_cannot_break_the_table(full):
    (table,) = tables_of(full, ["table3"])
    rows = [line for line in markdown.table(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert r"a\_b\~^\\ $5\|\*x\*" in rows[2]


# --- LaTeX --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("50 % & #1 $x_y$ {z}", r"50 \% \& \#1 \$x\_y\$ \{z\}"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("é ñ ö ı", r"{\'{e}} {\~{n}} {" + r"\"{o}} \texttt{U+0131}"),
        ("±−✓ 中", r"$\pm$$-$$\checkmark$ \texttt{U+4E2D}"),
        ("two\nlines\x00", "two lines"),
        ("ﬁ", "fi"),
    ],
)
def test_latex_escapes_everything_to_ascii(plain, escaped):
    assert latex.escape(plain) == escaped


def test_latex_shares_a_heading_over_equal_neighbours(full):
    (table,) = tables_of(full, ["table1"])
    assert r"\multicolumn{3}{c}{Base}" in latex.table(table)
    assert r"\cmidrule(lr){3-5}" in latex.table(table)
    assert r"\checkmark" in latex.table(table)


def compiled(folder, document):
    source = folder / "tables.tex"
    source.write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", source.name]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert ran.returncode == 0, ran.stdout[-2000:]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("state", ["full", "partial"])
def test_latex_compiles_and_no_line_is_wider_than_the_page(state, request, tmp_path):
    workspace = request.getfixturevalue(state)
    compiled(tmp_path, latex.document(workspace.study.title, tables_of(workspace)))
    assert "Overfull" not in (tmp_path / "tables.log").read_text(errors="replace")
    assert (tmp_path / "tables.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_of_a_table_longer_than_a_page_is_fitted_to_one(full, tmp_path):
    (table,) = tables_of(full, ["table3"])
    rows = [replace(row, label=f"{row.label} {place}") for place in range(45) for row in table.table.rows]
    high = replace(table, table=replace(table.table, rows=tuple(rows)), rows=table.rows * 45)
    compiled(tmp_path, latex.document("High", [high]))
    assert "too large" not in (tmp_path / "tables.log").read_text(errors="replace")


# --- CSV ----------------------------------------------------------------------------------------------


def test_csv_has_a_line_per_cell_with_every_part_in_its_column(partial):
    (table,) = tables_of(partial, ["table1"])
    lines = {line["row"]: line for line in stdlib_csv.DictReader(io.StringIO(csv.table(table)))}
    base, running = lines["base"], lines["other"]
    assert (base["table"], base["Method"], base["GroupNorm"], base["column"]) == ("table1", "Base", "", "AP")
    assert (base["ours"], base["paper"], base["difference"], base["seeds"]) == ("42.7", "32.5", "10.2", "2/2")
    assert base["trial_keys"].split() == [partial.trial_key("base"), partial.trial_key("base", 1)]
    assert (running["ours"], running["state"], running["GIoU"]) == ("", "running 41 %", "✓")


def test_csv_survives_any_text(full):
    (table,) = tables_of(full, ["table3"])
    lines = list(stdlib_csv.DictReader(io.StringIO(csv.table(table))))
    assert lines[0]["Method & {co}"] == "a_b~^\\ $5|*x*"
    assert [line["state"] for line in lines] == ["complete", "undefined", "complete", "complete"]


# --- HTML ---------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Checks that tags nest, and collects the text of cells and tooltips."""

    def __init__(self, source):
        super().__init__()
        self.open, self.titles, self.text = [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_nests_and_needs_no_other_file(partial):
    page = html.document(partial.study.title, tables_of(partial), judged_of(partial))
    Outline(page)
    assert "src=" not in page
    assert not re.search(r'href="(?!#)', page)
    assert "prefers-color-scheme: dark" in page


def test_html_shows_any_text_as_it_stands(full):
    outline = Outline(html.document(full.study.title, tables_of(full), judged_of(full)))
    shown = "".join(outline.text)
    for plain in ("A paper of 100 % & more", "100% of <b>_names_</b> | & é中", "a_b~^\\ $5|*x*"):
        assert plain in shown


def test_check_marks_are_no_words_in_a_table_that_is_not_turned_either(full):
    (turned,) = tables_of(full, ["table1"])
    plain = replace(turned, table=replace(turned.table, transposed=False))
    for render in (html.table, markdown.table, latex.table):
        assert not re.search("True|False", render(plain))
    assert html.table(plain).count("✓") == html.table(turned).count("✓") > 0


def test_html_cells_lead_to_their_trials(full):
    (table,) = tables_of(full, ["table1"])
    titles = Outline(html.table(table)).titles
    assert any(full.trial_key("base") in title and "42.500" in title for title in titles)


# --- terminal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("state", ["full", "partial"])
def test_terminal_tables_fit_and_lose_nothing(state, width, request):
    workspace = request.getfixturevalue(state)
    tables = tables_of(workspace)
    shown = printed(terminal.tables(tables), width)
    assert max(map(len, shown.splitlines())) <= width
    words = shown.split()
    for cell in (cell for table in tables for cell in table.cells):
        assert text.ours(cell).split()[0] + ("*" if cell.best else "") in words


def test_terminal_without_colour_is_plain_text_and_still_shows_the_best(full):
    shown = printed(terminal.tables(tables_of(full, ["table2"])))
    assert "\x1b" not in shown
    assert "47.8*" in shown
    assert "* is the best of each metric" in " ".join(shown.split())


def test_terminal_claims_end_with_the_summary(partial):
    shown = printed(terminal.claims(judged_of(partial), "retry"))
    assert shown.rstrip().splitlines()[-1] == "5 claims: 1 supported, 4 pending; 1 point the paper's way."


@pytest.mark.parametrize(
    ("content", "tip"),
    [
        ({"replicates": np.zeros((200, 2))}, "1 bootstrap file of an earlier version cannot be read"),
        ({"AP": np.zeros(200)}, "1 bootstrap file cannot be read"),
    ],
)
def test_terminal_claims_say_that_a_bootstrap_file_cannot_be_read(make_workspace, content, tip):
    workspace = make_workspace()
    for method in ("other", "base"):
        workspace.measure(method, 42.5)
    np.savez(workspace.root / "artifacts" / workspace.trial_key("other") / "bootstrap.npz", **content)
    assert tip in " ".join(printed(terminal.claims(judged_of(workspace), "retry")).split())


# --- the results folder -------------------------------------------------------------------------------


def test_results_hold_every_format_and_no_half_written_file(full, tmp_path):
    directory = tmp_path / "results"
    paths, problems = write_results(directory, full.study, tables_of(full), judged_of(full))
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert names == {path.relative_to(directory).as_posix() for path in paths}
    assert problems == []
    assert {"tables.md", "tables.tex", "tables.html", "claims.md", "manifest.json"} <= names
    assert {f"table{n}.csv" for n in (1, 2, 3, 4)} <= names
    assert {f"figures/table{n}.{kind}" for n in (1, 2, 3, 4) for kind in ("png", "pdf")} <= names


def test_only_the_formats_asked_for_are_written(full, tmp_path):
    write_results(tmp_path / "results", full.study, tables_of(full, ["table2"]), judged_of(full), ["csv"])
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"table2.csv", "claims.md", "manifest.json", "figures"}


def test_the_manifest_leads_from_a_cell_to_what_it_rests_on(full, tmp_path):
    write_results(tmp_path / "results", full.study, tables_of(full, ["table1"]), judged_of(full), ["md"])
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text(encoding="utf-8"))
    cell = manifest["tables"]["table1"]["rows"]["base"]["AP"]
    assert cell["ours"] == 42.5
    seed = cell["seeds"]["0"]
    assert seed["trial"] == full.trial_key("base")
    assert seed["commit"] == "0123456789abcdef"
    assert manifest["claims"]["better"]["verdict"] == "supported"


def test_equal_results_write_equal_files(full, tmp_path):
    first, second = (
        write_results(tmp_path / name, full.study, tables_of(full, ["table4"]), judged_of(full))[0]
        for name in "ab"
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_tables_are_written_even_where_nothing_can_be_drawn(full, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ablation.render.drawing", None)  # as without matplotlib
    paths, problems = write_results(tmp_path, full.study, tables_of(full), judged_of(full))
    assert {"tables.md", "claims.md"} <= {path.name for path in paths}
    assert len(problems) == len(full.study.tables)


def test_an_unknown_format_is_refused_with_those_there_are(full, tmp_path):
    with pytest.raises(UserError, match=r"pdf.*md, latex, csv, html"):
        write_results(tmp_path, full.study, [], [], ["md", "pdf"])


def test_a_folder_that_cannot_be_written_is_named(full, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="cannot write results"):
        write_results(tmp_path / "results", full.study, [], [], ["md"])


def test_an_empty_store_still_makes_results(make_workspace, tmp_path):
    workspace = make_workspace()
    paths, _ = write_results(
        tmp_path / "results", workspace.study, tables_of(workspace), judged_of(workspace)
    )
    assert "waiting" in (tmp_path / "results" / "tables.md").read_text(encoding="utf-8")
    assert not [path for path in paths if path.suffix == ".png"]
