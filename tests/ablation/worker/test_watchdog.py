"""The log beside a training, and the watch that ends a hang."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablation.protocol import Checkpointed, Described, Evaluated, Noticed, Progress, Report
from ablation.storage.names import HANG, LOG
from ablation.worker.guard import LATER_S, TICK_S
from ablation.worker.watchdog import (
    FACTOR,
    START,
    Watch,
    _Guard,
    guarded,
    hang_of,
    logged,
)
from tests.support.driver import wait_until


def test_the_log_has_what_was_reported_and_what_was_printed(tmp_path: Path) -> None:
    with logged(tmp_path) as log:
        log(Progress(5, 10, {"loss": 0.123456}))
        log(Checkpointed(5, "/w/0001/5.pt", "ab"))
        log(Evaluated("k", {"AP": 41.234}))
        log(Noticed("passed over a checkpoint"))
        log(Described({"host": "x"}))
        print("from a library")
    lines = (tmp_path / LOG).read_text().splitlines()
    assert "started on" in lines[0]
    for text in (
        "5/10  loss 0.1235",
        "checkpoint of step 5: 5.pt",
        "evaluation k: AP 41.23",
        "from a library",
    ):
        assert any(line.endswith(text) for line in lines), text
    assert not any("host" in line for line in lines)


def test_the_log_takes_whatever_a_training_prints(tmp_path: Path) -> None:
    with logged(tmp_path):
        print("a name of no encoding: \udcff, and one of several: ✓")
    assert r"a name of no encoding: \udcff, and one of several: ✓" in (tmp_path / LOG).read_text("utf-8")


def test_the_log_says_why_an_attempt_failed_and_the_next_attempt_adds_to_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), logged(tmp_path):
        raise ValueError("broken")
    with logged(tmp_path):
        pass
    text = (tmp_path / LOG).read_text()
    assert "failed: ValueError: broken" in text
    assert text.count("started on") == 2


def test_a_rank_that_is_not_the_first_logs_only_what_it_prints(tmp_path: Path) -> None:
    with logged(tmp_path, writes=False) as log:
        log(Progress(1, 2))
        print("rank 1 here")
    assert (tmp_path / LOG).read_text() == "rank 1 here\n"


def test_silence_counts_as_hanging_after_many_times_the_usual_pace_but_never_before_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda *_, **__: None)  # it would end the tests

    def slow() -> Iterator[Report]:
        for step in range(3):
            time.sleep(0.05)
            yield Progress(step, 3)

    with Watch(tmp_path, 0.2) as watch:
        assert watch.limit == pytest.approx(START * 0.2)
        assert len(list(watch.over(slow()))) == 3
        assert FACTOR * 0.05 <= watch.limit < FACTOR * 0.5
    with Watch(tmp_path, 1000) as watch:
        list(watch.over(slow()))
        assert watch.limit == 1000


def test_a_training_that_ended_well_leaves_no_trace_of_the_watch(tmp_path: Path) -> None:
    with Watch(tmp_path, 1.0) as watch:
        list(watch.over(iter([Progress(1, 1)])))
    assert not list(tmp_path.glob(f"{HANG}*"))
    assert hang_of(tmp_path) is None


@pytest.mark.process
def test_a_hanging_process_is_ended_and_leaves_where_it_stood(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from ablation.protocol import Progress
        from ablation.worker.watchdog import Watch

        def training(heartbeat):
            yield Progress(1, 3)
            for _ in range(4):
                time.sleep(1.0)
                heartbeat()
            yield Progress(2, 3)
            print("lived", flush=True)
            time.sleep(60)

        with Watch(Path(sys.argv[1]), 0.5) as watch:
            for report in watch.over(training(watch.arm)):
                watch._paces.clear()
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout == "lived\n", "heartbeats keep it going"
    assert done.returncode == 1
    assert "in training" in str(hang_of(tmp_path))
    assert "hung" in (tmp_path / LOG).read_text()
    assert hang_of(tmp_path) is None, "told once"


# --- from outside ---------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's memory files")

BEGIN = """
import os, signal, sys, time
from pathlib import Path
from ablation.protocol import Progress
from ablation.worker import guard, watchdog as watch
folder = Path(sys.argv[1])
watch.guarded(folder, 0.1)
"""


def begun(program: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(program), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
@linux
def test_a_process_that_stands_still_in_its_training_is_killed_and_a_line_says_so(tmp_path: Path) -> None:
    process = begun(
        """
        def training():
            yield Progress(1, 2)
            os.kill(os.getpid(), signal.SIGSTOP)
        with watch.Watch(folder, 0.1) as watching:
            for report in watching.over(training()):
                pass
        """,
        tmp_path,
    )
    assert process.wait(60) == -signal.SIGKILL
    assert "stood still" in str(hang_of(tmp_path))


@pytest.mark.process
@linux
def test_a_process_that_stands_still_between_two_reports_is_killed_too(tmp_path: Path) -> None:
    process = begun(
        """
        with watch.Watch(folder, 0.1) as watching:
            for report in watching.over(iter([Progress(1, 2)])):
                os.kill(os.getpid(), signal.SIGSTOP)
        """,
        tmp_path,
    )
    assert process.wait(60) == -signal.SIGKILL
    assert "stood still" in str(hang_of(tmp_path))


@pytest.mark.process
@linux
def test_the_guard_stays_from_trial_to_trial_holds_nothing_and_goes_with_its_process(tmp_path: Path) -> None:
    process = begun(
        """
        def guard_of(trial):
            watch.guarded(folder, 0.1)
            with watch.Watch(folder, 0.1) as watching:
                list(watching.over(iter([Progress(1, 1)])))
            return watch._Guard.own._process.pid
        held = open(folder / "held", "w")
        assert guard_of(1) == guard_of(2)
        os.kill(guard_of(2), signal.SIGKILL)
        watch._Guard.own._process.wait()
        print(guard_of(3), flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    assert process.stdout
    guard = int(process.stdout.readline())
    # Its Python may still be reading its own modules.
    wait_until(lambda: _open_in(guard) == {"/dev/null", "/memfd:heartbeats"}, within_s=30)
    assert os.getsid(guard) == guard
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{guard}").exists(), within_s=30)


def _open_in(pid: int) -> set[str]:
    return {os.path.realpath(link).split(" ")[0] for link in Path(f"/proc/{pid}/fd").iterdir()}


def test_a_python_without_memory_files_goes_on_unguarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.memfd_create", raising=False)
    guarded(tmp_path, 0.1)
    with Watch(tmp_path, 0.1) as watching:
        assert list(watching.over(iter([Progress(1, 1)]))) == [Progress(1, 1)]
    assert _Guard.own is None


@pytest.mark.process
@linux
def test_a_machine_that_was_asleep_with_both_kills_nothing(tmp_path: Path) -> None:
    process = begun(
        """
        print(watch._Guard.own._process.pid, flush=True)
        time.sleep(15)
        """,
        tmp_path,
    )
    assert process.stdout
    both = int(process.stdout.readline()), process.pid
    for number, wait in ((signal.SIGSTOP, LATER_S + 4 * TICK_S), (signal.SIGCONT, 0)):
        for pid in both:
            os.kill(pid, number)
        time.sleep(wait)
    assert process.wait(60) == 0
    assert hang_of(tmp_path) is None
