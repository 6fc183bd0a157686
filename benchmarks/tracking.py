"""What tracking costs a training: CPU time of the store and of the MLflow mirror, and the driver's waits.

Two trials report 8 numbers every 2 s each, as the small profiles do (paper scale: every 10 s or more), and
the mirror copies every 5 s, to its file or to a server in another process. Then a driver's reports are
timed without a mirror and beside one whose server takes 2 s for each request, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ablation.protocol import Progress
from ablation.store import Store
from ablation.tracking.mirror import Mirror
from ablation.workspace import Workspace
from benchmarks.common import Notes, Row, report
from benchmarks.mlflow_server import Proxy, Server

TRIALS, NUMBERS = 2, 8
REPORT_SECONDS = 2.0
MIRROR_SECONDS = 5.0
SLOW_SECONDS = 2.0
PACE_SECONDS = 0.02
"""Between the reports of the driver that is timed: a hundred times as often as a real one's."""


@contextmanager
def _store(folder: Path, study: str) -> Iterator[tuple[Store, list[int]]]:
    """A store in which trials run; ids of their attempts."""
    folder.mkdir()
    store = Store.open(folder / "store.db")
    store.add_study(study, "smoke", "shapes")
    command = store.start_invocation("benchmark", {})
    attempts = []
    for number in range(TRIALS):
        key = f"{number:012x}"
        store.ensure_trial(key, f"trial {number}", '{"seed": 0}', 0, "smoke", "shapes", study)
        attempt = store.claim(key, "benchmark", {}, command)
        assert attempt is not None
        attempts.append(attempt)
    try:
        yield store, attempts
    finally:
        store.close()


def _record(store: Store, attempts: Sequence[int], step: int) -> None:
    numbers = {f"number_{index}": 1.0 / (step + index) for index in range(NUMBERS)}
    for attempt in attempts:
        store.record(attempt, [Progress(step, 1_000_000, numbers)])


# --- CPU time ------------------------------------------------------------------------------------------


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _cost(store: Store, attempts: Sequence[int], mirror: Mirror, passes: int) -> Row:
    """CPU seconds of tracking for each second that a trial trains; of this process, so without a server's."""
    assert mirror.client  # imports MLflow and makes its tables, once
    opening = _cpu(mirror.sync)
    recording = copying = 0.0
    step = 0
    for number in range(passes):
        while step * REPORT_SECONDS < (number + 1) * MIRROR_SECONDS:
            step += 1
            recording += _cpu(partial(_record, store, attempts, step))
        copying += _cpu(mirror.sync)
    trained = passes * MIRROR_SECONDS * TRIALS
    return {
        "mirror": "server" if mirror.uri.startswith("http") else "file",
        "store, ms/report": 1000 * recording / (step * TRIALS),
        "mirror, ms/pass and trial": 1000 * copying / (passes * TRIALS),
        "both, % of training": 100 * (recording + copying) / trained,
        "making a run, ms": 1000 * opening / TRIALS,
    }


# --- the driver's time -----------------------------------------------------------------------------------


def _drive(store: Store, attempts: Sequence[int], steps: range) -> tuple[float, float]:
    """Seconds that a driver's loop takes, and those of its longest report."""
    longest, began = 0.0, time.monotonic()
    for step in steps:
        at = time.monotonic()
        _record(store, attempts, step)
        longest = max(longest, time.monotonic() - at)
        time.sleep(PACE_SECONDS)
    return time.monotonic() - began, longest


def _beside_slow(store: Store, attempts: Sequence[int], steps: range, proxy: Proxy) -> tuple[float, float]:
    mirror = Mirror(store, proxy.uri, interval=0.1)
    assert mirror.client  # its import takes a second, once
    proxy.delay = SLOW_SECONDS
    mirror.start()
    timed = _drive(store, attempts, steps)
    proxy.delay = 0.0
    mirror.close()
    return timed


def _driver_rows(store: Store, attempts: Sequence[int], proxy: Proxy, rounds: int, steps: int) -> list[Row]:
    timed: dict[str, list[tuple[float, float]]] = {"none": [], f"{SLOW_SECONDS:.0f} s a request": []}
    for number in range(2 * rounds):
        part = range(1 + number * steps, 1 + (number + 1) * steps)
        if number % 2 == 0:
            timed["none"].append(_drive(store, attempts, part))
        else:
            timed[f"{SLOW_SECONDS:.0f} s a request"].append(_beside_slow(store, attempts, part, proxy))
    return [
        {
            "server": name,
            "loop, s": statistics.median(loop for loop, _ in times),
            "longest report, ms": 1000 * max(longest for _, longest in times),
        }
        for name, times in timed.items()
    ]


def _end_beside_silent(store: Store, proxy: Proxy) -> float:
    """Seconds that the end of a run takes when the server takes everything and answers nothing."""
    mirror = Mirror(store, proxy.uri, interval=0.1)
    mirror.sync()
    proxy.silent = True
    mirror.start()
    _record(store, [row.id for row in store.attempts()], 1_000_000)
    began = time.monotonic()
    mirror.close()
    return time.monotonic() - began


def compare(folder: Path, passes: int, rounds: int, steps: int) -> None:
    """Print the tables."""
    server = Server(folder / "server")
    server.folder.mkdir()
    server.start()
    try:
        with _store(folder / "file", "file") as (store, attempts):
            costs = [_cost(store, attempts, Mirror.of(store, Workspace.at(folder / "file")), passes)]
        with _store(folder / "remote", "remote") as (store, attempts):
            costs.append(_cost(store, attempts, Mirror(store, server.uri), passes))
        proxy = Proxy(server.port)
        with _store(folder / "slow", "slow") as (store, attempts):
            loops = _driver_rows(store, attempts, proxy, rounds, steps)
            end = _end_beside_silent(store, proxy)
        proxy.close()
    finally:
        server.kill()
    _report(costs, loops, end)


def _report(costs: Sequence[Row], loops: Sequence[Row], end: float) -> None:
    alone, slow = (float(row["loop, s"]) for row in loops)
    notes: Notes = {
        "driver's loop beside a slow server against none": slow / alone,
        "longest report alone, ms": loops[0]["longest report, ms"],
        "longest report beside a slow server, ms": loops[1]["longest report, ms"],
        "end of a run beside a silent server, s": end,
        "trials": f"{TRIALS}, {NUMBERS} numbers each every {REPORT_SECONDS:.0f} s",
        "driver's loop": f"a report of each trial every {1000 * PACE_SECONDS:.0f} ms",
    }
    report("tracking", "Tracking: CPU time of the driver for each second that a trial trains", costs, notes)


def main() -> None:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=40, help="copies of 5 s of training (default: 40)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of the driver (default: 5)")
    parser.add_argument("--steps", type=int, default=200, help="reports in each of them (default: 200)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        compare(Path(folder), arguments.passes, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
