"""Studies of other metrics than a percentage that should be high, each with every kind of claim."""

from collections.abc import Iterator
from pathlib import Path

from ablation.claim import Better, CellRef, Chain, Equivalent, Range
from ablation.metric import SECONDS, Metric
from ablation.protocol import Report, Request
from ablation.study import Cell, Row, Study, Table, Variant
from tests.support.workspaces import HowTested, Training, Workspace, make

ERROR = Metric("error", better="lower", digits=2, tolerance=0.5)
ACCURACY = Metric("accuracy", label="Accuracy", tolerance=0.3)
TIME = Metric("time", unit=SECONDS, better="lower", digits=3, rescore_tolerance=None)
LIKELIHOOD = Metric("likelihood", unit="nats", digits=1)
SPEED = Metric("rate", unit="words/s", digits=0, label="speed")


def never(request: Request) -> Iterator[Report]:
    raise AssertionError


def cell(method: str, metric: Metric, paper: float | None = None) -> Cell:
    return Cell(Variant(Training(method), HowTested()), metric.name, paper)


def row(label: str, method: str, **paper: float | None) -> Row:
    metrics = {metric.name: metric for metric in (ERROR, ACCURACY, TIME, LIKELIHOOD)}
    return Row(label, (label,), tuple(cell(method, metrics[name], value) for name, value in paper.items()))


def refs(table: str, column: str, *rows: str) -> tuple[CellRef, ...]:
    return tuple(CellRef(table, label, column) for label in rows)


def claims(table: str, column: str, worst: str, middle: str, best: str, *equal: str) -> tuple[
    Better | Chain | Equivalent | Range, ...
]:  # fmt: skip
    (left,), (right,) = refs(table, column, best), refs(table, column, worst)
    return (
        Better(f"{column}-better", f"{best} beats {worst}", left, right),
        Chain(f"{column}-chain", "Each helps", (refs(table, column, worst, middle, best),)),
        Equivalent(f"{column}-equal", "Two are equal", *refs(table, column, *equal[:2]), margin=1.0),
        Range(f"{column}-range", "All are equal", refs(table, column, *equal), margin=1.0),
    )


ERRORS = Study(
    name="errors",
    title="Errors",
    metrics=(ERROR,),
    tables=(
        Table(
            "table1",
            "Methods",
            ("Method",),
            ("Error",),
            (row("base", "base", error=6.0), row("more", "more", error=5.0), row("most", "most", error=4.0)),
        ),
        Table(
            "table2",
            "Values of k",
            ("k",),
            ("Error",),
            tuple(row(str(k), f"k{k}", error=4.0) for k in (1, 2, 3)),
        ),
    ),
    claims=(
        *claims("table1", "Error", "base", "more", "most", "base", "more")[:2],
        *claims("table2", "Error", "1", "2", "3", "1", "2", "3")[2:],
    ),
    profiles={},
    default_profile="shapes",
    train=never,  # type: ignore[arg-type]
    predictions="detections",
    progress=(Metric("loss", unit="", better="lower", digits=3), SPEED),
)
"""One metric, an error rate."""

TIMED = Study(
    name="timed",
    title="Accuracy and time",
    metrics=(ACCURACY, TIME),
    tables=(
        Table(
            "table1",
            "Methods",
            ("Method",),
            ("Accuracy", "Time"),
            tuple(
                row(name, name, accuracy=accuracy, time=time)
                for name, accuracy, time in (("slow", 92.0, 3.0), ("mid", 91.0, 2.0), ("fast", 90.0, 1.0))
            ),
        ),
        Table(
            "table2",
            "Metrics as rows",
            ("Metric",),
            ("slow", "fast"),
            tuple(
                Row(metric.name, (metric.name,), (cell("slow", metric), cell("fast", metric)))
                for metric in (ACCURACY, TIME)
            ),
        ),
    ),
    claims=(
        *claims("table1", "Accuracy", "fast", "mid", "slow", "mid", "slow"),
        *claims("table1", "Time", "slow", "mid", "fast", "mid", "fast"),
    ),
    profiles={},
    default_profile="shapes",
    train=never,  # type: ignore[arg-type]
)
"""A percentage that should be high and a time that should be low."""

ERROR_VALUES = {"base": 7.004, "more": 5.0, "most": 3.0, "k1": 4.0, "k2": 4.004, "k3": 3.9}
TIMED_VALUES = {
    "slow": {"accuracy": 93.0, "time": 3.0},
    "mid": {"accuracy": 91.0, "time": 2.0},
    "fast": {"accuracy": 89.0, "time": 0.5},
}


def measured_errors(root: Path) -> Workspace:
    """A workspace of `ERRORS` in which all has run."""
    workspace = make(root, (0, 1), ERRORS)
    for method, value in ERROR_VALUES.items():
        for seed in (0, 1):
            workspace.measure(method, value + seed / 100, seed)
    return workspace


def measured_times(root: Path) -> Workspace:
    """A workspace of `TIMED` in which all has run."""
    workspace = make(root, (0, 1), TIMED)
    for method, values in TIMED_VALUES.items():
        for seed in (0, 1):
            workspace.measure(method, {name: value + seed / 100 for name, value in values.items()}, seed)
    return workspace
