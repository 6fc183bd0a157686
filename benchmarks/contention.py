"""What a trial keeps of its pace beside a busy program, at Ray's niceness of 15 and at the platform's of 0.

Trains a table of drawn shapes twice by `ablation run`, one trial at a time with a thread for each of T cores:
alone, and beside a program that keeps one core busy. Then T + 1 threads want T cores, so its fair share is
T / (T + 1) of its pace alone. A run that is slower than `LIMIT_S` allows is ended; its reports count.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.common import report

CORES = len(os.sched_getaffinity(0))
TRAINING = ("--tables", "2", "--max-iterations", "40")
LIMIT_S = 150.0


def pace(niceness: int, workspace: Path) -> list[float]:
    """Images per second of each report."""
    arguments = ["--concurrency", "1", "--resources", f"all=cpus:{CORES},gpus:0"]
    command = [sys.executable, "experiments/reproduce_tables.py", *TRAINING, *arguments]
    command += ["--niceness", str(niceness), "--workspace", str(workspace), "--format", "csv"]
    _run(command)
    with closing(sqlite3.connect(workspace / "store.db")) as store:
        rows = store.execute(
            "SELECT value FROM metrics WHERE name = 'images_per_second' ORDER BY attempt_id, step"
        )
        return [value for (value,) in rows]


def _run(command: list[str]) -> None:
    """Runs it until it ends or `LIMIT_S` are over; CalledProcessError where it fails before."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            for _ in range(2):  # the second one ends it without waiting for a checkpoint
                process.send_signal(signal.SIGINT)
                time.sleep(1.0)
            return
    if code:
        raise subprocess.CalledProcessError(code, command)


@contextmanager
def busy_program() -> Iterator[None]:
    """A process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compare(rounds: int) -> None:
    """Prints the table."""
    rows: list[dict[str, str | float]] = []
    for niceness in (0, 15):
        alone, beside = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                alone += pace(niceness, Path(folder))
            with tempfile.TemporaryDirectory() as folder, busy_program():
                beside += pace(niceness, Path(folder))
        paces = statistics.median(alone), statistics.median(beside)
        rows.append(
            {
                "niceness": niceness,
                "threads": CORES,
                "images/s alone": paces[0],
                "beside a busy program": paces[1],
                "ratio": paces[1] / paces[0],
                "fair share": CORES / (CORES + 1),
            }
        )
    title = "Pace of a trial alone and beside a program that keeps one core busy"
    report("contention", title, rows, {"rounds": rounds, "training": " ".join(TRAINING)})


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="medians over so many (default 2)")
    compare(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
