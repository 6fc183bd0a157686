"""Runs a grid with a fault every few seconds, again and again, and compares each result with a quiet run's.

    python tests/support/soak.py --faults 100                    trials that count, minutes
    python tests/support/soak.py --faults 100 --profile smoke    the paper's grid at the smallest scale

The next fault comes once a trial has saved something since the last one, so that the grid gets on. A run
that ends badly without a fault to explain it, or with other numbers, is an error. `--seed` chooses faults.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ablation.store import Store
from tests.support import toy_driver
from tests.support.driver import TRIAL, Run

ROOT = Path(__file__).resolve().parents[2]
FREEZE_S = 8.0
"""Longer than what counts as a hang in these grids."""
PATIENCE_S = 1800
"""For a grid to end with nothing in its way."""


@dataclass(frozen=True)
class Grid:
    """Something to run in a workspace, as often as it takes.

    Attributes:
        checkpoints: pattern of the files, in the workspace.
        tables: pattern of the files that a finished run must leave the same.
    """

    command: Callable[[Path], Sequence[str]]
    checkpoints: str
    tables: str


def toys(count: int) -> Grid:
    """Trials that count, a few seconds each."""
    trials = [{"name": f"toy{i}", "steps": 10 + i, "step_seconds": 0.3} for i in range(count)]
    options = {"concurrency": 2, "max_retries": 1000, "hang_after": 3}
    words = ["--toys", json.dumps(trials), "--options", json.dumps(options)]
    program = [sys.executable, toy_driver.__file__]
    return Grid(lambda workspace: [*program, str(workspace), *words], "artifacts/*/checkpoint.json", "none")


def study(profile: str) -> Grid:
    """The paper's grid at a profile."""
    program = [sys.executable, str(ROOT / "experiments" / "reproduce_tables.py"), "--profile", profile]
    words = ["--retry-failed", "--format", "csv", "--concurrency", "2", "--hang-after", "5"]
    return Grid(
        lambda workspace: [*program, *words, "--workspace", str(workspace)],
        "artifacts/*/checkpoints/*.pt",
        "results/*/*.csv",
    )


Outcome = tuple[dict[str, dict[str, float]], dict[str, str]]


def outcome(grid: Grid, workspace: Path) -> Outcome:
    """The numbers of every evaluation, and the tables."""
    store = Store.open(workspace / "store.db", read_only=True)
    numbers = {key: row.metrics for key, row in store.evaluations().items()}
    store.close()
    return numbers, {file.name: file.read_text() for file in sorted(workspace.glob(grid.tables))}


def complete(workspace: Path) -> bool:
    """Whether every trial has come to its end."""
    store = Store.open(workspace / "store.db", read_only=True)
    states = {row.state for row in store.trial_states().values()}
    store.close()
    return states == {"COMPLETE"}


# --- faults --------------------------------------------------------------------------------------------


def _signalled(run: Run, marks: Sequence[str], number: int, chance: random.Random) -> bool:
    """Sends a signal to one of the processes with these marks, if there is any."""
    pids = run.descendants(*marks)
    if pids:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(pids), number)
    return bool(pids)


def kill_trial(run: Run, newest: Path, chance: random.Random) -> bool:
    """A trial's process is gone."""
    return _signalled(run, TRIAL, signal.SIGKILL, chance)


def preempt_trial(run: Run, newest: Path, chance: random.Random) -> bool:
    """A trial's process is asked to go."""
    return _signalled(run, TRIAL, signal.SIGTERM, chance)


def freeze_trial(run: Run, newest: Path, chance: random.Random) -> bool:
    """A trial's process stands still for a while."""
    pids = run.descendants(*TRIAL)
    if not pids:
        return False
    pid = chance.choice(pids)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(FREEZE_S)
        os.kill(pid, signal.SIGCONT)
    return True


def kill_driver(run: Run, newest: Path, chance: random.Random) -> bool:
    """The driver is gone, and Ray with it."""
    run.process.kill()
    run.process.wait()
    return True


def stop_driver(run: Run, newest: Path, chance: random.Random) -> bool:
    """The driver is asked to go."""
    run.process.terminate()
    run.end()
    return True


def kill_raylet(run: Run, newest: Path, chance: random.Random) -> bool:
    """Ray's process of this machine is gone."""
    return _signalled(run, "/raylet/raylet\0", signal.SIGKILL, chance)


def kill_gcs(run: Run, newest: Path, chance: random.Random) -> bool:
    """Ray's central process is gone."""
    return _signalled(run, "/gcs_server\0", signal.SIGKILL, chance)


def damage_checkpoint(run: Run, newest: Path, chance: random.Random) -> bool:
    """The driver is gone, and the newest checkpoint is cut short."""
    kill_driver(run, newest, chance)
    with suppress(FileNotFoundError):
        os.truncate(newest, newest.stat().st_size // 2)
    return True


FAULTS = (
    kill_trial,
    preempt_trial,
    freeze_trial,
    kill_driver,
    stop_driver,
    kill_raylet,
    kill_gcs,
    damage_checkpoint,
)


# --- the soak ------------------------------------------------------------------------------------------


class Soak:
    """Runs a grid under faults.

    Args:
        folder: for workspaces and logs.
        seed: of the choice of faults.
    """

    def __init__(self, grid: Grid, folder: Path, seed: int) -> None:
        self.grid, self.folder = grid, folder
        self.suffered: Counter[str] = Counter()
        self.starts = 0
        self._chance = random.Random(seed)
        self._saved = 0.0

    def quiet(self) -> Outcome:
        """What comes out when nothing happens."""
        workspace = self.folder / "quiet"
        with self._start(workspace) as run:
            run.process.wait(PATIENCE_S)
        assert complete(workspace), run.log.read_text()
        return outcome(self.grid, workspace)

    def round(self, name: str, faults: int) -> Outcome:
        """What comes out of a fresh workspace with at most so many faults."""
        workspace = self.folder / name
        left = faults
        while True:
            with self._start(workspace) as run:
                hurt = self._hurt(run, workspace, left)
                left -= hurt
                run.process.wait(PATIENCE_S)
            if complete(workspace):
                with self._start(workspace) as run:  # the last fault may have come before the tables
                    run.process.wait(PATIENCE_S)
                return outcome(self.grid, workspace)
            assert hurt, f"it failed by itself:\n{run.log.read_text()}"

    def _start(self, workspace: Path) -> Run:
        self.starts += 1
        return Run(self.grid.command(workspace), self.folder / f"run{self.starts}.log")

    def _hurt(self, run: Run, workspace: Path, most: int) -> int:
        """Faults until the run has ended, by one of them or well; how many there were."""
        hurt = 0
        while run.running() and hurt < most:
            time.sleep(0.1)
            newest = self._saved_since(workspace)
            if newest is None:
                continue
            time.sleep(self._chance.uniform(0, 3))
            fault = self._chance.choice(FAULTS)
            if run.running() and fault(run, newest, self._chance):
                hurt += 1
                self.suffered[fault.__name__] += 1
                self._saved = time.time()
        return hurt

    def _saved_since(self, workspace: Path) -> Path | None:
        """The newest checkpoint, if it is newer than the last fault."""
        found = []
        for file in workspace.glob(self.grid.checkpoints):
            with suppress(FileNotFoundError):
                found.append((file.stat().st_mtime, file))
        time_, newest = max(found, default=(0.0, workspace))
        return newest if time_ > self._saved else None


def soak(grid: Grid, faults: int, folder: Path, seed: int) -> Counter[str]:
    """Round after round until so many faults have been survived; how many of each kind there were.

    Raises:
        AssertionError: a round failed by itself, or ended with other numbers than the quiet run.
    """
    run = Soak(grid, folder, seed)
    expected, began, rounds = run.quiet(), time.monotonic(), 0
    while (left := faults - run.suffered.total()) > 0:
        rounds += 1
        assert run.round(f"round{rounds}", left) == expected, f"round {rounds} has other numbers"
        counts = ", ".join(f"{name} {count}" for name, count in sorted(run.suffered.items()))
        minutes = (time.monotonic() - began) / 60
        print(f"{minutes:5.1f} min, round {rounds}: {run.suffered.total()} faults ({counts})", flush=True)
    return run.suffered


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Survive faults.")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--profile", help="of the paper's grid; trials that count when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep workspaces and logs there")
    arguments = parser.parse_args()
    grid = study(arguments.profile) if arguments.profile else toys(12)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        suffered = soak(grid, arguments.faults, folder, arguments.seed)
    print(f"{suffered.total()} faults survived, every result equal to the quiet run's.")


if __name__ == "__main__":
    main()
