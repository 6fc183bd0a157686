"""The command line says what it wants."""

import argparse
import re
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ablation import cli, session
from ablation.errors import UserError
from ablation.session import Selection, Session, load_study
from ablation.study import Overrides, Profile, Study
from ablation.tracking import Mirror
from ablation.workspace import Workspace
from dashboards import __main__ as dashboard
from tests.ablation import conftest
from tests.ablation.test_scores import SUMMARY


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    code = ended.value.code
    return code if isinstance(code, int) else 1


@pytest.mark.parametrize("command", ["plan", "run", "status", "tables", "retry", "import-scores", "ui"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(command, "--help") == 0
    assert re.search(r"--workspace DIR", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--format", "docx"), "allowed are md,latex,csv,html"),
        (("run", "--seeds", "0"), "whole number >= 1"),
        (("run", "--concurrency", "two"), "whole number >= 1"),
        (("plan", "--max-iterations", "0"), "whole number >= 1"),
        (("tables", "--short-side", "small"), "whole number >= 1"),
        (("import-scores", "0123456789ab"), "the following arguments are required: FILE"),
        (("run", "--workers-per-trial", "-1"), "whole number >= 1"),
        (("run", "--tabels", "3"), "unrecognized arguments: --tabels"),
        (("run", "--dry-run", "--retry-failed"), "not allowed with argument"),
        (("ui", "--port", "99999"), "port from 1 to 65535"),
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
        (Selection(profile="smoke", data=Path("a"), split_paths={"val_images": Path("b")}), "not both"),
        (Selection(profile="smoke", split_paths={"val_images": Path("b")}), "missing: --train-annotations"),
        (Selection(profile="smoke", data=Path("nowhere")), "instances_train2017.json"),
        (Selection(profile="smoke", tables=["9"]), "asked for table9"),
    ],
)
def test_what_does_not_exist_or_contradicts_is_named(selection: Selection, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        Session.open(replace(selection, workspace=tmp_path), writes=False)


def test_the_study_is_found_by_its_name() -> None:
    assert load_study("atss").name == "atss"


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


def test_a_retry_needs_the_workspace_to_itself_and_failed_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--profile", "smoke", "--tables", "2", "--workspace", str(tmp_path))
    assert _run("retry", *options, "--trial", "0123456789ab") == 2
    assert "Not among this study's failed trials: 0123456789ab" in capsys.readouterr().err
    with Workspace.at(tmp_path).driver_lock("ablation run"):
        assert _run("retry", *options) == 2
    assert "in use by process" in capsys.readouterr().err


def test_what_was_typed_is_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def command(arguments: argparse.Namespace) -> int:
        """Stands for a run."""
        recorded.append(arguments.command_line)
        return 0

    monkeypatch.setattr(cli, "run_command", command)
    assert _run("run", "--workspace", "a b") == 0
    assert recorded == ["ablation run --workspace 'a b'"]


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


def test_the_hint_for_the_ui_names_a_workspace_of_ones_own(tmp_path: Path) -> None:
    def hint(folder: Path | None) -> str:
        return Session(load_study("atss"), Workspace.at(folder), None, None).ui_hint  # type: ignore[arg-type]

    assert hint(None) == "make ui"
    assert hint(tmp_path) == f"ablation ui --workspace {tmp_path}"


def test_the_ui_says_when_there_is_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("ui", "--workspace", str(tmp_path)) == 2
    assert "`ablation run` makes it" in capsys.readouterr().err


# --- a toy study on the command line -------------------------------------------------------------------

MakeWorkspace = Callable[..., "conftest.Workspace"]
Use = Callable[[Study], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes a study the one that every name finds."""

    def used(study: Study) -> None:
        for module in (cli, session):
            monkeypatch.setattr(module, "load_study", lambda name: study)

    return used


def _toy(
    study: Study, prepare: Callable[[Path, Mapping[str, Path] | None, Overrides], conftest.Setting]
) -> Study:
    return replace(study, profiles={"shapes": Profile("shapes", "toys", 1, prepare)})


def test_what_a_user_changes_reaches_the_profile_and_keeps_its_results_apart(
    make_workspace: MakeWorkspace, use: Use
) -> None:
    given: list[Overrides] = []

    def prepare(folder: Path, data: object, overrides: Overrides) -> conftest.Setting:
        given.append(overrides)
        changed = f"-{overrides.max_iterations}its" if overrides.max_iterations else ""
        return conftest.Setting(profile=f"shapes{changed}")

    workspace = make_workspace()
    use(_toy(workspace.study, prepare))
    options = ("--workspace", str(workspace.root), "--format", "md")
    assert _run("tables", *options) == 0
    changes = ("--max-iterations", "90", "--short-side", "64", "--weights", "none", "--precision", "bf16")
    assert _run("tables", *options, *changes) == 0
    assert given == [Overrides(), Overrides(90, 64, "none", "bf16")]
    assert sorted(path.name for path in (workspace.root / "results").iterdir()) == [
        "paper-shapes",
        "paper-shapes-90its",
    ]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".", "-x", "weights=é", "x" * 101, "a\n"])
def test_a_profile_that_makes_no_folder_name_is_refused_before_anything_runs(
    name: str, make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make_workspace()
    use(_toy(workspace.study, lambda *_: conftest.Setting(profile=name)))
    assert _run("plan", "--workspace", str(workspace.root)) == 2
    assert "become folder names" in capsys.readouterr().err


def test_a_profile_that_cannot_take_a_change_says_so(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(folder: Path, data: object, overrides: Overrides) -> conftest.Setting:
        raise UserError(f"shapes trains from scratch: --weights {overrides.weights} has no use.")

    workspace = make_workspace()
    use(_toy(workspace.study, prepare))
    assert _run("plan", "--workspace", str(workspace.root), "--weights", "magic") == 2
    assert "--weights magic has no use" in capsys.readouterr().err


def test_status_says_what_to_upload_and_the_command_that_takes_the_numbers_in(
    make_workspace: MakeWorkspace,
    use: Use,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Mirror, "try_sync", lambda mirror: True)
    workspace = make_workspace()
    use(_toy(workspace.study, lambda *_: conftest.Setting()))
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
    returned.write_text(SUMMARY)
    typed = [str(returned) if word == "FILE" else word for word in shlex.split(command[1])]
    assert _run(*typed) == 0
    assert f"evaluation {key}): AP 43.6" in capsys.readouterr().out
    assert _run("status", *where) == 0
    assert "upload" not in capsys.readouterr().out


def test_an_import_needs_the_workspace_to_itself_and_something_that_has_run(
    make_workspace: MakeWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("import-scores", "abc", "file", "--workspace", str(tmp_path / "empty")) == 2
    assert "Nothing has run" in capsys.readouterr().err
    workspace = make_workspace()
    with Workspace.at(workspace.root).driver_lock("ablation run"):
        assert _run("import-scores", "abc", "file", "--workspace", str(workspace.root)) == 2
    assert "in use by process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (["cells"], {"directory": Path("cells")}),
        (
            [f"--{name.replace('_', '-')}={name}" for name in session.SPLIT_PATHS],
            {name: Path(name) for name in session.SPLIT_PATHS},
        ),
    ],
)
def test_a_data_set_is_checked_by_its_study_and_the_report_printed(
    arguments: list[str],
    data: dict[str, Path],
    make_workspace: MakeWorkspace,
    use: Use,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = []

    def check(data: Mapping[str, Path], folder: Path) -> str:
        given.append((data, folder))
        return "12 images"

    use(replace(make_workspace().study, check_data=check))
    assert _run("check-data", *arguments, "--output", "pictures") == 0
    assert given == [(data, Path("pictures"))]
    assert capsys.readouterr().out == "12 images\n"


def test_a_check_says_what_it_lacks(
    make_workspace: MakeWorkspace, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(data: Mapping[str, Path], folder: Path) -> str:
        raise OSError(28, "No space left on device", str(folder))

    study = make_workspace().study
    checked = replace(study, check_data=full_disk)
    for wanted, arguments, said in (
        (study, ["cells"], "'paper' has no check for data sets"),
        (checked, [], "Name the data set"),
        (checked, ["cells", "--val-images", "x"], "not both"),
        (checked, ["--val-images", "x"], "missing: --train-annotations"),
        (checked, ["cells"], "data-check: No space left on device"),
    ):
        use(wanted)
        assert _run("check-data", *arguments) == 2
        assert said in capsys.readouterr().err
