"""One figure per table: ours beside the paper's, each on its own scale.

A curve where the rows are numbers (k, scale), else a dot per row. The two panels never share an axis,
because only orders and shapes compare between scales. Columns drawn are those of the first column's metric
(for instance both columns of a 2x2 table). No pyplot, so no global state.

A bar is the 95 % interval of a cell's distance from the mean of all cells drawn. The noise that all of
them share (which samples were tested) says nothing about their order and is left out in this way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ablation.metric import SeedNoise
from ablation.results.claims import sample
from ablation.results.statistics import average, difference
from ablation.results.table import FilledCell, FilledTable

COLOURS = ("#0b68cb", "#c2571a", "#18794e", "#7d4fc3")
GREY = "#5f6873"


@rc_context({"text.parse_math": False})  # a $ in a name is a $
def draw(filled: FilledTable) -> Figure:
    """The figure of one table: of its cells that have the metric of the first one."""
    filled = _of_one_metric(filled)
    columns, numbers = _columns(filled), _numbers(filled)
    seeds, metric, heading = _shared_seeds(columns), columns[0][0].metric, filled.heading
    ours = f"ours ({heading.profile}, {heading.data_name})"
    drawn = {ours: _ours(columns, seeds, heading.seed_noise)}
    if any(cell.paper is not None for column in columns for cell in column):
        drawn["the paper's"] = _papers(columns)
    high = 2.9 if numbers else 1.4 + 0.34 * len(filled.rows)
    figure = _canvas(2.0 + 2.8 * len(drawn), high)
    panels = figure.subplots(1, len(drawn), sharey=numbers is None, squeeze=False)[0]
    for axes, (title, series) in zip(panels, drawn.items(), strict=True):
        if numbers is None:
            _dots(axes, series, [_name(row.label) for row in filled.table.rows])
            axes.set_xlabel(metric.axis, fontsize=8)
        else:
            _curves(axes, series, numbers)
            axes.set_xlabel(filled.table.headers[0], fontsize=8)
            axes.set_ylabel(metric.axis, fontsize=8)
        _finish(axes, title)
    if numbers is None:
        _say_states(panels[0], columns)
    if len(columns) > 1:
        panels[-1].legend(frameon=False, fontsize=8)
    note = _note(seeds, heading.seed_noise.get(metric.name))
    figure.supxlabel(note, fontsize=7, color=GREY, x=0.01, ha="left")
    figure.suptitle(f"{filled.name}. {filled.table.title}", fontsize=10, x=0.01, ha="left")
    return figure


def _note(seeds: Sequence[int], seed_noise: SeedNoise | None) -> str:
    bars = "Bars: 95 % interval of the distance from the mean of all cells drawn"
    if len(seeds) != 1:
        return f"{bars}."
    if seed_noise is None:
        return f"{bars}, from the test data alone: the spread over seeds is unknown."
    return f"{bars}; one seed, with the spread over seeds that the profile states."


@dataclass(frozen=True, slots=True)
class _Series:
    """One column: a value per row, NaN where there is none, and half the length of its bar."""

    name: str
    colour: str
    values: list[float]
    halves: list[float]


def _ours(
    columns: Sequence[Sequence[FilledCell]], seeds: Sequence[int], seed_noise: Mapping[str, SeedNoise]
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
    """The state of each row that has no number, at its place."""
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


def _of_one_metric(filled: FilledTable) -> FilledTable:
    """The rows whose first cell has the metric of the table's first cell."""
    pairs = zip(filled.table.rows, filled.rows, strict=True)
    kept = [(row, cells) for row, cells in pairs if cells[0].metric == filled.rows[0][0].metric]
    rows, cells = zip(*kept, strict=True)
    return replace(filled, table=replace(filled.table, rows=rows), rows=cells)


def _columns(filled: FilledTable) -> list[list[FilledCell]]:
    metric = filled.rows[0][0].metric
    columns = [list(column) for column in zip(*filled.rows, strict=True)]
    return [column for column in columns if all(cell.metric == metric for cell in column)]


def _numbers(filled: FilledTable) -> list[float] | None:
    """The headings of the rows as numbers; None where there are several headings, or one is no number."""
    if len(filled.table.headers) != 1:
        return None
    headings = [row.headers[0] for row in filled.table.rows]
    try:
        numbers = [math.nan if isinstance(heading, bool) else float(heading) for heading in headings]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _shared_seeds(columns: Sequence[Sequence[FilledCell]]) -> list[int]:
    """The seeds at which every cell that is drawn has a value."""
    having = [set(cell.values) for column in columns for cell in column if cell.values]
    return sorted(set.intersection(*having)) if having else []


def _halves(
    columns: Sequence[Sequence[FilledCell]], seeds: Sequence[int], seed_noise: Mapping[str, SeedNoise]
) -> dict[FilledCell, float]:
    """Half the length of each cell's bar; nothing for cells that share no seed or have no interval.

    A number from an evaluation server has no interval, and neither has a mean that contains it.
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
            # The mean contains the cell, whose distance from the mean of the others is that much larger.
            halves[cell] = (found[1] - found[0]) / 2 * len(others) / len(samples)
    return halves


def _name(label: str) -> str:
    """A row label short enough for an axis: of a long one the beginning and the end."""
    return label if len(label) <= 44 else f"{label[:16].rstrip()} … {label[-22:].partition(' ')[2]}"


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color="#1c2024")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
