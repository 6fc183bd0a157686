"""A workspace as pandas tables, and as data files."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import ablation
from ablation.errors import UserError
from ablation.render.export import DATA_FORMATS, DataFormat, export
from ablation.results.frames import FRAMES, Results
from ablation.session import Session
from ablation.workspace import Workspace as Folders
from tests.support.workspaces import Workspace


def results_of(workspace: Workspace) -> Results:
    plan = workspace.plan
    return Results(Session(workspace.study, Folders.at(workspace.root), workspace.store, plan))


DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_every_cell_is_a_row_for_each_seed_with_its_value_and_state(partial: Workspace) -> None:
    cells = results_of(partial).cells()
    table = partial.study.tables[0]
    own = cells[cells.table == table.id]
    assert len(own) == len(table.rows) * len(table.columns) * 2
    base = own[own.row == "base"].set_index("seed").value
    assert base.to_dict() == {0: 42.5, 1: 42.9}
    assert set(cells.state) == {"complete", "running", "failed", "waiting"}
    assert cells[cells.state != "complete"].value.isna().all()


def test_the_mean_of_a_rows_cells_is_what_the_table_shows(full: Workspace) -> None:
    means = results_of(full).cells().groupby(["table", "row"]).value.mean()
    assert means["table1"].notna().all()


def test_trials_have_their_state_and_their_config_as_a_dict(partial: Workspace) -> None:
    trials = results_of(partial).trials().set_index("key")
    failed = trials[trials.state == "FAILED"]
    assert list(failed.error) == ["loss is NaN <b>"]
    assert failed.config.iloc[0]["method"] == "giou"


def test_times_are_utc_and_an_attempt_that_runs_has_no_end(partial: Workspace) -> None:
    attempts = results_of(partial).attempts()
    assert str(attempts.started.dt.tz) == "UTC"
    assert attempts[attempts.state == "RUNNING"].ended.isna().all()


def test_claims_have_their_verdict_and_interval(full: Workspace) -> None:
    claims = results_of(full).claims().set_index("id")
    assert set(claims.index) == {claim.id for claim in full.study.claims}
    decided = claims[claims.verdict.isin(["supported", "refuted"])]
    known = decided.dropna(subset=["low", "high"])
    assert len(known) > 0
    assert (known.low <= known.high).all()


def test_a_workspace_without_results_gives_empty_frames_with_their_columns(make_workspace: object) -> None:
    workspace: Workspace = make_workspace((0,))  # type: ignore[operator]
    results = results_of(workspace)
    for name, frame in FRAMES.items():
        assert len(frame(results).columns) >= 4, name
    assert list(results.curves().columns) == ["trial_key", "name", "seed", "metric", "step", "value"]
    assert results.evaluations().empty


@pytest.mark.parametrize("data_format", DATA_FORMATS)
def test_exported_files_hold_what_the_frames_hold(
    data_format: DataFormat, partial: Workspace, tmp_path: Path
) -> None:
    results = results_of(partial)
    paths = export(results, tmp_path / "numbers", data_format)
    assert [path.name for path in paths] == [f"{name}.{data_format}" for name in FRAMES]
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[data_format]
    cells, own = read(tmp_path / "numbers" / f"cells.{data_format}"), results.cells()
    assert len(cells) == len(own)
    assert list(cells.row) == list(own.row)
    pairs = zip(cells.value, own.value, strict=True)
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def test_configs_are_json_text_in_flat_formats(partial: Workspace, tmp_path: Path) -> None:
    export(results_of(partial), tmp_path, "csv")
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert {json.loads(text)["seed"] for text in trials.config} <= {0, 1}


def test_an_option_that_the_study_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no option 'size'; it has: data"):
        ablation.open(tmp_path, size=3)


def test_a_workspace_where_nothing_has_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Nothing has run"):
        ablation.open(tmp_path)


def test_the_python_example_of_the_results_page_runs(
    full: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (DOCS / "results.md").read_text(), re.DOTALL)
    monkeypatch.setattr(ablation, "open", lambda *_, **__: results_of(full), raising=False)
    exec(block.replace("table3", "table1"), {})
    assert "base" in capsys.readouterr().out


@pytest.mark.process
def test_importing_the_package_imports_no_pandas() -> None:
    code = "import ablation, sys; print({'pandas', 'sqlalchemy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
