import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.plan import make_plan, register
from ablation.protocol import Checkpointed, Described, Evaluated
from ablation.provenance import environment, staleness
from ablation.study import Cell, Row, Table, Variant

pytestmark = pytest.mark.process

NUMBERS = {"AP": 40.0}
LOSS = '"""A loss."""\n\n\ndef loss(a):\n    return a\n'


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed package `toystale` that this process could import."""
    folder = tmp_path / "code" / "toystale"
    folder.mkdir(parents=True)
    for name, text in {"__init__.py": "", "loss.py": LOSS, "head.py": "b = 1\n"}.items():
        (folder / name).write_text(text)
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    monkeypatch.syspath_prepend(folder.parent)
    assert not any(name.startswith("toystale") for name in sys.modules)
    return folder


def recorded(source: Path, *names: str) -> dict:
    """The environment of an attempt that had imported these modules as they are now."""
    files = {f"toystale.{name}": source / f"{name}.py" for name in names}
    return environment.describe([], ["torch", "pillow"]) | {
        "modules": {name: environment.source_hash(file.read_text()) for name, file in files.items()}
    }


def attempt(workspace, method, source=None, found=None, end="finish", saves=True, dirty=False, plan=None):
    """One attempt at a method's trial, of the commit that `source` is at; it evaluates where it finishes."""
    trial = next(t for t in (plan or workspace.plan).trials if t.config.method == method)
    commit = git(source, "rev-parse", "HEAD") if source else "unknown"
    origin = {"commit": commit, "committed": "2026-11-20", "dirty": dirty}
    number = workspace.store.claim(trial.key, "test", origin)
    reports = [] if found is None else [Described(found)]
    if saves:
        reports.append(Checkpointed(5, str(workspace.root / "artifacts" / trial.key / "step.pt"), "0" * 64))
    if end == "finish":
        reports += [Evaluated(evaluation.key, NUMBERS) for evaluation in trial.missing]
    workspace.store.record(number, reports)
    {"finish": workspace.store.finish, "release": workspace.store.release,
     "fail": lambda number: workspace.store.fail(number, "error")}[end](number)  # fmt: skip
    workspace.store.retry([trial.key])


def found(workspace):
    return staleness.find(workspace.plan, workspace.store)


def command(*words, about):
    return " ".join(words)


def test_unchanged_code_and_packages_give_no_finding(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss", "head"))
    assert found(workspace) == []
    assert "is stale." in staleness.describe([], workspace.plan, command)


def test_a_changed_module_is_named_with_commit_day_and_size_of_the_change(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss", "head"))
    (source / "loss.py").write_text(LOSS.replace("return a", "b = 2 * a\n    return b"))
    (finding,) = found(workspace)
    commit = git(source, "rev-parse", "HEAD")[:7]
    assert finding.text == (
        f"table4 k=3, seed 0: toystale/loss.py changed since commit {commit} (2026-11-20), +2 -1 lines"
    )
    assert (finding.kind, finding.trial_key) == ("stale", workspace.trial_key("k3"))


def test_a_module_that_the_training_never_imported_may_change(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss"))
    (source / "head.py").write_text("b = 2\n")
    assert found(workspace) == []


def test_comments_docstrings_and_line_ends_may_change(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss"))
    text = LOSS.replace("A loss.", "A better word.").replace("return a", "return a  # itself")
    (source / "loss.py").write_bytes(text.replace("\n", "\r\n").encode())
    assert found(workspace) == []


def test_a_change_is_named_without_its_size_where_the_old_text_was_never_committed(make_workspace, source):
    workspace = make_workspace()
    (source / "loss.py").write_text(LOSS + "# being tried\n")
    attempt(workspace, "k3", source, recorded(source, "loss"), dirty=True)
    (source / "loss.py").write_text(LOSS)
    (finding,) = found(workspace)
    assert finding.changes[0].endswith("(2026-11-20) with uncommitted changes")


def test_a_change_is_named_without_a_known_commit_too(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", None, recorded(source, "loss", "head"))
    (source / "loss.py").write_text("def loss(:\n")
    (source / "head.py").unlink()
    (finding,) = found(workspace)
    assert finding.changes == (
        "toystale/loss.py changed since it was recorded",
        "toystale/head.py is gone since it was recorded",
    )


def test_another_version_of_a_package_or_of_python_is_named(make_workspace, source):
    workspace = make_workspace()
    then = recorded(source, "loss")
    then["packages"] = then["packages"] | {"torch": "1.0", "pillow": None}
    attempt(workspace, "k3", source, then | {"python": "3.4.5"})
    (finding,) = found(workspace)
    assert finding.changes == (
        f"torch was 1.0, is {environment.version('torch')}",
        f"pillow was absent, is {environment.version('pillow')}",
        f"Python was 3.4, is {sys.version_info.major}.{sys.version_info.minor}",
    )


def test_hosts_and_gpus_may_differ(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss") | {"host": "node7", "gpus": ["other"]})
    assert found(workspace) == []


def test_an_attempt_without_a_record_is_not_called_stale(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source)
    (finding,) = found(workspace)
    assert (finding.kind, finding.changes) == ("unrecorded", ())
    assert "kept no record to compare: 1 (table4 k=3, seed 0)" in staleness.describe(
        [finding], workspace.plan, command
    )


@pytest.mark.parametrize(("end", "saves"), [("release", False), ("release", True), ("fail", True)])
def test_an_attempt_from_which_another_resumed_counts_too(make_workspace, source, end, saves):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss"), end, saves)
    (source / "loss.py").write_text("def loss(a):\n    return -a\n")
    attempt(workspace, "k3", source, recorded(source, "loss"))
    (finding,) = found(workspace)
    assert "toystale/loss.py changed" in finding.changes[0]


def test_an_attempt_that_ended_before_it_reported_its_environment_does_not_count(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, end="release", saves=False)
    attempt(workspace, "k3", source, recorded(source, "loss"))
    assert found(workspace) == []


def test_a_failed_attempt_without_a_checkpoint_does_not_count(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss"), "fail", saves=False)
    (source / "loss.py").write_text("def loss(a):\n    return -a\n")
    attempt(workspace, "k3", source, recorded(source, "loss"))
    assert found(workspace) == []


def test_a_row_whose_cells_cite_two_trainings_is_named_by_column(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "iou-point", source, recorded(source, "loss"))
    (source / "loss.py").unlink()
    assert [finding.name for finding in found(workspace)] == ["table2 IoU Point, seed 0"]


def test_rows_with_the_same_changes_are_listed_together(make_workspace, source):
    workspace = make_workspace()
    for method in ("k3", "k5"):
        attempt(workspace, method, source, recorded(source, "head"))
    attempt(workspace, "k7", source)
    (source / "head.py").write_text("b = 3\n")
    text = staleness.describe(found(workspace), workspace.plan, command)
    commit = git(source, "rev-parse", "HEAD")[:7]
    assert text.splitlines() == [
        staleness.STALE.format("retry --stale"),
        f"  toystale/head.py changed since commit {commit} (2026-11-20), +1 -1 lines",
        "      table4 k=3, seed 0",
        "      table4 k=5, seed 0",
        "",
        "Results whose attempts kept no record to compare: 1 (table4 k=7, seed 0)",
    ]


def test_a_row_whose_config_has_changed_names_the_old_result_and_what_changed(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss"))
    cell = Cell(Variant(replace(workspace.study.tables[3].rows[0].cells[0].variant.training, method="k4"),
                        workspace.study.tables[3].rows[0].cells[0].variant.evaluation), "AP")  # fmt: skip
    table = workspace.study.tables[3]
    edited = Table("table4", "t", table.headers, table.columns, (Row("k=3", ("3",), (cell,)),))
    study = replace(workspace.study, tables=(edited,), claims=())
    plan = make_plan(study, workspace.setting, (0,), None, workspace.store)
    register(plan, workspace.store)
    (finding,) = staleness.find(plan, workspace.store)
    assert finding.kind == "superseded"
    assert finding.text == "table4 k=3, seed 0: method was k3, is k4"
    assert staleness.SUPERSEDED in staleness.describe([finding], plan, command)


def test_a_row_with_another_evaluation_config_names_the_difference(make_workspace, source):
    workspace = make_workspace()
    attempt(workspace, "k3", source, recorded(source, "loss"))
    workspace.setting.evaluation = lambda evaluation: replace(evaluation, multi_scale=True)
    (finding,) = found(workspace)
    assert finding.text == "table4 k=3, seed 0: multi_scale was False, is True"


def test_a_result_that_a_cell_of_another_table_cites_is_no_older_one(make_workspace, source):
    workspace = make_workspace()
    tested_twice = workspace.study.tables[3].rows[0].cells[0].variant
    other = Cell(replace(tested_twice, evaluation=replace(tested_twice.evaluation, multi_scale=True)), "AP")
    table5 = Table("table5", "t", ("k",), ("AP",), (Row("k=3", ("3",), (other,)),))
    workspace.study = replace(workspace.study, tables=(*workspace.study.tables, table5))
    register(workspace.plan, workspace.store)
    one_table = make_plan(workspace.study, workspace.setting, (0,), ["table5"], workspace.store)
    attempt(workspace, "k3", source, recorded(source, "loss"), plan=one_table)
    plan = make_plan(workspace.study, workspace.setting, (0,), ["table4"], workspace.store)
    assert staleness.find(plan, workspace.store) == []


def test_a_version_of_a_module_is_compared_once_however_many_attempts_had_it(
    make_workspace, source, monkeypatch
):
    workspace = make_workspace()
    for method in ("k3", "k5", "k7"):
        attempt(workspace, method, source, recorded(source, "loss"))
    (source / "loss.py").write_text(LOSS.replace("return a", "return -a"))
    asked = []
    monkeypatch.setattr(staleness, "git", lambda *words: asked.append(words))
    assert len(found(workspace)) == 3
    assert len(asked) == 1
