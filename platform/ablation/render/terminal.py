"""Filled tables and verdicts as rich tables: they fit 100 columns, and stay readable without colour."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ablation.render import text
from ablation.results.claims import Verdict, summary
from ablation.results.statistics import UNKNOWN_SPREAD
from ablation.results.table import FilledCell, FilledTable, Item, grid, num_heading_columns
from ablation.wording import counted

VERDICT_STYLE = {"supported": "green", "refuted": "red", "undecided": "yellow", "pending": "dim"}
LONG_NAME = 30
_STATE_STYLE = {"failed": "red", "running": "cyan", "submit": "yellow", "unmeasured": "yellow"}


def tables(filled: Sequence[FilledTable]) -> RenderableType:
    """Every table with its notes, and below them once the caption that they share."""
    drawn: list[RenderableType] = []
    for one in filled:
        drawn += [table(one), *(Text(note, style="dim") for note in one.notes), ""]
    if filled:
        drawn.append(Text(f"{filled[0].heading.text} * is the best of each metric.", style="dim"))
    return Group(*drawn)


def table(filled: FilledTable) -> Table:
    """One table; a cell takes two lines: ours above, the paper's and the difference below."""
    head, *body = grid(filled)
    title = Text.assemble((filled.name, "bold"), f"  {filled.table.title}")
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    num_left = num_heading_columns(filled)
    for index, item in enumerate(head):
        longest = max(len(str(line[index])) for line in (head, *body)) if index < num_left else 0
        drawn.add_column(
            _item(item),
            justify="left" if index < num_left else "center",
            # Names do not wrap, except one that would take a third of the line.
            no_wrap=0 < longest <= LONG_NAME,
            max_width=LONG_NAME if index < num_left else None,
            header_style="bold",
        )
    for line in body:
        drawn.add_row(*map(_item, line))
    return drawn


def claims(judged: Sequence[Verdict], renew: str) -> RenderableType:
    """A line per claim, and the summary.

    Args:
        renew: the command that trains stale results again.
    """
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    drawn.add_column("Claim", ratio=1, overflow="fold")
    drawn.add_column("Verdict", no_wrap=True)
    drawn.add_column("Paper's way", justify="center")
    drawn.add_column("Paper", justify="right", no_wrap=True)
    drawn.add_column(Text("Ours [interval]"), justify="left", no_wrap=True)
    for verdict in judged:
        drawn.add_row(
            Text(verdict.text),
            Text(verdict.verdict, style=VERDICT_STYLE[verdict.verdict]),
            text.direction(verdict),
            text.paper_estimate(verdict),
            Text(text.estimate(verdict)),
        )
    return Group(
        drawn, Text(summary(judged), style="bold"), *(Text(tip, style="dim") for tip in _tips(judged, renew))
    )


def _tips(judged: Sequence[Verdict], renew: str) -> list[str]:
    """What would let more claims be decided."""
    tips = []
    if any(UNKNOWN_SPREAD in verdict.detail for verdict in judged):
        tips.append("One seed of unknown spread decides nothing; three (--seeds 3) can.")
    if damaged := len({path for verdict in judged for path in verdict.unreadable}):
        tips.append(f"{counted(damaged, 'bootstrap file')} cannot be read; claims.md names them.")
    if earlier := len({path for verdict in judged for path in verdict.earlier}):
        tips.append(
            f"{counted(earlier, 'bootstrap file')} of an earlier version cannot be read (claims.md names "
            f"them), so that claims rest on the seeds alone; `{renew}` makes new ones."
        )
    return tips


def _item(item: Item) -> Text:
    if isinstance(item, bool):
        return Text(text.CHECK if item else "")
    return _cell(item) if isinstance(item, FilledCell) else Text(item)


def _cell(cell: FilledCell) -> Text:
    style = _STATE_STYLE.get(cell.state.split()[0], "dim") if not cell.values else "bold" if cell.best else ""
    # Plain text has no bold, so an asterisk marks the best.
    shown = Text(text.ours(cell) + ("*" if cell.best else ""), style=style)
    spread, reference = text.spread(cell), text.reference(cell, " ")
    if spread:
        shown.append(f" {spread}", style="dim" if cell.complete else "cyan")
    if reference:
        shown.append(f"\n{reference}", style="dim")
    return shown
