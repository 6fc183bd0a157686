"""How far a study is, for people and for programs."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from ablation.control.control import Control, chosen
from ablation.control.status import lines, status_of, watch
from ablation.plan import make_plan
from ablation.protocol import Progress
from ablation.session import Session
from ablation.store import schema
from ablation.workspace import Workspace
from tests.support import workspaces

MakeWorkspace = Callable[..., workspaces.Workspace]


def _session(filled: workspaces.Workspace) -> Session:
    return Session(filled.study, Workspace.at(filled.root), filled.store, filled.plan)


def _text(session: Session, now: datetime | None = None) -> str:
    return "\n".join(lines(status_of(session, now), session.command))


@pytest.fixture
def running(make_workspace: MakeWorkspace) -> workspaces.Workspace:
    """One trial complete, one at a step in the second of two reports a minute apart, the rest waiting."""
    workspace = make_workspace()
    workspace.measure("base", 42.5)
    attempt = workspace.start("gn")
    workspace.store.record(attempt, [Progress(0, 100, {"loss": 2.0})])
    workspace.store.record(attempt, [Progress(20, 100, {"loss": 1.0})])
    a = schema.attempts
    with workspace.store._transaction(writes=True) as t:
        seen = datetime.now(UTC)
        t.execute(a.update().where(a.c.id == attempt).values(first_progress=seen - timedelta(minutes=1)))
        t.execute(a.update().where(a.c.id == attempt).values(last_progress=seen))
    return workspace


def test_a_running_trial_is_shown_with_its_host_its_last_heartbeat_and_the_time_left(
    running: workspaces.Workspace,
) -> None:
    host = running.store.attempts([running.trial_key("gn")])[0].host
    text = _text(_session(running), datetime.now(UTC) + timedelta(seconds=5))
    assert "1 complete, 1 running, 9 waiting, 0 failed, 0 cancelled" in text
    assert "Last heartbeat" in text
    line = next(line for line in text.splitlines() if "table1 base+gn, seed 0" in line)
    assert line.split()[:2] == ["RUNNING", "20/100"]
    assert f"on {host}" in line
    assert "s ago" in line
    assert "4 min" in line  # 80 steps at 3 s, and a little for the evaluation


def test_a_pause_priorities_and_cancelled_trials_are_shown(running: workspaces.Workspace) -> None:
    control = Control(running.plan, running.store)
    control.set_paused(True)
    control.prioritise(chosen(running.plan, ["table4 k=7"]), 3)
    control.cancel(chosen(running.plan, ["table4 k=5", "table1 base+gn"]))
    text = _text(_session(running))
    assert "Paused: nothing starts before `ablation resume" in text
    assert "table4 k=7, seed 0  (priority 3)" in text
    assert "2 cancelled" in text
    assert "table1 base+gn, seed 0  (stopping on" in text


def test_an_attempt_without_heartbeats_is_distinguished_from_a_live_one(
    running: workspaces.Workspace,
) -> None:
    with running.store._transaction(writes=True) as t:
        t.execute(schema.attempts.update().values(heartbeat=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    text = _text(_session(running))
    assert "0 running" in text
    assert "silent since 03:04:05 UTC" in text
    assert "Last sign" not in text


def test_a_heartbeat_is_never_shown_in_the_future_when_clocks_differ(running: workspaces.Workspace) -> None:
    assert "(on " in (text := _text(_session(running), datetime.now(UTC) - timedelta(hours=1)))
    assert "0 s ago" in text


def test_programs_get_one_object_of_plain_values(running: workspaces.Workspace) -> None:
    Control(running.plan, running.store).prioritise(chosen(running.plan, ["table4 k=7"]), 3)
    status = status_of(_session(running))
    data = json.loads(json.dumps(status.data(), allow_nan=False))
    documented = (Path(__file__).parents[3] / "docs" / "control.md").read_text()
    for name in (*data, *data["trials"][0]):
        assert f"`{name}`" in documented, name
    assert data["format"] == 1
    assert data["counts"] == {"complete": 1, "running": 1, "waiting": 9, "failed": 0, "cancelled": 0}
    assert len(data["trials"]) == 11
    first = data["trials"][0]
    assert (first["state"], first["step"], first["total"]) == ("RUNNING", 20, 100)
    assert 240 <= first["seconds_left"] < 300
    assert data["seconds_left"] > first["seconds_left"]  # one at a time, as now
    assert datetime.fromisoformat(first["last_heartbeat"]).tzinfo is not None
    assert next(t for t in data["trials"] if t["name"] == "table4 k=7, seed 0")["priority"] == 3


def test_a_workspace_where_nothing_has_run_has_a_status(
    running: workspaces.Workspace, tmp_path: Path
) -> None:
    plan = make_plan(running.study, running.setting, (0,))
    session = Session(running.study, Workspace.at(tmp_path / "none"), None, plan)
    assert status_of(session).data()["counts"]["waiting"] == 11
    assert _text(session).count("\n") == 0


# --- again and again -----------------------------------------------------------------------------------


def _watched(console: Console, texts: list[str]) -> list[float]:
    """What is shown of these texts in turn, then Ctrl-C; the waits between them."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == len(texts):
            raise KeyboardInterrupt

    watch(lambda: texts[len(waits)], console, wait=wait)
    return waits


def test_a_watch_polls_every_two_seconds_until_it_is_interrupted_and_a_file_gets_new_lines() -> None:
    file = io.StringIO()
    assert _watched(Console(file=file), ["a\nb 1", "a\nb 2", "a\nb 2"]) == [2.0, 2.0, 2.0]
    assert file.getvalue() == "a\nb 1\nb 2\n"


def test_a_watch_redraws_a_terminal() -> None:
    file = io.StringIO()
    _watched(Console(file=file, force_terminal=True, width=40, height=10), ["[a] 1", "[a] 2"])
    shown = file.getvalue()
    assert "[a] 1" in shown and "[a] 2" in shown
    assert "\x1b[" in shown  # it draws over what was there


def test_names_are_not_read_as_markup() -> None:
    file = io.StringIO()
    _watched(Console(file=file), ["table3 [bold]x[/bold] 12"])
    assert file.getvalue() == "table3 [bold]x[/bold] 12\n"
