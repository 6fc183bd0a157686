"""The command line says what it wants."""

import argparse
import ast
import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import make_url

from ablation import cli, session, studies
from ablation.cli import control, inspect
from ablation.cli import run as run_module
from ablation.cli.arguments import selection_of
from ablation.cluster import connection
from ablation.control.status import watch
from ablation.driver import launch, run
from ablation.driver.launch import Summary
from ablation.errors import UserError
from ablation.options import named, option
from ablation.plan import Plan
from ablation.protocol import Evaluated, Progress
from ablation.run_options import Options
from ablation.session import Locations, Selection, Session
from ablation.store import Store
from ablation.study import ByClass, Cell, DataReport, Profile, Row, Study, Table, Variant
from ablation.tracking.mirror import Mirror
from ablation.workspace import Workspace
from dashboards import __main__ as dashboard
from experiments.detection.options import DetectionOptions
from tests.support import workspaces
from tests.support.toy_driver import Count, Toy, toy_study


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    code = ended.value.code
    return code if isinstance(code, int) else 1


COMMANDS = (
    *("plan", "run", "status", "tables", "logs", "pause", "resume", "cancel", "retry", "prioritise", "gc"),
    *("check-data", "verify", "measure", "import-scores", "export", "best", "compare", "sync", "ui"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(command, "--help") == 0
    said = capsys.readouterr().out
    assert re.search(rf"example: ablation {command}\b", said)
    assert re.search(r"--workspace DIR|--study NAME", said)


def test_the_commands_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help") == 0
    said = capsys.readouterr().out
    assert set(COMMANDS) == set(re.findall(r"^    ([a-z-]+)(?: |$)", said, re.MULTILINE))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--format", "docx"), "allowed are md,latex,csv,html"),
        (("run", "--seeds", "0"), "whole number >= 1"),
        (("run", "--concurrency", "two"), "whole number >= 1"),
        (("plan", "--max-iterations", "0"), "whole number >= 1"),
        (("tables", "--short-side", "small"), "whole number >= 1"),
        (("plan", "--precision", "fp8"), "must be one of fp32, bf16, fp16, got 'fp8'"),
        (("plan", "--data", "a", "--val-images", "b"), "not both"),
        (("run", "--val-images", "b"), "missing: --train-annotations"),
        (("check-data", "--max-iterations", "3"), "unrecognized arguments: --max-iterations"),
        (("status", "--study", "yolo"), "--study must be one of atss"),
        (("import-scores", "0123456789ab"), "the following arguments are required: FILE"),
        (("run", "--workers-per-trial", "-1"), "whole number >= 1"),
        (("run", "--tabels", "3"), "unrecognized arguments: --tabels"),
        (("run", "--dry-run", "--retry-failed"), "not allowed with argument"),
        (("ui", "--port", "99999"), "port from 1 to 65535"),
        (("run", "--budget-gpu-hours", "-3"), "number >= 0"),
        (("run", "--hang-after", "nan"), "number >= 0"),
        (("status", "--json", "--watch"), "not allowed with argument"),
        (("cancel",), "the following arguments are required: TRIAL|TABLE"),
        (("prioritise", "table3", "--by", "much"), "invalid int value"),
        (("fly",), "invalid choice: 'fly'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(study="yolo"), "--study must be one of atss"),
        (Selection(profile="huge"), "(?s)no profile 'huge'.*shapes-long +the same shapes"),
        (
            Selection(profile="smoke", options=DetectionOptions(data=Path("nowhere"))),
            "nowhere: no such folder",
        ),
        (Selection(profile="smoke", tables=["9"]), "asked for 9"),
    ],
)
def test_what_does_not_exist_or_contradicts_is_named(selection: Selection, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        Session.open(replace(selection, workspace=tmp_path), writes=False)


def test_the_study_is_found_by_its_name() -> None:
    assert studies.load_study("atss").name == "atss"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("broken_study.py", "def study(:\n", r"broken_study\.py, line 1: "),
        (
            "lacking_study.py",
            "import no_such_package\n",
            "cannot be imported: No module named 'no_such_package'",
        ),
    ],
)
def test_a_study_file_that_cannot_be_imported_is_told_in_a_line(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert _run("plan", "--study", str(tmp_path / name)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)


def test_a_study_that_is_nearly_named_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("plan", "--study", "refinedt") == 2
    assert "Did you mean refinedet?" in capsys.readouterr().err


def test_no_command_at_all_is_answered_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for command, said in (("plan", "cannot be prepared"), ("run", "cannot be written")):
        assert _run(command, "--profile", "smoke", "--workspace", str(tmp_path / "file")) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"], ["status"]])
def test_looking_writes_nothing_but_the_cache(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*command, "--profile", "smoke", "--workspace", str(tmp_path)) == 0
    assert "39 trainings" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_tables_and_a_page_of_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("tables", "--profile", "smoke", "--workspace", str(tmp_path)) == 2
    assert "Nothing has run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        dashboard.main(["--profile", "smoke", "--workspace", str(tmp_path)])
    assert ended.value.code == 2
    assert "Nothing has run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "a mistyped workspace is not filled with decoded images"


def test_what_was_typed_is_what_is_recorded_but_for_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def command(arguments: argparse.Namespace) -> int:
        """Stands for a run."""
        recorded.append(arguments.command_line)
        return 0

    monkeypatch.setattr(run_module, "run_command", command)
    assert (
        _run("run", "--workspace", "a b", "--store", "postgresql+psycopg://me:secret@host/db?password=secret")
        == 0
    )
    assert recorded == [
        "ablation run --workspace 'a b' --store 'postgresql+psycopg://***@host/db?password=***'"
    ]


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "me:secret@host", "sqlite:///x.db"])
def test_a_store_that_is_no_postgresql_address_is_refused_without_its_password(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("status", "--profile", "smoke", "--workspace", str(tmp_path), "--store", url) == 2
    said = capsys.readouterr().err
    assert "--store" in said
    assert "secret" not in said


def test_the_store_is_taken_from_the_environment_where_no_option_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ABLATION_STORE", "postgresql+psycopg://here/db")
    parser = cli.selection_parser()
    cli.add_study_options(parser, [])
    assert cli.selection_of(parser.parse_args([])).store == "postgresql+psycopg://here/db"
    typed = parser.parse_args(["--store", "postgresql+psycopg://there/db"])
    assert cli.selection_of(typed).store == "postgresql+psycopg://there/db"


def test_an_interrupt_while_preparing_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.exit_with(interrupted)
    assert ended.value.code == 130
    assert "same command goes on" in capsys.readouterr().err


def test_what_takes_long_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with session._said_when_slow("Drawing ..."):
        pass
    monkeypatch.setattr(session, "SLOW_S", 0.0)
    with session._said_when_slow("Decoding ..."):
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer):
                timer.join()
    assert capsys.readouterr().err == "Decoding ...\n"


def test_the_hint_for_the_ui_names_a_workspace_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hint(folder: Path | None) -> str:
        selection = Selection(workspace=folder)
        return Session(studies.load_study("atss"), Workspace.at(folder), None, None, selection).ui_hint  # type: ignore[arg-type]

    monkeypatch.chdir(Path(__file__).parents[3])
    assert hint(None) == "make ui"
    monkeypatch.chdir(tmp_path)
    assert hint(None) == "ablation ui"
    assert hint(tmp_path) == f"ablation ui --workspace {tmp_path}"


def test_the_ui_says_when_there_is_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("ui", "--workspace", str(tmp_path)) == 2
    assert f"`ablation run --workspace {tmp_path}` makes it" in capsys.readouterr().err


# --- a toy study on the command line -------------------------------------------------------------------

MakeWorkspace = Callable[..., workspaces.Workspace]
Use = Callable[[Study], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes a study the one that every name finds."""

    def used(study: Study) -> None:
        monkeypatch.setattr(studies, "load_study", lambda name: study)

    return used


@dataclass(frozen=True)
class ToyOptions:
    folder: Path | None = option("where the toys are", metavar="DIR", names_data=True)
    max_steps: int | None = option("count to N at most", metavar="N", least=1, label="{}steps")
    colour: Literal["red", "blue"] | None = option("of the toys")
    loud: bool | None = option("make a noise")


def _toy(study: Study, prepare: Callable[[Path, Any], workspaces.Setting]) -> Study:
    profiles = {"shapes": Profile("shapes", "toys", 1, prepare)}
    return replace(study, profiles=profiles, options=ToyOptions)


def test_options_of_the_study_reach_its_profile_and_keep_its_results_apart(
    make_workspace: MakeWorkspace, use: Use
) -> None:
    prepared: list[ToyOptions] = []

    def prepare(folder: Path, options: ToyOptions) -> workspaces.Setting:
        prepared.append(options)
        return workspaces.Setting(profile=named("shapes", options))

    workspace = make_workspace()
    use(_toy(workspace.study, prepare))
    command = ("tables", "--workspace", str(workspace.root), "--format", "md")
    assert _run(*command) == 0
    assert _run(*command, "--folder", "box", "--max-steps", "90", "--colour", "red", "--no-loud") == 0
    assert prepared == [ToyOptions(), ToyOptions(Path.cwd() / "box", 90, "red", False)]
    assert sorted(path.name for path in (workspace.root / "results").iterdir()) == [
        "paper-shapes",
        "paper-shapes-90steps-colour-red-loud-False",
    ]


def test_the_help_of_a_command_has_the_options_of_the_study_that_it_names(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    use(_toy(make_workspace().study, lambda *_: workspaces.Setting()))
    assert _run("run", "--study", "paper", "--help") == 0
    said = capsys.readouterr().out
    assert re.search(r"--max-steps N +count to N at most", said)
    assert "--colour {red,blue}" in said
    assert "--max-iterations" not in said
    assert _run("check-data", "--help") == 0
    said = capsys.readouterr().out
    assert "--folder DIR" in said
    assert "--max-steps" not in said


def test_a_command_that_a_person_is_told_has_the_options_of_the_study() -> None:
    options = ToyOptions(max_steps=3, loud=False)
    selection = Selection(study="toys.py", options=options, tables=["3"], seeds=2)
    assert selection.as_typed("workspace") == []
    assert selection.as_typed("study") == ["--study", "toys.py"]
    setting = ["--study", "toys.py", "--max-steps", "3", "--no-loud"]
    assert selection.as_typed("setting") == setting
    assert selection.as_typed("part") == [*setting, "--tables", "3", "--seeds", "2"]


def test_a_command_that_a_person_is_told_has_all_places_and_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = "postgresql+psycopg://me:word@host/db"
    places = Locations(store=server, mlflow_uri="http://me:word@host:5000", storage="s3://b/a")
    told = places.command("sync")
    assert told == (
        "ablation sync --store postgresql+psycopg://me@host/db --mlflow-uri http://host:5000 --storage s3://b/a"
    )
    monkeypatch.setenv(session.STORE_VARIABLE, server)
    assert "--store" not in places.command("sync")


TOLD = re.compile(r"`(ablation [^`]+)`")


@pytest.mark.parametrize(
    ("command", "about"),
    [
        (("plan", "--tables", "4", "--seeds", "2"), "part"),
        (("pause",), "setting"),
        (("status",), "setting"),
        (("resume",), "setting"),
        (("cancel", "table3 a_b", "--tables", "3", "--seeds", "2"), "part"),
        (("retry", "--stale", "--yes", "--tables", "4", "--seeds", "2"), "part"),
        (("status", "--stale", "--tables", "4"), "part"),
    ],
)
def test_each_command_that_a_person_is_told_is_about_the_same_as_the_one_that_tells_it(
    command: tuple[str, ...],
    about: session.About,
    driven: workspaces.Workspace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    driven.train_with("k3", "1.0")
    driven.train_with("k5", "1.0")
    where = ("--workspace", str(driven.root))
    if command == ("status",):
        assert _run("pause", *where) == 0
        capsys.readouterr()
    assert _run(*command, *where) == 0
    said = capsys.readouterr().out
    told = TOLD.findall(said)
    assert told, said
    words = [*command[1:], *where]
    options = [word for i, word in enumerate(words) if word.startswith("--") or words[i - 1].startswith("--")]
    for text in told:
        typed = shlex.split(text)[1:]
        assert cli._parser(typed).parse_args(typed)
        wanted = where if "gc" in typed else [word for word in options if word not in ("--stale", "--yes")]
        assert set(wanted) - {"table3 a_b"} <= set(typed), text


def test_no_message_holds_a_command_that_cannot_know_its_workspace() -> None:
    """All are made by `command`; docstrings and help name commands too, and no workspace."""
    root = Path(cli.__file__).parents[1]
    texts = [
        (file.name, part.value)
        for file in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call | ast.Raise | ast.Assign | ast.Yield | ast.Return)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    assert len(texts) > 1000
    found = {(name, text) for name, text in texts if re.search(r"`ablation [a-z]", text)}
    assert {text for _, text in found} == {
        "of the evaluation, or its first characters; `ablation status` prints it"
    }


@pytest.mark.parametrize("command", ["pause", "resume", "gc"])
def test_a_command_about_a_whole_study_takes_no_tables_and_seeds(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(command, "--tables", "3", "--seeds", "2") == 2
    assert "unrecognized arguments: --tables 3 --seeds 2" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--workspace", "--storage", "--store", "--mlflow-uri", "--data"])
def test_an_empty_place_as_that_of_an_unset_variable_is_refused(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("status", flag, "") == 2
    assert f"argument {flag}: must be a path, got an empty text" in capsys.readouterr().err


def test_paths_are_absolute_because_workers_have_another_folder() -> None:
    typed = [
        "plan",
        "--workspace",
        "w",
        "--storage",
        "s",
        "--weights",
        "a.pth",
        "--data",
        "d",
        "--study",
        "atss",
    ]
    selection = selection_of(cli._parser(typed).parse_args(typed))
    places = (selection.workspace, selection.storage, selection.options.weights, selection.options.data)
    here = Path.cwd()
    assert places == (here / "w", str(here / "s"), here / "a.pth", here / "d")


def test_every_name_that_a_command_prints_is_one_that_commands_take(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(driven.root), "--tables", "3")
    assert _run("status", "--json", *where) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert trials[0]["name"].startswith("table1 ")  # the first table of the study that cites it
    for trial in trials:
        row = trial["name"].removesuffix(", seed 0")
        label = row.partition(" ")[2]
        for name in (trial["name"], row, row.replace(" ", "/", 1), label, trial["key"], trial["key"][:6]):
            assert _run("logs", name, *where) == 0
            assert trial["key"] in capsys.readouterr().out
    for name in ("table3", "3", trials[0]["name"]):
        assert _run("prioritise", name, *where) == 0
        assert "priority   " in capsys.readouterr().out


def test_status_does_not_watch_what_is_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("status", "--watch", "--stale") == 2
    assert "leave out --watch" in capsys.readouterr().err


def test_an_option_that_a_command_has_already_is_refused_with_the_studys_name(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True)
    class Clashing:
        seeds: int | None = option("of the flowers")

    use(replace(make_workspace().study, options=Clashing))
    assert _run("plan") == 2
    said = capsys.readouterr().err
    assert "'paper'" in said
    assert "--seeds" in said


def test_tables_by_class_are_printed_and_written_beside_the_others(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make_workspace()
    study = _toy(workspace.study, lambda *_: workspaces.Setting())
    study = replace(study, by_class=ByClass("AP", lambda *_: {"cat": 37.5}))
    use(study)
    options = ("tables", "--by-class", "--workspace", str(workspace.root), "--format", "md,csv")
    assert _run(*options) == 0
    assert "No row has been tested of Table 1, Table 2, Table 3, Table 4." in capsys.readouterr().out
    attempt = workspace.start("c")
    trial = workspace.plan.trial(workspace.trial_key("c"))
    (detections := workspace.root / "detections").touch()
    found = Evaluated(trial.evaluations[0].key, {"AP": 40.0}, {"detections": str(detections)})
    workspace.store.record(attempt, [found])
    workspace.store.finish(attempt)
    assert _run(*options) == 0
    assert "37.5" in capsys.readouterr().out
    folder = workspace.root / "results" / "paper-shapes" / "by-class"
    assert sorted(path.name for path in folder.iterdir()) == ["table3.csv", "tables.md"]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".", "-x", "weights=é", "x" * 101, "a\n"])
def test_a_profile_that_makes_no_folder_name_is_refused_before_anything_runs(
    name: str, make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make_workspace()
    use(_toy(workspace.study, lambda *_: workspaces.Setting(profile=name)))
    assert _run("plan", "--workspace", str(workspace.root)) == 2
    assert "become folder names" in capsys.readouterr().err


def test_a_profile_that_cannot_take_an_option_says_so(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(folder: Path, options: ToyOptions) -> workspaces.Setting:
        raise UserError(f"shapes has no colours: leave out --colour {options.colour}.")

    workspace = make_workspace()
    use(_toy(workspace.study, prepare))
    assert _run("plan", "--workspace", str(workspace.root), "--colour", "blue") == 2
    assert "leave out --colour blue" in capsys.readouterr().err


def test_status_says_what_to_upload_and_the_command_that_takes_the_numbers_in(
    make_workspace: MakeWorkspace,
    use: Use,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Mirror, "try_sync", lambda mirror, patience=0: True)
    workspace = make_workspace()
    use(_toy(workspace.study, lambda *_: workspaces.Setting()))
    (key,) = workspace.submit("k5")
    where = ("--workspace", str(workspace.root))
    assert _run("status", *where) == 0
    said = capsys.readouterr().out
    assert "table4 k=5, seed 0" in said
    upload = re.search(r"upload +(.+)", said)
    command = re.search(r"then +ablation (.+)", said)
    assert upload
    assert command
    assert Path(upload[1]).read_text() == "detections"
    returned = tmp_path / "returned.txt"
    returned.write_text('{"AP": 43.6}')
    typed = [str(returned) if word == "FILE" else word for word in shlex.split(command[1])]
    assert _run(*typed) == 0
    assert f"evaluation {key}): AP 43.6" in capsys.readouterr().out
    assert _run("status", *where) == 0
    assert "upload" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ("import-scores", "abc", "file"),
        ("sync",),
        ("pause",),
        ("cancel", "table1"),
        ("retry",),
        ("prioritise", "table1"),
        ("gc", "--yes"),
        ("logs", "table1 base"),
        ("verify",),
    ],
)
def test_where_nothing_has_run_there_is_nothing_to_steer_and_nothing_is_made(
    command: tuple[str, ...],
    make_workspace: MakeWorkspace,
    use: Use,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(_toy(make_workspace().study, lambda *_: workspaces.Setting()))
    folder = tmp_path / "empty"
    assert _run(*command, "--workspace", str(folder)) == 2
    assert "Nothing has run" in capsys.readouterr().err
    assert not folder.exists()


# --- beside a running driver ----------------------------------------------------------------------------


@pytest.fixture
def driven(make_workspace: MakeWorkspace, use: Use) -> Iterator[workspaces.Workspace]:
    """A workspace whose driver is at work: it holds the lock, and a trial runs."""
    workspace = make_workspace()
    use(_toy(workspace.study, lambda *_: workspaces.Setting()))
    with Workspace.at(workspace.root).driver_lock("ablation run"):
        workspace.store.record(workspace.start("gn"), [Progress(20, 100, {"loss": 1.0})])
        yield workspace


def _states(workspace: workspaces.Workspace) -> dict[str, str]:
    return {row.name: row.state for row in workspace.store.trial_states().values()}


def test_trials_are_cancelled_and_brought_back_beside_a_running_driver(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(driven.root))
    driven.store.fail(driven.start("k3"), "the loss is NaN")
    assert _run("cancel", "table1 base+gn", "4", *where) == 0
    said = capsys.readouterr().out
    assert "4 trials are cancelled" in said
    assert "Also missing now in table1" in said
    assert [name for name, state in _states(driven).items() if state == "CANCELLED"] == [
        "table1 base+gn, seed 0",
        *(f"table4 k={k}, seed 0" for k in (3, 5, 7)),
    ]
    assert _run("cancel", "table4", *where) == 0
    assert "0 trials are cancelled.\nAs before, for cancelled: 3" in capsys.readouterr().out
    assert _run("retry", "table4", *where) == 0
    assert "3 trials are waiting again" in capsys.readouterr().out
    assert _states(driven)["table4 k=3, seed 0"] == "WAITING"


def test_a_retry_without_names_is_of_what_failed_and_leaves_what_was_cancelled(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(driven.root))
    driven.store.fail(driven.start("k3"), "the loss is NaN")
    assert _run("cancel", "table4 k=7", *where) == 0
    assert _run("retry", *where) == 0
    assert "1 trial is waiting again.\n" in capsys.readouterr().out
    states = _states(driven)
    assert (states["table4 k=3, seed 0"], states["table4 k=7, seed 0"]) == ("WAITING", "CANCELLED")


def test_a_stale_cell_is_shown_and_set_back_beside_a_running_driver(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(driven.root))
    driven.train_with("k3", "1.0")
    assert _run("retry", "--stale", "--yes", "table4 k=3", "table4 k=7", *where) == 0
    said = capsys.readouterr().out
    assert re.search(r"torch was 1\.0, is .*\n +\w{12}  table4 k=3, seed 0\n", said)
    assert "table4 k=7, seed 0: nothing is known to have changed" in said
    assert "1 trial is renewed.\n" in said
    assert f"`ablation run --workspace {driven.root}` does it" in said
    assert _states(driven)["table4 k=3, seed 0"] == "WAITING"
    assert _run("retry", "--stale", *where) == 0
    assert capsys.readouterr().out == "No result is known to rest on what has changed since.\n"


def test_a_plan_counts_what_is_stale(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(driven.root))
    driven.train_with("k5", workspaces.torch_today())
    assert _run("plan", *where) == 0
    assert "Stale" not in capsys.readouterr().out
    driven.train_with("k3", "1.0")
    assert _run("plan", *where) == 0
    told = f"Stale: 1 of the results here; `ablation status --stale --workspace {driven.root}` says what"
    assert told in capsys.readouterr().out


def test_nothing_happens_without_a_yes(
    driven: workspaces.Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(driven.root))
    driven.train_with("k3", "1.0")
    assert _run("retry", "--stale", *where) == 2  # nobody is there to ask
    assert "--yes does it unasked" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(control, "agreed", lambda question: False)
    assert _run("retry", "--stale", *where) == 0
    assert "Nothing was changed.\n" in capsys.readouterr().out
    assert _states(driven)["table4 k=3, seed 0"] == "COMPLETE"


def test_an_ambiguous_name_changes_nothing_and_lists_what_it_may_be(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _states(driven)
    assert _run("cancel", "table3", "table4 k", "--workspace", str(driven.root)) == 2
    assert "table4 k=5, seed 0" in capsys.readouterr().err
    assert _states(driven) == before


def test_a_study_is_paused_prioritised_and_resumed_beside_a_running_driver(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(driven.root))
    assert _run("pause", *where) == 0
    assert _run("prioritise", "table4 k=7", "--by", "5", *where) == 0
    assert re.search(r"priority +5 .*table4 k=7", capsys.readouterr().out)
    assert _run("status", "--json", *where) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["paused"]
    assert data["counts"]["running"] == 1
    assert {trial["priority"] for trial in data["trials"]} == {0, 5}
    assert _run("resume", *where) == 0
    capsys.readouterr()
    assert _run("status", *where) == 0
    said = capsys.readouterr().out
    assert "Paused" not in said
    assert "Last heartbeat" in said


def test_a_trial_can_be_looked_into_beside_a_running_driver(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    log = driven.root / "artifacts" / driven.trial_key("gn") / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("20/100  loss 1\n")
    assert _run("logs", "table1 base+gn", "--workspace", str(driven.root)) == 0
    said = capsys.readouterr().out
    assert "Attempt 1: RUNNING" in said
    assert said.endswith("20/100  loss 1\n")


def test_status_is_watched_until_it_is_interrupted(
    driven: workspaces.Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "watch", partial(watch, wait=wait))
    assert _run("status", "--watch", "--workspace", str(driven.root)) == 0
    assert "1 running" in capsys.readouterr().out


def test_gc_shows_what_it_would_remove_and_removes_nothing_unasked(
    driven: workspaces.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = driven.root / "artifacts" / driven.trial_key("k5")
    folder.mkdir(parents=True)
    (folder / "step.pt.part").write_bytes(b"x" * 2048)
    where = ("--workspace", str(driven.root))
    assert _run("gc", *where) == 2  # nobody is there to ask
    said = capsys.readouterr()
    assert "table4 k=5, seed 0:" in said.out
    assert "--yes does it unasked" in said.err
    assert (folder / "step.pt.part").exists()
    assert _run("gc", "--yes", *where) == 0
    assert not (folder / "step.pt.part").exists()
    assert _run("gc", "--yes", *where) == 0
    assert "Nothing can be removed" in capsys.readouterr().out


def test_a_sync_that_cannot_reach_mlflow_says_that_nothing_is_lost_and_no_password(
    driven: workspaces.Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(mirror: Mirror, patience: float, *, rebuild: bool) -> int:
        raise ConnectionError("http://me:secret@host:5000 does not answer")

    monkeypatch.setattr(Mirror, "sync", away)
    assert _run("sync", "--workspace", str(driven.root)) == 2
    said = capsys.readouterr().err
    assert "Nothing is lost" in said
    assert "secret" not in said
    monkeypatch.setattr(Mirror, "sync", lambda mirror, patience, *, rebuild: 5 if rebuild else 3)
    assert _run("sync", "--workspace", str(driven.root)) == 0
    assert "3 attempts" in capsys.readouterr().out
    assert _run("sync", "--rebuild", "--workspace", str(driven.root)) == 0
    assert "5 attempts" in capsys.readouterr().out


# --- a study that grows ---------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs train in this process and at once; names of what they trained."""
    names: list[str] = []

    def train(plan: Plan, options: Options, store: Store, *_: object, **__: object) -> Summary:
        for trial in plan.work():
            names.append(trial.name)
            attempt = store.claim(trial.key, "test", {})
            assert attempt is not None
            evaluated = [Evaluated(evaluation.key, {"AP": 40.0}) for evaluation in trial.missing]
            store.record(attempt, [Progress(1, 1, {}), *evaluated])
            store.finish(attempt)
        return Summary((), {}, (), interrupted=False, seconds=1.0)

    monkeypatch.setattr(launch, "run", train)
    monkeypatch.setattr(run, "print_report", lambda *_: None)
    monkeypatch.setattr(Mirror, "start", lambda mirror: None)
    monkeypatch.setattr(Mirror, "close", lambda mirror: None)
    return names


@pytest.mark.process
def test_seeds_rows_and_tables_added_to_a_finished_study_train_just_what_is_new(
    tmp_path: Path, use: Use, trained: list[str]
) -> None:
    def rows(*names: str) -> tuple[Row, ...]:
        return tuple(Row(n, (n,), (Cell(Variant(Toy(n), Count()), "AP"),)) for n in names)

    def finished(*arguments: str, **tables: tuple[Row, ...]) -> list[str]:
        del trained[:]
        study = replace(
            toy_study([]),
            tables=tuple(Table(name, "counts", ("toy",), ("AP",), made) for name, made in tables.items()),
        )
        use(study)
        assert _run("run", "--workspace", str(tmp_path), *arguments) == 0
        return list(trained)

    assert finished(table1=rows("a", "b")) == ["table1 a, seed 0", "table1 b, seed 0"]
    assert finished(table1=rows("a", "b")) == []
    assert finished("--seeds", "2", table1=rows("a", "b")) == ["table1 a, seed 1", "table1 b, seed 1"]
    assert finished("--seeds", "2", table1=rows("a", "b", "c")) == ["table1 c, seed 0", "table1 c, seed 1"]
    more = {"table1": rows("a", "b", "c"), "table2": rows("b", "d")}
    assert finished("--seeds", "2", **more) == ["table2 d, seed 0", "table2 d, seed 1"]
    assert finished("--seeds", "2", **more) == []
    assert finished("--seeds", "1", table2=rows("d", "c")) == []


@pytest.mark.process
def test_a_run_over_its_budget_is_refused_with_nobody_to_ask_and_started_with_yes(
    tmp_path: Path,
    use: Use,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(toy_study([Toy("a")]))
    monkeypatch.setattr(connection, "gpus_here", lambda: 1)
    budget = ("run", "--workspace", str(tmp_path), "--budget-gpu-hours", "1")
    assert _run(*budget) == 2
    assert "--budget-gpu-hours allows 1. --yes starts it" in capsys.readouterr().err
    assert trained == []
    assert _run(*budget, "--yes") == 0
    assert trained == ["table1 a, seed 0"]


def _files_with(secret: str, root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_study_on_a_database_server_is_run_and_steered_and_its_password_is_never_told(
    postgres_url: str,
    tmp_path: Path,
    use: Use,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(toy_study([Toy("a"), Toy("b")]))
    where = ("--workspace", str(tmp_path), "--store", postgres_url)
    password, said = make_url(postgres_url).password, []
    assert password
    for command, code in (
        (("pause",), 2),  # there is a database, but nothing has run
        (("status",), 0),
        (("run",), 0),
        (("pause",), 0),
        (("status", "--json"), 0),
        (("resume",), 0),
        (("cancel", "table1 a"), 0),
        (("logs", "table1 a"), 0),
        (("gc", "--yes"), 0),
        (("status",), 0),
    ):
        assert _run(*command, *where) == code, command
        found = capsys.readouterr()
        said.append(found.out + found.err)
    assert "Nothing has run" in said[0]
    assert trained == ["table1 a, seed 0", "table1 b, seed 0"]
    assert json.loads(said[4])["paused"]
    assert "As before, for complete: 1" in said[6]
    assert password not in "".join(said)
    assert _files_with(password, tmp_path) == []
    store = Store.open(postgres_url, root=tmp_path)
    (invocation,) = store.invocations()
    assert password not in f"{invocation.command} {invocation.provenance}"
    assert "***@127.0.0.1" in invocation.command


def test_drivers_of_one_database_do_not_lock_each_other_out(
    postgres_url: str, tmp_path: Path, use: Use, trained: list[str]
) -> None:
    use(toy_study([Toy("a")]))
    with Workspace.at(tmp_path).driver_lock("ablation run"):
        assert _run("run", "--workspace", str(tmp_path), "--store", postgres_url) == 0
        assert _run("run", "--workspace", str(tmp_path)) == 2
    assert trained == ["table1 a, seed 0"]


def test_a_data_set_is_checked_by_its_study_and_the_report_printed(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    checked, problems = [], 0

    def check(options: ToyOptions, folder: Path) -> DataReport:
        checked.append((options, folder))
        return DataReport("12 images", {"images": 12}, problems)

    use(replace(make_workspace().study, options=ToyOptions, check_data=check))
    assert _run("check-data", "--folder", "cells", "--output", "pictures") == 0
    assert checked == [(ToyOptions(Path.cwd() / "cells"), Path.cwd() / "pictures")]
    assert capsys.readouterr().out == "12 images\n"
    problems = 2
    assert _run("check-data", "--folder", "cells", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"usable": True, "images": 12}


def test_a_data_set_that_cannot_be_used_is_said_in_json_too(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(options: object, folder: Path) -> DataReport:
        raise UserError("3 images are damaged")

    use(replace(make_workspace().study, check_data=check))
    assert _run("check-data", "--json") == 2
    assert json.loads(capsys.readouterr().out) == {"usable": False, "error": "3 images are damaged"}


def test_a_check_says_what_it_lacks(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(options: object, folder: Path) -> str:
        raise OSError(28, "No space left on device", str(folder))

    assert _run("check-data") == 2
    assert "Name the data set to check: --data DIR" in capsys.readouterr().err
    study = make_workspace().study
    for wanted, said in (
        (study, "'paper' cannot check a data set"),
        (replace(study, check_data=full_disk), "data-check: No space left on device"),
    ):
        use(wanted)
        assert _run("check-data") == 2
        assert said in capsys.readouterr().err
