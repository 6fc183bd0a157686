"""The toy study's driver as a process of its own, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from ablation.store import AttemptRow, Store
from tests.support import toy_driver

PATIENCE_S = 300
"""No wait in these tests is longer; on a busy machine Ray alone takes a minute to start."""
TRIAL = ("ray::ResourceTrainable", "ray::TrialProcess")
"""What Ray calls the process of a trial: at work, and between two tasks."""


class Run:
    """A command that runs trials, killed with all that it started when the block ends.

    Args:
        command: program and arguments.
        log: file for what it prints.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> tuple[int, str]:
        """Waits for its end; its exit status and what it printed."""
        return self.process.wait(PATIENCE_S), self.log.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits while it runs."""
        wait_until(condition, self.running, self.log.read_text)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def the_one(self, *marks: str) -> int:
        """Waits until one of its descendants alone has one of the marks; its process id."""
        found: list[int] = []

        def alone() -> bool:
            found[:] = self.descendants(*marks)
            return len(found) == 1

        self.until(alone)
        return found[0]

    def descendants(self, *marks: str) -> list[int]:
        """Process ids of what it started, and these in turn, with one of the marks in their command line."""
        lines = {pid: command_line(pid) for pid in _descendants(self.process.pid)}
        return [pid for pid, line in lines.items() if any(mark in line for mark in marks)]


class Driver(Run):
    """`toy_driver.py` as a process.

    Args:
        folder: the workspace.
        toys: fields of each `toy_driver.Toy`.
        store, storage: see `toy_driver`.
        inside: words before the command, as `ip netns exec NAME`.
        options: fields of `ablation.run_options.Options`.
    """

    def __init__(
        self,
        folder: Path,
        toys: Sequence[dict[str, Any]],
        *,
        store: str = "",
        storage: str = "",
        inside: Sequence[str] = (),
        **options: Any,
    ) -> None:
        command = [*inside, sys.executable, toy_driver.__file__, str(folder), "--toys", json.dumps(toys)]
        command += ["--options", json.dumps(options), "--store", store, "--storage", storage]
        super().__init__(command, folder.parent / f"{time.monotonic_ns()}.log")

    def summary(self) -> dict[str, Any]:
        """Of a run that came to its end."""
        status, text = self.end()
        assert status == 0, text
        line = next(line for line in reversed(text.splitlines()) if line.startswith("{"))
        summary: dict[str, Any] = json.loads(line)  # what other processes print may follow it
        return summary


def wait_until(
    condition: Callable[[], bool],
    alive: Callable[[], bool] = lambda: True,
    said: Callable[[], str] = str,
    within_s: float = PATIENCE_S,
) -> None:
    """Until it holds; an error, with what was said, when that takes too long or nothing lives any more."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert alive() and time.monotonic() < deadline, said()
        time.sleep(0.1)


# --- processes -----------------------------------------------------------------------------------------


def _descendants(pid: int) -> Iterator[int]:
    """Process ids of its children, their children and so on, as far as they live."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children[parent].append(int(stat.parent.name))
    found = children[pid]
    for child in found:
        found.extend(children[child])
    return iter(found)


def command_line(pid: int) -> str:
    """Its words, each with a zero byte after it; nothing of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


# --- what is left --------------------------------------------------------------------------------------


def attempts(store: Store) -> dict[str, list[AttemptRow]]:
    """By the toy's name."""
    names = {key: row.name.split()[1].rstrip(",") for key, row in store.trial_states().items()}
    return {name: store.attempts([key]) for key, name in names.items()}


def states(store: Store) -> dict[str, list[str]]:
    """States of its attempts, by the toy's name."""
    return {name: [row.state for row in rows] for name, rows in attempts(store).items()}


def key_of(store: Store, name: str) -> str:
    """Of the trial of the toy with that name."""
    return next(key for key, row in store.trial_states().items() if row.name.split()[1].rstrip(",") == name)


def starts(folder: Path, key: str) -> list[int]:
    """The step at which each attempt at the trial began."""
    file = folder / "artifacts" / key / "starts.txt"
    return [int(line.split()[0]) for line in file.read_text().splitlines()] if file.exists() else []


def process_of(folder: Path, key: str) -> int:
    """The process id of the last attempt at the trial, of its first worker."""
    file = folder / "artifacts" / key / "starts.txt"
    return int(file.read_text().splitlines()[-1].split()[1])


def newest_step(folder: Path, key: str = "*") -> int:
    """Of the checkpoints that are there; 0 when there are none."""
    files = folder.glob(f"artifacts/{key}/checkpoint.json")
    return max((json.loads(file.read_text())["step"] for file in files), default=0)
