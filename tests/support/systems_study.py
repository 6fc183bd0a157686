"""A comparison of systems: reported rows, numbers that are counted, and some that rows measure together."""

from pathlib import Path

from ablation.claim import Better, CellRef, Statistic, StatisticResult
from ablation.metric import Metric
from ablation.protocol import JointRequest, JointResult
from ablation.study import Cell, JointMeasurement, Row, Study, Table, Variant
from tests.support.workspaces import HowTested, Setting, Training, Trial, Workspace, make

QUALITY = Metric("AP", tolerance=0.3)
SPEED = Metric("speed", unit="images/s", digits=0, rescore_tolerance=None, comparable=False)
BOXES = Metric("boxes", unit="", better="neither", digits=0, rescore_tolerance=None, comparable=False)
ROUNDS = {"slow": [10.0, 11.0, 9.0], "fast": [15.0, 16.0, 14.5]}
"""Speeds of a slow and a fast method, which are slower together in the last round."""


def measure(request: JointRequest) -> JointResult:
    """The speeds above; a row has its method's."""
    rows = {row.key: {"speed": ROUNDS[row.trial.method]} for row in request.rows}
    return JointResult("the test's machine", rows)


def count(trial: Trial, tested: HowTested) -> float:
    """As many boxes as the method's name has letters."""
    return 1000.0 * len(trial.method)


def _row(label: str, method: str, *papers: float) -> Row:
    metrics = (QUALITY, SPEED, BOXES)
    variant = Variant(Training(method), HowTested())
    cells = (Cell(variant, m.name, p) for m, p in zip(metrics, papers, strict=True))
    return Row(label, (label,), tuple(cells))


SYSTEMS = Study(
    name="systems",
    title="Systems",
    metrics=(QUALITY, SPEED, BOXES),
    tables=(
        Table(
            "table1",
            "Systems",
            ("System",),
            ("AP", "Speed", "Boxes"),
            (
                Row.reported("Old", ("Old",), {"AP": 99.0, "speed": 400.0, "boxes": None}, "Someone, 2016"),
                _row("Slow", "slow", 77.0, 46.0, 8732.0),
                _row("Fast", "fast", 80.0, 40.0, 6375.0),
            ),
        ),
    ),
    claims=(
        Better("faster", "Fast is faster", *(CellRef("table1", row, "Speed") for row in ("Fast", "Slow"))),
        Statistic("fewer", "Counted", lambda setting: StatisticResult(True, "by the configs")),
    ),
    profiles={},
    default_profile="shapes",
    train=lambda request: iter(()),  # type: ignore[arg-type,return-value]
    computed={"boxes": count},
    joint=JointMeasurement(("speed",), "Batch 1, warm", measure),
)


def trained(root: Path, seeds: tuple[int, ...] = (0,)) -> Workspace:
    """A workspace in which both systems have been trained at every seed, and nothing was measured jointly."""
    workspace = make(root, seeds, SYSTEMS)
    workspace.setting = Setting()
    for seed in seeds:
        workspace.measure("slow", {"AP": 70.0}, seed)
        workspace.measure("fast", {"AP": 75.0}, seed)
    return workspace
