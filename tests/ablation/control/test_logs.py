"""What a trial has been through can be read, also while it grows."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ablation.control.logs import account, brought, follow, printable, tail
from ablation.plan import make_plan
from ablation.protocol import Described, Noticed, Progress
from ablation.storage import storage_at
from tests.support import workspaces


def test_an_account_has_attempts_errors_notices_numbers_and_the_end_of_the_log(
    make_workspace: Callable[..., workspaces.Workspace],
) -> None:
    workspace = make_workspace()
    first = workspace.start("k5")
    workspace.store.record(first, [Described({"host": "node7", "gpus": ["H100"]})])
    workspace.store.record(first, [Progress(20, 100, {"loss": 1.5}), Noticed("a checkpoint was passed over")])
    workspace.store.fail(first, "Traceback\nValueError: the loss is NaN")
    workspace.store.retry([workspace.trial_key("k5")])
    workspace.measure("k5", 49.5)
    trial = workspace.plan.trial(workspace.trial_key("k5"))
    folder = workspace.root / "artifacts" / trial.key
    (folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    text = "\n".join(account(trial, workspace.study, workspace.store, folder))
    host = workspace.store.attempts([trial.key])[0].host
    for said in (
        f"table4 k=5, seed 0  ({trial.key}): COMPLETE 100/100",
        "Attempt 1: FAILED",
        "UTC, on node7 (H100)",
        f"on {host}, commit 0123456789ab",
        "  ValueError: the loss is NaN",
        "Attempt 2: COMPLETE",
        "Notices\n  a checkpoint was passed over",
        "loss 1  (step 100)",
        "table4 k=5, seed 0: AP 49.5",
        "line 99",
    ):
        assert said in text, said
    assert "line 79" not in text


def test_the_earlier_result_is_shown_while_a_renewed_trial_waits(
    make_workspace: Callable[..., workspaces.Workspace],
) -> None:
    workspace = make_workspace()
    workspace.measure("k5", 49.5)
    workspace.store.renew({workspace.trial_key("k5"): 1})
    trial = workspace.plan.trial(workspace.trial_key("k5"))
    text = "\n".join(account(trial, workspace.study, workspace.store, workspace.root))
    assert f"({trial.key}): WAITING\n" in text
    assert f"files in {workspace.root / 'attempt-2'}\n" in text
    assert "Evaluations" not in text
    assert re.search(r"Earlier results\n  \w{12}  attempt 1, .* UTC: AP 49\.5", text)


def test_a_trial_that_never_ran_has_a_short_account(full: workspaces.Workspace, tmp_path: Path) -> None:
    trial = make_plan(full.study, full.setting, (7,)).trials[0]
    assert len(list(account(trial, full.study, full.store, tmp_path))) == 2


def test_the_end_of_a_long_log_is_found_without_reading_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("x" * 1_000_000 + "\nlast but one\nlast\n")
    assert tail(path, 2) == ["last but one", "last"]
    assert tail(tmp_path / "none") == []


def test_the_log_of_a_remote_trial_is_downloaded_from_its_storage(tmp_path: Path) -> None:
    elsewhere, here, place, key = tmp_path / "node", tmp_path / "here", tmp_path / "bucket", "ab" * 6
    for folder in (elsewhere, place):
        folder.mkdir()
    storage = storage_at(str(place))
    assert not brought(storage, key, here).exists()  # nothing is stored yet
    for text in ("step 1\n", "step 1\nstep 2\n"):
        (elsewhere / "log.txt").write_text(text)
        storage.upload(key, elsewhere, [elsewhere / "log.txt"])
        assert brought(storage, key, here).read_text() == text
    place.rename(tmp_path / "away")
    assert brought(storage, key, here).read_text() == text


def test_a_followed_log_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("old\n")
    turns = iter([True, True, True, True, False])

    def going_on() -> bool:
        goes = next(turns)
        if not goes:  # it ends between the look at its state and the look at its log
            path.open("a").write("last words\n")
        return goes

    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            path.open("a").write("new\n")

    assert list(follow(path, going_on, start=4, wait=wait)) == ["new\n", "last words\n"]
    assert len(waits) == 3


def test_a_log_that_was_replaced_is_followed_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("new\n")
    assert list(follow(path, lambda: False, start=400)) == ["new\n"]


@pytest.mark.parametrize(("text", "shown"), [("é\tx\n", "é\tx\n"), ("\x1b[2Jx\x07", "\ufffd[2Jx\ufffd")])
def test_control_characters_of_a_log_do_not_reach_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
