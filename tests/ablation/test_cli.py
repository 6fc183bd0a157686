"""The command line says what it wants."""

import re
from pathlib import Path

import pytest

from ablation import cli
from ablation.errors import UserError
from ablation.session import Selection, Session, load_study


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
        (Selection(profile="huge"), "--profile must be one of shapes"),
        (Selection(profile="smoke", data=Path("a"), split_paths={"val_images": Path("b")}), "not both"),
        (Selection(profile="smoke", split_paths={"val_images": Path("b")}), "missing: --train-annotations"),
        (Selection(profile="smoke", data=Path("nowhere")), "instances_train2017.json"),
        (Selection(profile="smoke", tables=["9"]), "asked for table9"),
    ],
)
def test_what_does_not_exist_or_contradicts_is_named(selection: Selection, said: str, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=said):
        Session.open(replace(selection, workspace=tmp_path))


def test_the_study_is_found_by_its_name() -> None:
    assert load_study("atss").name == "atss"


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert _run("plan", "--workspace", str(tmp_path / "file")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_ui_says_when_there_is_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("ui", "--workspace", str(tmp_path)) == 2
    assert "`ablation run` makes it" in capsys.readouterr().err
