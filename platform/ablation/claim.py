"""What a paper says of its tables, as data: claims on cells, which `ablation.results.claims` judges.

The cells of a claim have one metric, which says what is better. Margins are in the unit of its
differences: points, for percentages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from ablation.setting import Setting


@dataclass(frozen=True, slots=True)
class CellRef:
    """Points at a cell: table id, row label, column name."""

    table: str
    row: str
    column: str


@dataclass(frozen=True, slots=True)
class Better:
    """`left` is better than `right`: higher, or lower where the metric says that lower is better.

    Its estimate is `left` minus `right`, which is negative where lower is better and the claim is true.
    """

    id: str
    text: str
    left: CellRef
    right: CellRef


@dataclass(frozen=True, slots=True)
class Chain:
    """In each chain every cell is better than the one before it.

    Its estimate is the step that gains least: a cell minus the one before it.
    """

    id: str
    text: str
    chains: tuple[tuple[CellRef, ...], ...]


@dataclass(frozen=True, slots=True)
class Equivalent:
    """Two cells differ by less than `margin`, whichever is better."""

    id: str
    text: str
    left: CellRef
    right: CellRef
    margin: float


@dataclass(frozen=True, slots=True)
class Range:
    """The largest and the smallest of the cells differ by less than `margin`."""

    id: str
    text: str
    cells: tuple[CellRef, ...]
    margin: float


@dataclass(frozen=True, slots=True)
class StatisticResult:
    """What a `Statistic` found: whether it holds (None: not measurable), and the numbers in one sentence."""

    holds: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Statistic:
    """A claim checked by computing something that needs no training."""

    id: str
    text: str
    compute: Callable[[Setting], StatisticResult]


Claim = Better | Chain | Equivalent | Range | Statistic


def comparisons(claim: Claim) -> tuple[tuple[CellRef, ...], ...]:
    """The groups of cells that a claim compares with each other."""
    match claim:
        case Better() | Equivalent():
            return ((claim.left, claim.right),)
        case Chain():
            return claim.chains
        case Range():
            return (claim.cells,)
        case Statistic():
            return ()
        case _:
            assert_never(claim)


def references(claim: Claim) -> tuple[CellRef, ...]:
    """The cells that a claim rests on."""
    return tuple(ref for group in comparisons(claim) for ref in group)
