"""Commands on a store of 100,000 trials with ten million metric points, in SQLite and in PostgreSQL.

Among the trials are those of the ATSS study at profile smoke, all complete; the commands are about these.
What is timed is a command after its imports: the data set's fingerprint, the plan, the store, the output.
PostgreSQL is left out where its server is not installed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text

from ablation.cli import main as ablation
from ablation.plan import register
from ablation.protocol import Evaluated, Progress
from ablation.results.table import assemble
from ablation.session import Selection, Session
from ablation.store import Store, schema
from ablation.workspace import Workspace
from benchmarks.common import Row, report
from benchmarks.postgres import running_server
from detector.evaluation.coco_eval import AP_NAMES

TRIALS = 100_000
POINTS = 10_000_000
ROUNDS = 3
SETTINGS = 50
"""Other settings that the other trials are spread over."""
PART = 10_000


# --- what is in the store ----------------------------------------------------------------------------


def fill(selection: Selection, trials: int, points: int) -> None:
    """Makes the study's own trials, complete, and so many others; all with equally many points."""
    Workspace.at(selection.workspace).create()
    session = Session.open(selection, writes=True)
    register(session.plan, session.store)
    for trial in session.plan.trials:
        attempt = session.store.claim(trial.key, "benchmark", {"commit": "0" * 40})
        assert attempt is not None
        numbers = dict.fromkeys(AP_NAMES, 30.0)
        results = [Evaluated(evaluation.key, numbers) for evaluation in trial.evaluations]
        session.store.record(attempt, [Progress(100, 100, {"loss": 1.0}), *results])
        session.store.finish(attempt)
    others = trials - len(session.plan.trials)
    add_others(session.store, others, session.plan.trials[0].config_json)
    add_points(session.store, points // trials)
    session.store.close()


def add_others(store: Store, count: int, config_json: str) -> None:
    """Complete trials of other settings with configs as long as real ones, an attempt and a result each."""
    settings = [{"name": "other", "profile": f"p{n}", "data_name": "d"} for n in range(SETTINGS)]
    with store._transaction(writes=True) as t:
        start = t.now - timedelta(days=1)
        first = t.value(select(func.max(schema.attempts.c.id))) + 1
        t.insert_all(schema.studies, [setting | {"added": t.now} for setting in settings])
        for part in _parts(range(count)):
            t.insert_all(schema.trials, [_trial(number, config_json, start) for number in part])
            t.insert_all(schema.attempts, [_attempt(number, first + number, start) for number in part])
            t.insert_all(schema.evaluations, [_evaluation(number, first + number, start) for number in part])


def _key(number: int) -> str:
    return f"{number:012d}"


def _trial(number: int, config_json: str, start: datetime) -> dict[str, Any]:
    return {
        "key": _key(number),
        "study": "other",
        "profile": f"p{number % SETTINGS}",
        "data_name": "d",
        "name": f"table1 row {number}, seed 0",
        "tables": ["table1"],
        "config": config_json,
        "seed": 0,
        "state": "COMPLETE",
        "step": 100,
        "total": 100,
        "added": start,
    }


def _attempt(number: int, attempt_id: int, start: datetime) -> dict[str, Any]:
    return {
        "id": attempt_id,
        "trial_key": _key(number),
        "number": 1,
        "state": "COMPLETE",
        "owner": "benchmark",
        "host": "host",
        "pid": 1,
        "started": start,
        "heartbeat": start + timedelta(hours=1),
        "ended": start + timedelta(hours=1),
        "provenance": {"commit": "0" * 40, "packages": dict.fromkeys("abcdefgh", "1.0")},
        "mirrored_state": "COMPLETE",
    }


def _evaluation(number: int, attempt_id: int, start: datetime) -> dict[str, Any]:
    return {
        "key": _key(number),
        "trial_key": _key(number),
        "config": "{}",
        "attempt_id": attempt_id,
        "metrics": dict.fromkeys(AP_NAMES, 30.0),
        "time": start,
    }


def add_points(store: Store, count: int) -> None:
    """So many metric points for each attempt, made by the database itself, and marked as mirrored."""
    with store._transaction(writes=True) as t:
        t.execute(
            text(
                "INSERT INTO metrics (attempt_id, step, name, value, time) "
                "WITH RECURSIVE steps(step) AS "
                "(SELECT 1 UNION ALL SELECT step + 1 FROM steps WHERE step < :n) "
                "SELECT attempts.id, step, 'loss', 1.0 / step, started FROM attempts CROSS JOIN steps"
            ).bindparams(n=count)
        )
        newest = "(SELECT MAX(id) FROM metrics WHERE attempt_id = attempts.id)"
        t.execute(
            text(
                "UPDATE attempts SET first_step = 1, first_progress = started, last_step = 100, "
                f"last_progress = heartbeat, last_metric = {newest}, mirrored_upto = {newest}"
            )
        )
    if store.shared:  # as the server does by itself before long
        with store._transaction(writes=True) as t:
            t.execute(text("ANALYZE"))


def _parts(numbers: Iterable[int]) -> Iterable[Sequence[int]]:
    rest = iter(numbers)
    while part := list(islice(rest, PART)):
        yield part


# --- what is timed -----------------------------------------------------------------------------------


def commands(selection: Selection) -> dict[str, Callable[[], object]]:
    """The commands that people wait for, as they type them."""
    where = ["--profile", "smoke", "--workspace", str(selection.workspace)]
    if selection.store is not None:
        where += ["--store", selection.store]
    return {name: partial(_command, [name, *where]) for name in ("status", "plan", "tables")}


def _command(words: Sequence[str]) -> None:
    """Runs a command in this process; RuntimeError unless it ends well."""
    with redirect_stdout(io.StringIO()):
        try:
            ablation(words)
        except SystemExit as end:
            if end.code != 0:
                raise RuntimeError(f"{words[0]} ended with {end.code}") from end


def reads(session: Session) -> dict[str, Callable[[], object]]:
    """What these commands, a driver and the mirror ask of the store again and again."""
    store, plan = session.store, session.plan
    keys = [trial.key for trial in plan.trials]
    evaluations = [evaluation.key for trial in plan.trials for evaluation in trial.evaluations]
    setting = (plan.study.name, plan.setting.profile, plan.setting.data_name)
    return {
        "tables, but its files": lambda: assemble(session.study, plan, store),
        "Store.trial_states": lambda: store.trial_states(keys),
        "Store.attempts": lambda: store.attempts(keys),
        "Store.evaluations": lambda: store.evaluations(evaluations),
        "Store.desired_states": lambda: store.desired_states(*setting, keys),
        "Store.pace": lambda: store.pace(*setting),
        "Store.pace of 2,000 trials": lambda: store.pace("other", "p0", "d"),
        "Store.curve": lambda: store.curve(keys[0], "loss"),
        "Store.attempts_to_mirror": store.attempts_to_mirror,
        "Store.reclaim_silent": store.reclaim_silent,
    }


def measured(name: str, selection: Selection) -> list[Row]:
    """Median seconds of every command and read."""
    session = Session.open(selection, writes=True)
    works = commands(selection) | reads(session)
    rows: list[Row] = [
        {"store": name, "what": what, "ms": 1000 * _median(work)} for what, work in works.items()
    ]
    session.store.close()
    return rows


def _median(work: Callable[[], object]) -> float:
    work()  # imports, and what the operating system caches
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# --- the table ---------------------------------------------------------------------------------------


def compare(trials: int, points: int) -> None:
    """Fill both stores in a folder that goes away, and measure."""
    notes: dict[str, str | float] = {
        "unit": "wall clock, median",
        "rounds": ROUNDS,
        "trials": trials,
        "metric points": points,
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, running_server() as server:
        stores = {"SQLite": Selection(profile="smoke", workspace=Path(folder) / "sqlite")}
        if server is not None:
            url = server.new_database()
            stores["PostgreSQL"] = Selection(
                profile="smoke", workspace=Path(folder) / "postgresql", store=url
            )
        for name, selection in stores.items():
            start = time.perf_counter()
            fill(selection, trials, points)
            notes[f"{name}: seconds to fill"] = time.perf_counter() - start
            rows += measured(name, selection)
    notes["slowest, ms"] = max(float(row["ms"]) for row in rows)
    report("store", "Commands on a large store", rows, notes)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=TRIALS, help="in the store (default %(default)s)")
    parser.add_argument("--points", type=int, default=POINTS, help="metric points (default %(default)s)")
    options = parser.parse_args()
    compare(options.trials, options.points)


if __name__ == "__main__":
    main()
