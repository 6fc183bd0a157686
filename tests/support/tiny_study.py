"""A study of three tables whose rows share trainings, and a setting that trains nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.metric import Metric
from ablation.protocol import Report, Request
from ablation.resources import Resources
from ablation.setting import PlainSetting
from ablation.study import Cell, Row, Study, Table, Variant


@dataclass(frozen=True, slots=True)
class Training:
    topk: float = 9


@dataclass(frozen=True, slots=True)
class HowTested:
    multi_scale: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    training: Training
    seed: int


@dataclass(frozen=True)
class TinySetting(PlainSetting):
    profile: str = "tiny"
    caption: str = "Four images."
    data_name: str = "dots"

    def trial(self, training: Any, seed: int) -> Any:
        return Trial(training, seed)

    def resources(self, trial: Any) -> Resources | None:
        return Resources(cpus=2) if trial.training.topk == 9 else None

    def cost(self, trial: Any, evaluations: Sequence[Any]) -> float:
        return 100 * trial.training.topk + sum(5 if e.multi_scale else 1 for e in evaluations)


def never(request: Request) -> Iterator[Report]:
    raise AssertionError


def cells(topk: float, *, multi_scale: bool = False) -> tuple[Cell, Cell]:
    variant = Variant(Training(topk), HowTested(multi_scale))
    return Cell(variant, "AP", 39.3), Cell(variant, "AP50")


def row(label: str, topk: float, *, multi_scale: bool = False) -> Row:
    return Row(label, (), cells(topk, multi_scale=multi_scale))


# table1: three trainings. table2: one row whose cells differ (7 is new, 9 is shared).
# table3: 9 again, and 9 tested at several scales.
STUDY = Study(
    name="atss",
    title="ATSS",
    metrics=(Metric("AP"), Metric("AP50")),
    tables=(
        Table("table1", "k", (), ("AP", "AP50"), (row("k=3", 3), row("k=5", 5), row("k=9", 9))),
        Table(
            "table2", "box and point", (), ("box", "point"), (Row("mixed", (), (cells(9)[0], cells(7)[0])),)
        ),
        Table("table3", "test", (), ("AP", "AP50"), (row("single", 9.0), row("multi", 9, multi_scale=True))),
    ),
    claims=(),
    profiles={},
    default_profile="tiny",
    train=never,
)
