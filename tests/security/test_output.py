"""Texts of others (names, errors, notices) are shown as they stand by every format, and do nothing there."""

import csv as csv_module
import io
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablation.claim import Better, CellRef
from ablation.metric import Metric
from ablation.plan import Plan, make_plan, register
from ablation.protocol import Noticed
from ablation.render import csv, html, latex, markdown
from ablation.results.table import assemble
from ablation.store import Store
from ablation.study import Cell, Row, Study, Table, Variant
from dashboards.report import page

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'></td>&lt;b&gt;"
TEX = r"\input{/etc/passwd}\write18{id} $x$ % # ^^41"
FORMULA = '=HYPERLINK("http://x","y")'
MARKDOWN = "![a](http://x/y.png) [b](javascript:alert(1)) `c` | <http://x> **d** &lt;e"


@dataclass(frozen=True)
class Training:
    name: str


@dataclass(frozen=True)
class HowTested:
    scale: int = 1


def _setting() -> Any:
    return SimpleNamespace(
        profile="shapes",
        at_paper_scale=False,
        data_name=SCRIPT,
        own_data=None,
        seed_noise={},
        exclusive_gpus=False,
        caption=f"{SCRIPT} {TEX}",
        notices=(),
        context=None,
        trial=lambda training, seed: training,
        evaluation=lambda evaluation: evaluation,
        resources=lambda trial: None,
        cost=lambda trial, evaluations: 1.0,
    )


def _study() -> Study:
    names = (SCRIPT, TEX, FORMULA, MARKDOWN, "[5cm] a", "*b", "+1", "@c")
    rows = tuple(
        Row(name, (name, True), (Cell(Variant(Training(name), HowTested()), "AP", 37.0),)) for name in names
    )
    claim = Better("g", SCRIPT, CellRef("table1", names[0], "=AP"), CellRef("table1", names[1], "=AP"))
    table = Table("table1", f"{SCRIPT} {TEX}", ("=Name", "Flag"), ("=AP",), rows)
    return Study(
        "paper",
        f"{SCRIPT} {TEX}",
        (Metric("AP", label=f"{SCRIPT} {TEX}", better="lower"),),
        (table,),
        (claim,),
        {},
        "shapes",
        lambda request: iter(()),
    )


@pytest.fixture
def nasty(tmp_path: Path) -> tuple[Study, Plan, Store]:
    study, setting = _study(), _setting()
    store = Store.open(tmp_path / "store.db")
    register(make_plan(study, setting, [0], None, store), store)
    trial = make_plan(study, setting, [0], None, store).trials[0]
    attempt = store.claim(trial.key, "host:1", {"commit": SCRIPT})
    assert attempt is not None
    store.record(attempt, [Noticed(SCRIPT)])
    store.fail(attempt, f"Traceback\n{SCRIPT}")
    return study, make_plan(study, setting, [0], None, store), store


class Active(HTMLParser):
    """Collects what would do something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "embed", "link", "base", "form", "b>"):
            self.found.append(tag)
        for name, value in attrs:
            target = name in ("href", "src", "action") and not (value or "").startswith("#")
            if name.startswith("on") or target:
                self.found.append(f"{tag} {name}={value}")


def test_html_pages_hold_no_script_and_no_address_of_others(nasty: tuple[Study, Plan, Store]) -> None:
    study, plan, store = nasty
    tables = assemble(study, plan, store)
    for text in (html.document(study.title, tables, []), page(study, plan, store)):
        parser = Active()
        parser.feed(text)
        assert parser.found == []
        assert "alert(1)" in text  # it is shown, as text
        assert "Content-Security-Policy" in text and "default-src 'none'" in text


def test_csv_cells_are_no_formulas(nasty: tuple[Study, Plan, Store]) -> None:
    study, plan, store = nasty
    (table,) = assemble(study, plan, store)
    rows = list(csv_module.reader(io.StringIO(csv.table(table))))
    assert len(rows) == 9 and {len(row) for row in rows} == {len(rows[0])}
    for row in rows:
        assert not any(entry.startswith(("=", "+", "@", "\t", "\r")) for entry in row), row
    assert rows[3][1] == f"'{FORMULA}"


def test_csv_numbers_stay_numbers_when_they_are_negative() -> None:
    assert csv._plain(-1.25, Metric("AP")) == "-1.25"


def test_markdown_has_no_link_no_picture_no_tag_and_no_further_column(
    nasty: tuple[Study, Plan, Store],
) -> None:
    study, plan, store = nasty
    text = markdown.document(study.title, assemble(study, plan, store))
    assert "\\<" in text and "\\[" in text
    for mark in ("<", "[", "`", "&lt;"):
        for before, after in zip(text.split(mark), text.split(mark)[1:], strict=False):
            assert before.endswith("\\"), (mark, after[:20])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.slow
def test_latex_reads_no_file_runs_nothing_and_compiles(
    nasty: tuple[Study, Plan, Store], tmp_path: Path
) -> None:
    study, plan, store = nasty
    source = tmp_path / "tables.tex"
    source.write_text(latex.document(study.title, assemble(study, plan, store)), encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", source.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "/etc/passwd" not in done.stdout  # pdflatex prints the name of every file it opens


@pytest.mark.parametrize("plain", [TEX, "[5cm]", "*", "a\nb", "\\\\[1cm]"])
def test_latex_leaves_no_command_and_no_argument_of_a_text(plain: str) -> None:
    escaped = latex.escape(plain)
    for mark, replacement in (("[", "{[}"), ("*", "{*}")):
        assert mark not in escaped.replace(replacement, "")
    assert "\\input" not in escaped and "\\write" not in escaped and "\n" not in escaped
