"""A small paper with every kind of table and claim, and a workspace in which some of it has run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ablation.claim import Better, CellRef, Chain, Equivalent, Range, Statistic, StatisticResult
from ablation.metric import Metric, SeedNoise
from ablation.plan import Plan, make_plan, register
from ablation.protocol import Checkpointed, Described, Evaluated, Progress
from ablation.provenance import environment
from ablation.resources import Resources
from ablation.store import Store
from ablation.study import Cell, Row, Study, Table, Variant


@dataclass(frozen=True)
class Training:
    method: str


@dataclass(frozen=True)
class Trial:
    method: str
    seed: int


@dataclass(frozen=True)
class HowTested:
    multi_scale: bool = False


METRICS = tuple(Metric(name, tolerance=0.3) for name in ("AP", "APS"))
PROGRESS = (Metric("loss", unit="", better="lower", digits=3),)
LITTLE = SeedNoise(0.05, 8)


@dataclass
class Setting:
    profile: str = "shapes"
    at_paper_scale: bool = False
    data_name: str = "shapes_v1 & co"
    own_data: str | None = None
    seed_noise: Mapping[str, SeedNoise] = field(default_factory=lambda: {"AP": LITTLE})
    exclusive_gpus: bool = False
    caption: str = "96x96 images, 50 % drawn, #1."
    notices: Sequence[str] = ()
    context: object = None

    def trial(self, training: Training, seed: int) -> Trial:
        return Trial(training.method, seed)

    def evaluation(self, evaluation: HowTested) -> HowTested:
        return evaluation

    def resources(self, trial: Trial) -> Resources | None:
        return None

    def cost(self, trial: Trial, evaluations: Sequence[HowTested]) -> float:
        return 10.0 + len(evaluations)


def _cell(method: str, metric: str, paper: float | None) -> Cell:
    return Cell(Variant(Training(method), HowTested()), metric, paper)


def _row(label: str, headers: tuple[str | bool, ...], method: str, **paper: float | None) -> Row:
    return Row(label, headers, tuple(_cell(method, metric, value) for metric, value in paper.items()))


STEPS = Table(
    "table1",
    "Improvements, one by one",
    ("Method", "GroupNorm", "GIoU"),
    ("AP",),
    (
        _row("other", ("Other", True, True), "other", AP=37.8),
        _row("base", ("Base", False, False), "base", AP=32.5),
        _row("base+gn", ("Base", True, False), "gn", AP=33.4),
        _row("base+gn+giou", ("Base", True, True), "giou", AP=34.9),
    ),
    transposed=True,
)
SQUARE = Table(
    "table2",
    "Rule x start",
    ("Rule",),
    ("Box", "Point"),
    (
        Row("IoU", ("IoU",), (_cell("iou-box", "AP", 37.0), _cell("iou-point", "AP", 36.9))),
        Row("SSC", ("SSC",), (_cell("other", "AP", 37.8), _cell("ssc-point", "AP", 37.8))),
    ),
)
NASTY = Table(
    "table3",
    "100% of <b>_names_</b> | & é中",
    ("Method & {co}", "#sc"),
    ("AP", "APS"),
    (
        _row("a_b", ("a_b~^\\ $5|*x*", "1"), "giou", AP=34.9, APS=20.0),
        _row("c", ("ResNet−50 ✓ é 中", "3"), "c", AP=35.0, APS=None),
    ),
)
NUMBERS = Table(
    "table4",
    "Values of k",
    ("k",),
    ("AP",),
    tuple(_row(f"k={k}", (str(k),), f"k{k}", AP=39.0 + k / 10) for k in (3, 5, 7)),
    transposed=True,
)
CLAIMS = (
    Better("better", "Other beats base", CellRef("table1", "other", "AP"), CellRef("table1", "base", "AP")),
    Chain(
        "chain",
        "Each helps",
        (tuple(CellRef("table1", row, "AP") for row in ("base", "base+gn", "base+gn+giou")),),
    ),
    Equivalent(
        "equal", "Box is point", CellRef("table2", "IoU", "Box"), CellRef("table2", "IoU", "Point"), 1.0
    ),
    Range("range", "k does not matter", tuple(CellRef("table4", f"k={k}", "AP") for k in (3, 5, 7)), 1.0),
    Statistic("statistic", "Is fair", lambda setting: StatisticResult(True, f"on {setting.profile}")),
)


@dataclass
class Workspace:
    """A study in a store on disk, to be filled by `measure`."""

    root: Path
    study: Study
    setting: Setting
    store: Store
    seeds: tuple[int, ...]
    shared_noise: np.ndarray = field(
        default_factory=lambda: np.random.default_rng(0).normal(0, 2.0, (200, 1))
    )

    @property
    def plan(self) -> Plan:
        return make_plan(self.study, self.setting, self.seeds, None, self.store)

    def trial_key(self, method: str, seed: int = 0) -> str:
        return next(trial.key for trial in self.plan.trials if trial.config == Trial(method, seed))

    def start(self, method: str, seed: int = 0, dirty: bool = False) -> int:
        provenance = {"commit": "0123456789abcdef", "dirty": dirty}
        attempt = self.store.claim(self.trial_key(method, seed), "test", provenance)
        assert attempt is not None
        return attempt

    def measure(
        self, method: str, value: float | Mapping[str, float], seed: int = 0, noise: float = 0.1
    ) -> None:
        """The trial of `method` runs and reaches `value`, with replicates that share most of their noise."""
        attempt = self.start(method, seed)
        self.store.record(
            attempt, [Progress(step, 100, {"loss": 2 - step / 100}) for step in range(0, 101, 20)]
        )
        names = [metric.name for metric in self.study.metrics]
        given = {names[0]: value} if isinstance(value, float) else dict(value)
        numbers = {name: given.get(name, 50.0) for name in names}
        trial = self.plan.trial(self.trial_key(method, seed))
        own = np.random.default_rng(sum(map(ord, method)) + seed).normal(0, noise, (200, len(names)))
        for evaluation in trial.evaluations:
            path = self.root / "artifacts" / trial.key / "bootstrap.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            replicates = np.array(list(numbers.values())) + self.shared_noise + own
            np.savez(path, replicates=replicates, metrics=names)
            self.store.record(attempt, [Evaluated(evaluation.key, numbers, {"bootstrap": str(path)})])
        self.store.finish(attempt)

    def train_with(self, method: str, torch: str | None) -> str:
        """The method's trial is trained and tested with a version of torch, or keeps no record; its key."""
        attempt, trial = self.start(method), self.plan.trial(self.trial_key(method))
        if torch:
            found = environment.describe([], ["torch"])
            packages = found["packages"] | {"torch": torch}
            self.store.record(attempt, [Described(found | {"packages": packages})])
        self.store.record(attempt, [Progress(100, 100), Checkpointed(100, "artifacts/100.pt", "0" * 64)])
        numbers = {"AP": 40.0}
        self.store.record(attempt, [Evaluated(evaluation.key, numbers) for evaluation in trial.missing])
        self.store.finish(attempt)
        return trial.key

    def submit(self, method: str, seed: int = 0) -> list[str]:
        """The trial of `method` runs and leaves what an evaluation server takes; keys of its evaluations."""
        attempt = self.start(method, seed)
        trial = self.plan.trial(self.trial_key(method, seed))
        path = self.root / "artifacts" / trial.key / "submission.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("detections")
        for evaluation in trial.evaluations:
            self.store.record(attempt, [Evaluated(evaluation.key, {}, {"submission": str(path)})])
        self.store.finish(attempt)
        return [evaluation.key for evaluation in trial.evaluations]

    def give(self, key: str, value: float) -> None:
        """An evaluation server's number for one of those evaluations."""
        path = self.root / "artifacts" / "scores.txt"
        path.write_text(str(value))
        self.store.import_scores(key, {metric.name: value for metric in self.study.metrics}, str(path))


def torch_today() -> str:
    """The version of torch that is installed."""
    return environment.version("torch") or ""


STUDY = Study(
    name="paper",
    title="A paper of 100 % & more",
    metrics=METRICS,
    tables=(STEPS, SQUARE, NASTY, NUMBERS),
    claims=CLAIMS,
    profiles={},
    default_profile="shapes",
    train=lambda request: iter(()),  # type: ignore[arg-type,return-value]
    progress=PROGRESS,
    paper_note="the paper's: COCO",
    predictions="detections",
    read_scores=lambda content, source: json.loads(content),
)


def make(root: Path, seeds: Sequence[int], study: Study = STUDY) -> Workspace:
    workspace = Workspace(root, study, Setting(), Store.open(root / "store.db"), tuple(seeds))
    register(workspace.plan, workspace.store)
    return workspace


PAPER_NUMBERS = {
    "other": 47.8, "base": 42.5, "gn": 43.4, "giou": {"AP": 44.96, "APS": math.nan}, "iou-box": 47.0,
    "iou-point": 46.9, "ssc-point": 47.84, "c": {"AP": 45.0, "APS": 30.0}, "k3": 49.3, "k5": 49.5, "k7": 49.7,
}  # fmt: skip
