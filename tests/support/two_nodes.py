"""The paper's grid on two machines of one CPU each, one of which dies in the middle and another joins.

    python tests/support/two_nodes.py                      all of it, trials of table 2 across both machines
    python tests/support/two_nodes.py --tables 2 3         only these tables

The machines are network namespaces, so it needs root. The numbers must be those of a run on this machine
alone with as many workers, bit for bit.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ablation.store import Store, TrialRow
from ablation.store.database import NoStoreError
from tests.support.driver import Run
from tests.support.machines import lacking, machines
from tests.support.soak import PATIENCE_S, ROOT, complete, outcome, study

PAIRS = "table2=workers:2,gpus:0"


def command(workspace: Path, tables: Sequence[str], *words: str) -> list[str]:
    """The same trials, wherever they run."""
    program = [sys.executable, str(ROOT / "experiments" / "reproduce_tables.py"), "--profile", "smoke"]
    chosen = ["--tables", *tables] if tables else []
    return [*program, *chosen, "--format", "csv", "--resources", PAIRS, "--workspace", str(workspace), *words]


def trials(workspace: Path) -> list[TrialRow]:
    """All that the store knows; nothing while it is being made."""
    if not (workspace / "store.db").exists():
        return []
    try:
        store = Store.open(workspace / "store.db", read_only=True)
    except NoStoreError:
        return []
    rows = list(store.trial_states().values())
    store.close()
    return rows


def done(workspace: Path) -> int:
    """How many trials are complete."""
    return [row.state for row in trials(workspace)].count("COMPLETE")


def in_the_middle(workspace: Path) -> bool:
    """Whether some are complete, and another is training."""
    training = any(row.state == "RUNNING" and 0 < row.step < row.total for row in trials(workspace))
    return training and done(workspace) >= 2


def on_two_machines(workspace: Path, tables: Sequence[str]) -> None:
    """Runs it, with one machine lost after the first trials and another that joins then."""
    with machines() as network:
        network.start_head(cpus=1)
        network.join("left", cpus=1)
        here = [*network.on("head"), "OMP_NUM_THREADS=1"]
        words = command(workspace, tables, "--cluster", network.address)
        with Run([*here, *words], workspace.with_suffix(".log")) as run:
            run.until(lambda: in_the_middle(workspace))
            print(f"{done(workspace)} trials done, one machine is switched off", flush=True)
            network.switch_off("left")
            time.sleep(10)
            network.join("right", cpus=1)
            print("another has joined", flush=True)
            run.process.wait(PATIENCE_S)
        assert complete(workspace), run.log.read_text()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the smoke grid on two machines.")
    parser.add_argument("--tables", nargs="+", default=[])
    arguments = parser.parse_args()
    if why := lacking():
        sys.exit(why)
    with tempfile.TemporaryDirectory() as scratch:
        alone, together = Path(scratch) / "alone", Path(scratch) / "together"
        began = time.monotonic()
        on_two_machines(together, arguments.tables)
        print(f"{done(together)} trials in {time.monotonic() - began:.0f} s on two machines", flush=True)
        words = ["env", "OMP_NUM_THREADS=1", *command(alone, arguments.tables, "--concurrency", "2")]
        with Run(words, alone.with_suffix(".log")) as run:
            run.process.wait(PATIENCE_S)
        grid = study("smoke")
        same = outcome(grid, alone) == outcome(grid, together)
        lost = _lost(together)
    print(f"{lost} attempts were lost with the machine; the numbers are {'equal' if same else 'NOT EQUAL'}.")
    sys.exit(not same)


def _lost(workspace: Path) -> int:
    store = Store.open(workspace / "store.db", read_only=True)
    states = [attempt.state for attempt in store.attempts()]
    store.close()
    return states.count("INTERRUPTED")


if __name__ == "__main__":
    main()
