"""CPU time and memory of the commands that train nothing, on a finished workspace of the smoke profile.

Every command runs in a process of its own, with the import of SQLAlchemy alone as the peer: the store needs
it, so no command can be cheaper. Trains the smoke profile first (2 minutes), unless --workspace names one in
which it is complete; that is copied, because some commands write into it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import ROOT, Notes, Row, report

ROUNDS = 7
PEER = "python -c 'import sqlalchemy'"
COMMANDS = (
    "--help",
    "run --help",
    "plan",
    "status",
    "status --json",
    "status --stale",
    "tables",
    "logs 'table3 FCOS + ATSS'",
    "prioritise table3",
    "pause",
    "resume",
    "gc --yes",
)
LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(status))
"""
"""Starts a command from a small process, because a forked process inherits the peak memory of its parent."""

ABLATION = [sys.executable, "-c", "from ablation.cli import main; main()"]


class Cost(NamedTuple):
    """What a process took, with the processes that it waited for: CPU seconds, and peak memory in MiB."""

    seconds: float
    memory: float


def cost(command: Sequence[str]) -> Cost:
    """Runs a command; RuntimeError where it fails."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, *command], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    seconds, kibibytes = map(float, done.stdout.split())
    return Cost(seconds, kibibytes / 1024)


def typed(command: str, workspace: Path) -> list[str]:
    """The words of a command on the workspace."""
    words = [*ABLATION, *_split(command)]
    return words if "--help" in command else [*words, "--profile", "smoke", "--workspace", str(workspace)]


def _split(command: str) -> list[str]:
    name, quote, quoted = command.partition("'")
    return [*name.split(), *([quoted.rstrip("'")] if quote else [])]


def compare(workspace: Path, rounds: int) -> None:
    """Measures every command in turns with the peer."""
    commands = {PEER: [sys.executable, "-c", "import sqlalchemy"]}
    commands |= {f"ablation {command}": typed(command, workspace) for command in COMMANDS}
    measured: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            found = cost(command)
            if number:  # the first round reads what the later ones remember
                measured[name].append(found)
    rows: list[Row] = [
        {
            "command": name,
            "CPU s": statistics.median(found.seconds for found in costs),
            "MiB": statistics.median(found.memory for found in costs),
        }
        for name, costs in measured.items()
    ]
    peer, *ours = (float(row["CPU s"]) for row in rows)
    notes: Notes = {
        "rounds": rounds,
        "slowest, CPU s": max(ours),
        "slowest, times the peer": max(ours) / peer,
    }
    report("commands", "Commands that train nothing, medians", rows, notes)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, help="in which the smoke profile is complete")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each command (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "smoke"
        if options.workspace:
            shutil.copytree(options.workspace, workspace)
        else:
            cost(typed("run", workspace))
        compare(workspace, options.rounds)


if __name__ == "__main__":
    main()
