"""CSV in long form: one line per cell, every part of it in a column of its own."""

from __future__ import annotations

import csv
import io

from ablation.metric import Metric
from ablation.render import text
from ablation.results.table import FilledCell, FilledTable

VALUE_COLUMNS = ("column", "metric", "ours", "spread", "seeds", "paper", "difference", "state", "trial_keys")


def table(filled: FilledTable) -> str:
    """One table: id, row label, the heading columns as declared, then what the cell holds.

    Numbers are in the unit of the metric, with three decimals more than tables show; an absent one is
    empty, and `state` says why. `seeds` is "have/planned"; `trial_keys` are separated by spaces, in order
    of seed. A text that a spreadsheet would compute (it starts with =, +, -, @, a tab or a carriage return)
    has an apostrophe before it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", *map(_text, filled.table.headers), *VALUE_COLUMNS])
    for row, cells in zip(filled.table.rows, filled.rows, strict=True):
        names = [_text(filled.table.id), _text(row.label), *map(_header, row.headers)]
        writer.writerows([*names, *_values(cell)] for cell in cells)
    return buffer.getvalue()


def _values(cell: FilledCell) -> list[str]:
    return [
        _text(cell.column),
        _text(cell.metric.name),
        _plain(cell.mean, cell.metric),
        _plain(cell.spread, cell.metric),
        f"{len(cell.values)}/{len(cell.sources)}",
        _plain(cell.paper, cell.metric),
        _plain(cell.difference, cell.metric),
        cell.state,
        " ".join(source.trial_key for source in cell.sources),
    ]


def _header(header: str | bool) -> str:
    return (text.CHECK if header else "") if isinstance(header, bool) else _text(header)


def _text(plain: str) -> str:
    return f"'{plain}" if plain.startswith(("=", "+", "-", "@", "\t", "\r")) else plain


def _plain(value: float | None, metric: Metric) -> str:
    if value is None:
        return ""
    decimals = metric.digits + 3
    return f"{round(value, decimals) + 0.0:.{decimals}f}".rstrip("0").rstrip(".")
