"""Whether two versions of the code compute the same numbers, bit for bit, on one machine.

    python tests/support/same_numbers.py CHECKOUT BEFORE.json             # records what a checkout computes
    python tests/support/same_numbers.py CHECKOUT AFTER.json BEFORE.json  # and compares

Trains the smoke grid (41 evaluations) and the five rows of Table 3 on `shapes`, 30 iterations each, by the
command of that checkout. Numbers are known by the names of trials and the order of evaluations, since keys
may change from one version to another. Takes 4 minutes on 2 cores.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUNS = {"smoke": ("--profile", "smoke"), "shapes": ("--tables", "3", "--max-iterations", "30")}
TIMED = ("images_per_second", "seconds")
"""Beginnings of the names of metrics that a clock decides."""


def train(checkout: Path, workspace: Path, arguments: tuple[str, ...]) -> None:
    """Runs `reproduce_tables.py` of the checkout; CalledProcessError where a trial fails."""
    paths = os.pathsep.join([str(checkout / "platform"), str(checkout)])
    command = [sys.executable, "experiments/reproduce_tables.py", "--workspace", str(workspace), *arguments]
    subprocess.run(
        command, cwd=checkout, env={**os.environ, "PYTHONPATH": paths}, check=True, stdout=subprocess.DEVNULL
    )


def numbers(store: Path) -> dict[str, Any]:
    """Every evaluation's metrics and every reported metric of each trial, by the trial's name."""
    with sqlite3.connect(store) as connection:
        names = dict(connection.execute("SELECT key, name FROM trials"))
        found: dict[str, Any] = {name: {"evaluations": [], "progress": []} for name in names.values()}
        for key, metrics in connection.execute("SELECT trial_key, metrics FROM evaluations ORDER BY rowid"):
            found[names[key]]["evaluations"].append(json.loads(metrics))
        rows = connection.execute(
            "SELECT a.trial_key, m.step, m.name, m.value FROM metrics m "
            "JOIN attempts a ON a.id = m.attempt_id ORDER BY m.step, m.name"
        )
        for key, step, name, value in rows:
            if not name.startswith(TIMED):
                found[names[key]]["progress"].append([step, name, value])
    for trial in found.values():
        trial["evaluations"].sort(key=lambda metrics: json.dumps(metrics, sort_keys=True))
    return found


def record(checkout: Path) -> dict[str, Any]:
    """The numbers of all `RUNS`."""
    found = {}
    for name, arguments in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            train(checkout, Path(folder), arguments)
            found[name] = numbers(Path(folder) / "store.db")
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each trial whose numbers differ or that only one side has."""
    return [
        f"{run}: {trial}"
        for run in before
        for trial in sorted({*before[run], *after[run]})
        if before[run].get(trial) != after[run].get(trial)
    ]


def main() -> None:
    """Record, and compare where a file to compare with is named."""
    checkout, target, *earlier = sys.argv[1:]
    found = record(Path(checkout).resolve())
    Path(target).write_text(json.dumps(found, indent=1))
    counts = {run: sum(len(t["evaluations"]) for t in trials.values()) for run, trials in found.items()}
    print(f"evaluations: {counts}")
    for before in earlier:
        differing = differences(json.loads(Path(before).read_text()), found)
        print("\n".join([f"{len(differing)} trials differ", *differing]))
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
