import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from ablation.errors import UserError
from ablation.workspace import Workspace

HOLDER = """
import sys, time
from pathlib import Path
from ablation.workspace import Workspace
with Workspace.at(Path(sys.argv[1])).driver_lock("ablation run first"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "w")
    made.create()
    return made


def hold(workspace: Workspace) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(workspace.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_results_lie_beside_the_default_workspace_and_inside_a_chosen_one(tmp_path: Path) -> None:
    default = Workspace.at(None)
    assert (default.root.name, default.results) == ("runs", default.root.parent / "results")
    assert Workspace.at(tmp_path).results == tmp_path / "results"


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace.at(Path("w")).store_path == tmp_path / "w" / "store.db"


def test_creating_twice_is_fine_and_leaves_nothing_else(workspace: Workspace) -> None:
    workspace.create()
    assert sorted(p.name for p in workspace.root.iterdir()) == [".gitignore", "artifacts", "cache"]


@pytest.mark.parametrize(("held", "ignored"), [("cache", True), ("mine.txt", False)])
def test_a_folder_of_its_own_is_ignored_by_git_and_no_other(held: str, ignored: bool, tmp_path: Path) -> None:
    (tmp_path / "w" / held).mkdir(parents=True)
    Workspace.at(tmp_path / "w").create()
    assert (tmp_path / "w" / ".gitignore").is_file() == ignored


def test_mlflow_finds_its_file_whatever_the_path() -> None:
    workspace = Workspace.at(Path("/a b/50% of #2?"))
    assert make_url(workspace.mlflow_uri).database == str(workspace.mlflow_path)


def test_a_workspace_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/w cannot be written.*--workspace"):
        Workspace.at(tmp_path / "file" / "w").create()


def test_a_read_only_workspace_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        workspace.create()


@pytest.mark.parametrize("key", ["../../etc/x", "", "ABCDEF012345", "0123456789ab\n", "0123456789abc"])
def test_only_a_key_names_a_trial_directory(workspace: Workspace, key: str) -> None:
    assert workspace.trial_directory("0123456789ab").parent == workspace.artifacts
    with pytest.raises(ValueError, match="trial key"):
        workspace.trial_directory(key)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a b", "x\0"])
def test_only_plain_names_become_folders(workspace: Workspace, name: str) -> None:
    assert workspace.results_directory("atss", "shapes").name == "atss-shapes"
    for names in ((name, "shapes"), ("atss", name)):
        with pytest.raises(UserError, match="folder names"):
            workspace.results_directory(*names)


@pytest.mark.process
def test_a_second_driver_is_told_who_the_first_is(workspace: Workspace) -> None:
    first = hold(workspace)
    try:
        with pytest.raises(UserError) as caught, workspace.driver_lock("ablation run second"):
            pass
        assert f"process {first.pid} on " in str(caught.value)
        assert "ablation run first" in str(caught.value)
    finally:
        first.kill()
        first.wait()


@pytest.mark.process
def test_a_killed_driver_leaves_no_lock(workspace: Workspace) -> None:
    first = hold(workspace)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert json.loads((workspace.root / "driver.lock").read_text())["pid"] == first.pid  # stale
    with workspace.driver_lock("second"):
        holder = json.loads((workspace.root / "driver.lock").read_text())
    assert (holder["pid"], holder["command"]) == (os.getpid(), "second")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}'])
def test_a_holder_that_wrote_nothing_readable_is_still_respected(workspace: Workspace, text: str) -> None:
    with workspace.driver_lock("first"):
        (workspace.root / "driver.lock").write_text(text)
        with pytest.raises(UserError, match="another driver"), workspace.driver_lock("second"):
            pass


def test_the_lock_can_be_taken_again_after_an_error(workspace: Workspace) -> None:
    with pytest.raises(RuntimeError), workspace.driver_lock("first"):
        raise RuntimeError
    with workspace.driver_lock("second"):
        pass


def test_the_mirrors_address_leads_sqlalchemy_and_mlflow_to_the_same_file(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "José, mes données #1 & co")
    assert workspace.mlflow_uri == f"sqlite:///{workspace.mlflow_path}"  # MLflow makes its folder
    for folder in (workspace.root, tmp_path / "50% or?"):
        path = Workspace.at(folder).mlflow_path
        assert make_url(Workspace.at(folder).mlflow_uri).database == str(path)
