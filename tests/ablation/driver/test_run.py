"""How a `run` ends, and what it leaves for people."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ablation.driver import run
from ablation.driver.launch import Summary
from ablation.plan import make_plan
from ablation.render.report import print_report
from ablation.session import Session
from ablation.workspace import Workspace
from tests.support import workspaces

ENDED = Summary((), {}, (), interrupted=False, seconds=1.0)


def _session(filled: workspaces.Workspace, folder: Path, tables: list[str] | None = None) -> Session:
    setting = replace(filled.setting, data_name="shapes")  # one that makes a folder name
    plan = make_plan(filled.study, setting, filled.seeds, tables, filled.store)
    return Session(filled.study, Workspace.at(folder), filled.store, plan)


def test_only_a_complete_plan_is_a_success_and_what_is_not_is_listed(
    full: workspaces.Workspace,
    partial: workspaces.Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "print_report", lambda *_: None)
    assert run._conclude(_session(full, tmp_path), ENDED, [], Console()) == 0
    assert capsys.readouterr().err == ""
    assert run._conclude(_session(partial, tmp_path), ENDED, [], Console()) == run.EXIT_FAILED
    said = capsys.readouterr().err.splitlines()
    assert "running: table1 other, seed 0" in said
    assert "failed: table1 base+gn+giou, seed 0: loss is NaN <b>" in said
    assert "waiting: table1 base+gn, seed 1" in said
    assert said[-1] == "1 failed; `--retry-failed` runs them again."


def test_a_report_of_one_table_prints_it_and_keeps_the_others_in_the_folder(
    full: workspaces.Workspace, tmp_path: Path
) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    session = _session(full, tmp_path, ["table2"])
    print_report(session, ["md"], console)
    shown = console.export_text()
    assert "Table 2" in shown
    assert "Table 1" not in shown
    assert "2 claims: 2 supported" in shown, "one on its cells, and one that is computed"
    assert "5 claims: 5 supported" in (session.results / "claims.md").read_text()
    manifest = json.loads((session.results / "manifest.json").read_text())
    assert list(manifest["tables"]) == ["table1", "table2", "table3", "table4"]
