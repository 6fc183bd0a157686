"""What a trial keeps of its pace beside a busy program, at Ray's niceness of 15 and at the platform's of 0.

Trains one table of drawn shapes twice by `ablation run`, one trial at a time: alone, and beside a program
that keeps one core busy. A trial with as many threads as there are cores then has T of T + 1 busy threads, so
its fair share is T / (T + 1) of its pace alone; a trial with one thread fewer has a core for each thread.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.common import report

CORES = len(os.sched_getaffinity(0))
TRAINING = ("--tables", "2", "--max-iterations", "40")


def pace(threads: int, niceness: int, workspace: Path) -> list[float]:
    """Images per second of every report of every trial but the first, which starts the process."""
    arguments = ["--concurrency", "1", "--resources", f"all=cpus:{threads},gpus:0"]
    command = [sys.executable, "experiments/reproduce_tables.py", *TRAINING, *arguments]
    command += ["--niceness", str(niceness), "--workspace", str(workspace), "--format", "csv"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with closing(sqlite3.connect(workspace / "store.db")) as store:
        rows = store.execute(
            "SELECT value FROM metrics WHERE name = 'images_per_second' "
            "AND attempt_id > (SELECT min(attempt_id) FROM metrics) ORDER BY attempt_id, step"
        )
        return [value for (value,) in rows]


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
    for threads in sorted({max(1, CORES - 1), CORES}):
        for niceness in (0, 15):
            alone, beside = [], []
            for _ in range(rounds):
                with tempfile.TemporaryDirectory() as folder:
                    alone += pace(threads, niceness, Path(folder))
                with tempfile.TemporaryDirectory() as folder, busy_program():
                    beside += pace(threads, niceness, Path(folder))
            paces = statistics.median(alone), statistics.median(beside)
            rows.append(
                {
                    "threads": threads,
                    "niceness": niceness,
                    "images/s alone": paces[0],
                    "beside a busy program": paces[1],
                    "ratio": paces[1] / paces[0],
                    "fair share": min(1.0, CORES / (threads + 1)),
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
