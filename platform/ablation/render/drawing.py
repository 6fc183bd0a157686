"""One figure per table: ours beside the paper's, each on its own scale.

Drawn from any filled table: a curve where the rows are numbers (k, scale), else a dot per row. The two
panels never share an axis, because only orders and shapes compare between scales. Columns drawn are
those of the first column's metric (AP; the two columns of a 2x2 table). No pyplot, so no global state.

A bar is the 95 % interval of a cell's distance from the mean of all cells drawn. The noise that all of
them share (which images were tested) is so taken out: it says nothing about their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ablation.results.claims import sample
from ablation.results.statistics import average, difference
from ablation.results.table import FilledCell, FilledTable
from ablation.study import SeedNoise

COLOURS = ("#0b68cb", "#c2571a", "#18794e", "#7d4fc3")
GREY = "#5f6873"


@rc_context({"text.parse_math": False})  # a $ in a name is a $
def draw(filled: FilledTable) -> Figure:
    """The figure of one table."""
    columns, numbers = _columns(filled), _numbers(filled)
    seeds, metric = _shared_seeds(columns), columns[0][0].cell.metric
    drawn = {
        f"ours, {metric} ({filled.heading.profile}, {filled.heading.data_name})": _ours(
            columns, seeds, filled.heading.seed_noise
        )
    }
    if any(cell.paper is not None for column in columns for cell in column):
        drawn[f"the paper's, {metric}"] = _papers(columns)
    high = 2.9 if numbers else 1.4 + 0.34 * len(filled.rows)
    figure = _canvas(2.0 + 2.8 * len(drawn), high)
    panels = figure.subplots(1, len(drawn), sharey=numbers is None, squeeze=False)[0]
    for axes, (title, series) in zip(panels, drawn.items(), strict=True):
        if numbers is None:
            _dots(axes, series, [_name(row.label) for row in filled.table.rows])
        else:
            _curves(axes, series, numbers)
            axes.set_xlabel(filled.table.headers[0], fontsize=8)
        _finish(axes, title)
    if numbers is None:
        _say_states(panels[0], columns)
    if len(columns) > 1:
        panels[-1].legend(frameon=False, fontsize=8)
    figure.supxlabel(_note(seeds, filled.heading.seed_noise), fontsize=7, color=GREY, x=0.01, ha="left")
    figure.suptitle(f"{filled.name}. {filled.table.title}", fontsize=10, x=0.01, ha="left")
    return figure


def _note(seeds: Sequence[int], seed_noise: SeedNoise | None) -> str:
    bars = "Bars: 95 % interval of the distance from the mean of all cells drawn"
    if len(seeds) != 1:
        return f"{bars}."
    if seed_noise is None:
        return f"{bars}, from the images alone: how far seeds spread here is unknown."
    return f"{bars}; one seed, with the spread that the baseline rows showed between others."


@dataclass(frozen=True, slots=True)
class _Series:
    """One column: a value per row, NaN where there is none, and half the length of its bar."""

    name: str
    colour: str
    values: list[float]
    halves: list[float]


def _ours(
    columns: Sequence[Sequence[FilledCell]], seeds: Sequence[int], seed_noise: SeedNoise | None
) -> list[_Series]:
    halves = _halves(columns, seeds, seed_noise)
    return [
        _Series(
            column[0].column,
            colour,
            [math.nan if cell.mean is None else cell.mean for cell in column],
            [halves.get(cell, 0.0) for cell in column],
        )
        for column, colour in zip(columns, cycle(COLOURS), strict=False)
    ]


def _papers(columns: Sequence[Sequence[FilledCell]]) -> list[_Series]:
    colours = [GREY] if len(columns) == 1 else COLOURS
    return [
        _Series(
            column[0].column,
            colour,
            [math.nan if cell.paper is None else cell.paper for cell in column],
            [0.0] * len(column),
        )
        for column, colour in zip(columns, cycle(colours), strict=False)
    ]


def _dots(axes: Axes, drawn: Sequence[_Series], names: Sequence[str]) -> None:
    for index, series in enumerate(drawn):
        places = [place + (index - (len(drawn) - 1) / 2) * 0.22 for place in range(len(names))]
        axes.errorbar(
            series.values,
            places,
            xerr=series.halves,
            fmt="o",
            ms=5,
            lw=1.2,
            capsize=2.5,
            color=series.colour,
            label=series.name,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="#e3e6ea", lw=0.8)


def _curves(axes: Axes, drawn: Sequence[_Series], numbers: Sequence[float]) -> None:
    for series in drawn:
        axes.errorbar(
            numbers,
            series.values,
            yerr=series.halves,
            fmt="o-",
            ms=4.5,
            lw=1.4,
            elinewidth=1,
            capsize=2.5,
            color=series.colour,
            label=series.name,
        )
    axes.set_xticks(list(numbers))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color="#e3e6ea", lw=0.8)


def _say_states(axes: Axes, columns: Sequence[Sequence[FilledCell]]) -> None:
    """In the place of each row that has no number, why."""
    across = axes.get_yaxis_transform()
    for place, cell in enumerate(columns[0]):
        if not cell.values:
            axes.text(
                0.5, place, cell.state, transform=across, fontsize=7, color=GREY, ha="center", va="center"
            )


def _canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _columns(filled: FilledTable) -> list[list[FilledCell]]:
    metric = filled.rows[0][0].cell.metric
    columns = [list(column) for column in zip(*filled.rows, strict=True)]
    return [column for column in columns if column[0].cell.metric == metric]


def _numbers(filled: FilledTable) -> list[float] | None:
    """The rows' only heading as numbers; None where it is not one."""
    if len(filled.table.headers) != 1:
        return None
    try:
        return [float(row.headers[0]) for row in filled.table.rows]
    except ValueError:
        return None


def _shared_seeds(columns: Sequence[Sequence[FilledCell]]) -> list[int]:
    """Those at which every cell that is drawn has its value."""
    having = [set(cell.values) for column in columns for cell in column if cell.values]
    return sorted(set.intersection(*having)) if having else []


def _halves(
    columns: Sequence[Sequence[FilledCell]], seeds: Sequence[int], seed_noise: SeedNoise | None
) -> dict[FilledCell, float]:
    """Half the length of each cell's bar; nothing for cells that share no seed or have no interval.

    A number that an evaluation server gave has none, and so has no distance from a mean that it is in.
    """
    cells = [cell for column in columns for cell in column if cell.values]
    if not seeds or any(cell.imported for cell in cells):
        return {}
    samples = [sample(cell, seeds, seed_noise) for cell in cells]
    halves = {}
    for place, (cell, one) in enumerate(zip(cells, samples, strict=True)):
        others = samples[:place] + samples[place + 1 :]
        found = difference(one, average(others)).interval() if others else None
        if found is not None:
            # A cell is in the mean that its bar is about: from the others' it is as much further away.
            halves[cell] = (found[1] - found[0]) / 2 * len(others) / len(samples)
    return halves


def _name(label: str) -> str:
    """A row label short enough for an axis: its two ends."""
    return label if len(label) <= 44 else f"{label[:16].rstrip()} … {label[-22:].partition(' ')[2]}"


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color="#1c2024")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
