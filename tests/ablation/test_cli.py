"""The command line says what it wants."""

import argparse
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ablation import cli, session
from ablation.errors import UserError
from ablation.session import Selection, Session, load_study
from ablation.workspace import Workspace
from dashboards import __main__ as dashboard


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    code = ended.value.code
    return code if isinstance(code, int) else 1


@pytest.mark.parametrize("command", ["plan", "run", "status", "tables", "retry", "ui"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(command, "--help") == 0
    assert re.search(r"--workspace DIR", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--format", "docx"), "allowed are md,latex,csv,html"),
        (("run", "--seeds", "0"), "whole number >= 1"),
        (("run", "--concurrency", "two"), "whole number >= 1"),
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
